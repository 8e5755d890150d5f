"""Who is asking: a device by its signed assertion, a resource server by its secret (RFC 7521 section 4.2, RFC 6749 section 2.3).

For a device the key comes from the registry by (iss, kid), and the algorithm with it. Only keys are remembered here,
and a kid is the thumbprint of its key, so what is remembered never becomes untrue; whether the key still speaks for
the device is read again in the transaction that spends the assertion. A device that does not exist costs and answers
what a bad signature does (requirement B-28).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_plus

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from pi_agent import assertion, jws
from pi_agent.assertion import Kind, VerifiedAssertion
from pi_agent.errors import InvalidAssertionError, MalformedTokenError, OAuthError
from pi_agent.fleet import ledger
from pi_agent.fleet.ledger import KeyRow
from pi_agent.fleet.models import ResourceServer, secret_hash
from pi_agent.fleet.web import Request
from pi_agent.jwk import PublicKey, load_jwk, public_key
from pi_agent.jws import UnverifiedToken

# Verified in place of a key that is not there. Nobody has the private halves; the modulus is not even a product of two.
_NOBODY_RSA = int.from_bytes(hashlib.shake_256(b"nobody").digest(256), "big") | 1 << 2047 | 1
NOBODY = {
    "ES256": public_key(ec.generate_private_key(ec.SECP256R1()).public_key()),
    "EdDSA": public_key(ed25519.Ed25519PrivateKey.generate().public_key()),
    "RS256": public_key(rsa.RSAPublicNumbers(65537, _NOBODY_RSA).public_key()),
}
NOBODY["PS256"] = NOBODY["RS256"]

MAX_REMEMBERED = 12_000
_NOT_KEPT: dict[str, str] = {}  # one for all that are remembered; nobody asks for the JWK of a key that verifies

WITHOUT_KID = ("RS256", "PS256")
BAD_SIGNATURE = "the signature is not good"  # as ``jws`` says it


class KeyName(NamedTuple):
    """What an assertion says of its key, and what it is looked up by."""

    client_id: str
    kid: str | None
    alg: str


class Statement(NamedTuple):
    """An assertion that nobody has believed yet."""

    token: UnverifiedToken
    name: KeyName


_remembered: dict[KeyName, PublicKey] = {}


class UnusableAssertionError(OAuthError):
    """Signed by the device, and still not to be believed: worth a note for whoever looks for the device."""

    def __init__(self, client_id: str, description: str) -> None:
        super().__init__("invalid_grant", description)
        self.client_id = client_id


def take_apart(compact: str) -> Statement:
    """An assertion as it came, with the name of its key. Raises OAuthError ``invalid_grant``."""
    try:
        token = jws.parse(compact)
        client_id, kid = assertion.claimed_identity(token)
    except MalformedTokenError as error:
        raise OAuthError("invalid_grant", str(error)) from error
    alg = token.header["alg"]
    if kid is None and alg not in WITHOUT_KID:
        raise OAuthError("invalid_grant", "the assertion must name its key by kid")
    return Statement(token, KeyName(client_id, kid, alg))


def find_keys(names: Iterable[KeyName]) -> dict[KeyName, PublicKey]:
    """The key enrolled under each name, else nobody's. Those that are not remembered are looked up together."""
    found = {name: _remembered.get(name) for name in names}
    unknown = [name for name, key in found.items() if key is None]
    rows = ledger.look_up_keys({name.client_id for name in unknown}) if unknown else []
    return {name: key or _choose(name, rows) for name, key in found.items()}


def believe(statement: Statement, key: PublicKey, *, kind: Kind, audience: str, now: int) -> VerifiedAssertion:
    """Believe an assertion of a device, or raise OAuthError ``invalid_grant``. It is not spent by this."""
    token, name = statement
    try:
        return assertion.verify(token, key, alg=name.alg, kind=kind, audience=audience, now=now)
    except InvalidAssertionError as error:
        if error.claim in ("typ", "signature"):
            raise OAuthError("invalid_grant", str(error)) from error
        if not ledger.look_up_keys([name.client_id]):  # forgotten since its key was remembered here: a stranger now
            raise OAuthError("invalid_grant", BAD_SIGNATURE) from error
        raise UnusableAssertionError(name.client_id, str(error)) from error


