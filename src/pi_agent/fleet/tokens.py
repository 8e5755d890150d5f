"""What this server says about itself, and what it signs: metadata (RFC 8414), keys (RFC 7517), access tokens (RFC 9068).

An ``Authority`` is all that the endpoints need to know about the server they speak for. It is a value: when the keys
change, ``load_authority`` makes another one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from pi_agent import jws
from pi_agent.fleet import folder
from pi_agent.fleet.limits import Limits, Watch
from pi_agent.fleet.models import Device
from pi_agent.fleet.policy import Admitted
from pi_agent.fleet.settings import Settings
from pi_agent.fleet.signing import JWKS_SECONDS, KeyRing, load_ring, shared_secret
from pi_agent.fleet.web import Answer, compact_json, json_answer
from pi_agent.jws import ALGORITHMS, JsonObject
from pi_agent.oauth import JWT_BEARER

CACHE = {"cache-control": f"public, max-age={JWKS_SECONDS}"}


@dataclass(frozen=True, slots=True)
class Authority:
    """The server's name for itself, its keys, its limits (None: no limit), and its eye on the clock."""

    settings: Settings
    ring: KeyRing
    nonce_secret: bytes = field(repr=False)
    metadata: Answer
    limits: Limits | None
    watch: Watch

    def jwks(self, now: int) -> Answer:
        """The key set as it is published now (RFC 7517 section 5)."""
        return json_answer(200, {"keys": [key.jwk() for key in self.ring.published(now)]}, CACHE)


def load_authority(settings: Settings, *, now: int, before: Authority | None = None) -> Authority:
    """The authority of this fleet; its first signing key is made here. Raises KeyFileError when a key cannot be read.

    ``before`` is the one to be replaced: what it has counted so far goes on.
    """
    newest = Device.objects.filter(auth_at__isnull=False).order_by("-auth_at").values_list("auth_at", flat=True).first()
    ring = load_ring(settings, now=now)
    if before:
        before.watch.reset(newest or 0)
        return Authority(settings, ring, before.nonce_secret, before.metadata, before.limits, before.watch)
    return Authority(
        settings=settings,
        ring=ring,
        nonce_secret=fleet_secret(settings, "enrollment nonce"),
        metadata=json_answer(200, metadata(settings), CACHE),
        limits=Limits.of(settings) if settings.rate_limit else None,
        watch=Watch(newest or 0),
    )


def fleet_secret(settings: Settings, name: str) -> bytes:
    """A secret of the whole fleet: beside SQLite it is in the data folder; servers that share a database share it there."""
    return shared_secret(settings, name) if settings.shares_database else folder.secret(settings.data, name)


def metadata(settings: Settings) -> dict[str, object]:
    """The authorization server's description of itself (RFC 8414 section 2), from its settings and nothing else."""
    issuer = settings.issuer
    by_secret = ["client_secret_basic", "client_secret_post"]
    algorithms = list(ALGORITHMS)
    return {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/oauth/token",
        "registration_endpoint": f"{issuer}/oauth/register",
        "key_rotation_endpoint": f"{issuer}/oauth/rotate",
        "introspection_endpoint": f"{issuer}/oauth/introspect",
        "revocation_endpoint": f"{issuer}/oauth/revoke",
        "jwks_uri": f"{issuer}/oauth/jwks",
        "grant_types_supported": [JWT_BEARER, "client_credentials"],
        "response_types_supported": [],
        "token_endpoint_auth_methods_supported": ["none", "private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint_auth_methods_supported": by_secret,
        "revocation_endpoint_auth_methods_supported": [*by_secret, "private_key_jwt"],
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "scopes_supported": settings.scopes.split(),
    }


def access_token(authority: Authority, *, client_id: str, admitted: Admitted, now: int) -> str:
    """An access token in the profile of RFC 9068 section 2.2, with the enrolled board beside it."""
    claims: JsonObject = {
        "iss": authority.settings.issuer,
        "sub": client_id,
        "client_id": client_id,
        "aud": admitted.audience,
        "iat": now,
        "exp": now + authority.settings.token_lifetime,
        "jti": secrets.token_urlsafe(16),
        "scope": admitted.scope,
    }
    if admitted.board:
        claims["board"] = admitted.board
    key = authority.ring.signing(now)
    signing_input = f"{key.head}.{jws.b64url(compact_json(claims).encode())}"
    return f"{signing_input}.{jws.b64url(key.sign(signing_input.encode()))}"
