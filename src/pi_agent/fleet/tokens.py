"""What this server signs: access tokens (RFC 9068), with keys that it publishes (RFC 7517) and a metadata page (RFC 8414).

The keys are ES256, made at first start, kept in the database, and named by their thumbprint. An ``Authority`` is all
that the endpoints need to know about the server they speak for; it is loaded once, at start.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from django.db import transaction

from pi_agent import jws
from pi_agent.errors import KeyFileError
from pi_agent.fleet import folder
from pi_agent.fleet.limits import Limits
from pi_agent.fleet.models import SigningKey
from pi_agent.fleet.settings import Settings
from pi_agent.fleet.web import Answer, json_answer
from pi_agent.jwk import public_key
from pi_agent.oauth import JWT_BEARER

CACHE = {"cache-control": "public, max-age=300"}


@dataclass(frozen=True, slots=True)
class Authority:
    """The server's name for itself, its signing key, and its limits (None: no limit)."""

    settings: Settings
    kid: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    nonce_secret: bytes = field(repr=False)
    jwks: Answer
    metadata: Answer
    limits: Limits | None


def load_authority(settings: Settings, *, now: int) -> Authority:
    """The authority of this fleet; its first signing key is made here. Raises KeyFileError when a key cannot be read."""
    with transaction.atomic():
        rows = list(SigningKey.objects.filter(retired_at=None).order_by("-created_at", "-id"))
        rows = rows or [_new_key(now)]
    keys = [(row, _private_key(row, settings)) for row in rows]
    row, private_key = keys[0]
    public = [public_key(key.public_key()).jwk | {"kid": row.kid, "alg": row.alg, "use": "sig"} for row, key in keys]
    return Authority(
        settings=settings,
        kid=row.kid,
        sign=jws.signer(private_key, row.alg),
        nonce_secret=folder.secret(settings.data, "enrollment nonce"),
        jwks=json_answer(200, {"keys": public}, CACHE),
        metadata=json_answer(200, metadata(settings), CACHE),
        limits=Limits() if settings.rate_limit else None,
    )


def metadata(settings: Settings) -> dict[str, object]:
    """The authorization server's description of itself (RFC 8414 section 2), from its settings and nothing else."""
    issuer = settings.issuer
    return {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/oauth/token",
        "registration_endpoint": f"{issuer}/oauth/register",
        "jwks_uri": f"{issuer}/oauth/jwks",
        "grant_types_supported": [JWT_BEARER],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["none"],
        "scopes_supported": settings.scopes.split(),
    }


def access_token(authority: Authority, *, client_id: str, scope: str, board: Mapping[str, Any] | None, now: int) -> str:
    """An access token in the profile of RFC 9068 section 2.2, with the enrolled board beside it."""
    claims = {
        "iss": authority.settings.issuer,
        "sub": client_id,
        "client_id": client_id,
        "aud": authority.settings.token_audience,
        "iat": now,
        "exp": now + authority.settings.token_lifetime,
        "jti": secrets.token_urlsafe(16),
        "scope": scope,
    }
    header = {"typ": "at+jwt", "alg": "ES256", "kid": authority.kid}
    return jws.serialize(header, claims | ({"board": dict(board)} if board else {}), sign=authority.sign)


def _new_key(now: int) -> SigningKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")
    kid = public_key(key.public_key()).kid
    return SigningKey.objects.create(kid=kid, alg="ES256", private_key=pem, created_at=now)


def _private_key(row: SigningKey, settings: Settings) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(row.private_key.encode("ascii"), password=None)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or public_key(key.public_key()).kid != row.kid:
        raise KeyFileError(
            f"the signing key {row.kid} is damaged", path=str(settings.database), hint="restore the database"
        )
    return key