def authenticate(compact: str, *, kind: Kind, audience: str, now: int) -> VerifiedAssertion:
    """``take_apart``, ``find_keys`` and ``believe`` for one assertion."""
    statement = take_apart(compact)
    key = find_keys([statement.name])[statement.name]
    return believe(statement, key, kind=kind, audience=audience, now=now)


def _choose(name: KeyName, rows: Sequence[KeyRow]) -> PublicKey:
    """The key that ``name`` means, of those that were found, else nobody's.

    A retired one can be named too: who still signs with it is worth knowing (``clones``). RSA may come without a kid,
    since oauthlib's ServiceApplicationClient cannot send one: then it is the only RSA key in use.
    """
    client_id, kid, alg = name
    fitting = [
        row
        for row in rows
        if row.client_id == client_id and row.alg == alg and (row.retired_at is None if kid is None else row.kid == kid)
    ]
    if len(fitting) != 1:
        return NOBODY[alg]
    if len(_remembered) >= MAX_REMEMBERED:
        _remembered.clear()
    key = _load(fitting[0].jwk, fitting[0].kid)
    kept = KeyName(client_id, key.kid, sys.intern(alg))  # every assertion brings a text of its own
    return _remembered.setdefault(kept, key)


def _load(jwk: str, kid: str) -> PublicKey:
    """A key as it lies in the registry. What ``load_jwk`` asks of a key was asked when it was enrolled, but for its point."""
    members = json.loads(jwk)
    if members["kty"] != "EC":
        return load_jwk(members)
    point = b"\4" + b"".join(base64.urlsafe_b64decode(members[name] + "=") for name in "xy")
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    return PublicKey(key, _NOT_KEPT, kid, ("ES256",))


def named_by_basic(request: Request) -> str | None:
    """The client_id of a Basic header that names a client without a password, as OAuth libraries send it by themselves.

    Raises OAuthError (401) for any other credential.
    """
    if not request.authorization:
        return None
    name, password = read_basic(request.authorization)
    if password:
        raise OAuthError("invalid_client", "the assertion speaks for the client; send no password", status=401)
    return name


def read_basic(authorization: str) -> tuple[str, str]:
    """The client_id and the secret of a Basic header (RFC 6749 section 2.3.1). Raises OAuthError (401)."""
    scheme, _, encoded = authorization.partition(" ")
    try:
        if scheme.lower() != "basic":
            raise ValueError("not Basic")
        name, colon, secret = base64.b64decode(encoded.strip(), validate=True).decode("ascii").partition(":")
        if not colon:
            raise ValueError("no colon")
    except (binascii.Error, ValueError) as error:
        raise unknown_client() from error
    return unquote_plus(name), unquote_plus(secret)


@dataclass(frozen=True, slots=True)
class Asker:
    """A resource server that has shown its secret: the tokens it may ask about are those for ``audience``."""

    client_id: str
    audience: str


def authenticate_resource_server(request: Request, form: dict[str, str]) -> Asker:
    """Who asks, by ``client_secret_basic`` or ``client_secret_post``, never both. Raises OAuthError (401)."""
    posted = "client_secret" in form
    if posted == bool(request.authorization):
        raise unknown_client()
    name, secret = (form.get("client_id", ""), form["client_secret"]) if posted else read_basic(request.authorization)
    row = ResourceServer.objects.filter(client_id=name).first() if "\0" not in name else None
    if not hmac.compare_digest(secret_hash(secret), row.secret_hash if row else "") or row is None:
        raise unknown_client()
    return Asker(row.client_id, row.audience)


def unknown_client() -> OAuthError:
    return OAuthError("invalid_client", "the client is not known, or its secret is wrong", status=401)
