"""Public keys as JWKs (RFC 7517), and their thumbprints (RFC 7638), which are our key ids.

Only three kinds of key exist for us: P-256 (ES256), Ed25519 (EdDSA) and RSA of 2048 to 4096 bits (RS256, PS256).
A ``PublicKey`` that exists is one of those, on its curve, without private members, and not a key printed in an RFC.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePublicKey,
    EllipticCurvePublicNumbers,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from pi_agent.errors import MalformedTokenError
from pi_agent.jws import b64url, b64url_decode

PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})

# The members that a thumbprint covers, in the order of RFC 7638 section 3.2 (OKP: RFC 8037 section 2).
REQUIRED_MEMBERS = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}

ALGORITHMS_OF_TYPE = {"EC": ("ES256",), "OKP": ("EdDSA",), "RSA": ("RS256", "PS256")}

# Thumbprints of keys whose private half is printed in RFC 7515 A.2 and A.3, 7517 A.2 (two), 7520 3.4 and 8037 A.1:
# anybody can sign with them.
PUBLISHED_KEYS: frozenset[str] = frozenset(
    {
        "IsUn6_e04MaShXFIISMp4kG62LWzMIPy_MvSA5pJgX8",
        "oKIywvGUpTVTyxMQ3bwIIeQUudfr_CkLMjCE19ECD-U",
        "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s",
        "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
        "9jg46WB3rR_AHD-EBXdN7cBkH1WOu0tA3M9fm21mqTI",
        "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    }
)

MAX_EXPONENT_TEXT, MAX_MODULUS_TEXT = 6, 683  # a larger exponent makes one verification cost what a signature does

Key = EllipticCurvePublicKey | Ed25519PublicKey | RSAPublicKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that may verify: the ``cryptography`` object, its JWK (required members only), its thumbprint, its algorithms."""

    key: Key
    jwk: dict[str, str]
    kid: str
    algorithms: tuple[str, ...]


def public_key(key: Key) -> PublicKey:
    """The PublicKey of a ``cryptography`` public key. Raises MalformedTokenError for a kind or size we do not use."""
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        jwk = {"kty": "EC", "crv": "P-256", "x": b64url(point[1:33]), "y": b64url(point[33:])}
    elif isinstance(key, Ed25519PublicKey):
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public_bytes(Encoding.Raw, PublicFormat.Raw))}
    elif isinstance(key, RSAPublicKey) and 2048 <= key.key_size <= 4096:
        numbers = key.public_numbers()
        jwk = {"kty": "RSA", "n": b64url(_unsigned(numbers.n)), "e": b64url(_unsigned(numbers.e))}
    else:
        raise MalformedTokenError("the key is neither P-256, Ed25519 nor RSA of 2048 to 4096 bits")
    kid = thumbprint(jwk)
    if kid in PUBLISHED_KEYS:
        raise MalformedTokenError("the key is a published example; everybody has its private half")
    return PublicKey(key=key, jwk=jwk, kid=kid, algorithms=ALGORITHMS_OF_TYPE[jwk["kty"]])


def load_jwk(jwk: Mapping[str, Any]) -> PublicKey:
    """The PublicKey that a JWK describes (RFC 7518 section 6, RFC 8037 section 2).

    Raises MalformedTokenError for private members, another kind of key, a point off the curve, coordinates of the
    wrong length, or ``use``, ``key_ops`` and ``alg`` that are not for verifying signatures with this key.
    """
    if PRIVATE_MEMBERS & jwk.keys():
        raise MalformedTokenError("the JWK holds private members")
    members = _required(jwk)
    try:
        key = public_key(_key_object(members))
    except ValueError as error:
        raise MalformedTokenError("the JWK is not a key on its curve") from error
    if jwk.get("use", "sig") != "sig" or jwk.get("key_ops", ["verify"]) != ["verify"]:
        raise MalformedTokenError("the JWK is not for signatures")
    if jwk.get("alg", key.algorithms[0]) not in key.algorithms:
        raise MalformedTokenError("the JWK names an algorithm that is not its own")
    return key


def thumbprint(jwk: Mapping[str, Any]) -> str:
    """The RFC 7638 SHA-256 thumbprint: 43 characters of base64url. Raises MalformedTokenError for an unknown ``kty``."""
    canonical = json.dumps(_required(jwk), separators=(",", ":"), sort_keys=True)
    return b64url(hashlib.sha256(canonical.encode("ascii")).digest())


def _required(jwk: Mapping[str, Any]) -> dict[str, str]:
    names = REQUIRED_MEMBERS.get(jwk["kty"]) if isinstance(jwk.get("kty"), str) else None
    if names is None:
        raise MalformedTokenError("the JWK's kty is not EC, OKP or RSA")
    members = {name: jwk.get(name) for name in names}
    if not all(isinstance(value, str) and value.isascii() for value in members.values()):
        raise MalformedTokenError("the JWK lacks one of " + ", ".join(names))
    return members  # type: ignore[return-value]  # every value was just seen to be a str


def _key_object(members: Mapping[str, str]) -> Key:
    match members:
        case {"kty": "EC", "crv": "P-256", "x": x, "y": y}:
            return EllipticCurvePublicNumbers(_coordinate(x), _coordinate(y), SECP256R1()).public_key()
        case {"kty": "OKP", "crv": "Ed25519", "x": x}:
            return Ed25519PublicKey.from_public_bytes(b64url_decode(x))
        case {"kty": "RSA", "n": n, "e": e}:
            if len(e) > MAX_EXPONENT_TEXT or len(n) > MAX_MODULUS_TEXT:
                raise MalformedTokenError("the RSA key is larger than 4096 bits, or its exponent than 32")
            return RSAPublicNumbers(_integer(e), _integer(n)).public_key()
    raise MalformedTokenError("the JWK's crv is not P-256 or Ed25519")


def _coordinate(text: str) -> int:
    data = b64url_decode(text)
    if len(data) != 32:
        raise MalformedTokenError("a P-256 coordinate is 32 bytes long")  # RFC 7518 6.2.1.2
    return int.from_bytes(data, "big")


def _integer(text: str) -> int:
    return int.from_bytes(b64url_decode(text), "big")


def _unsigned(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
