"""Compact JWS (RFC 7515), in the one strict form that pi-agent reads and writes.

A general JOSE library accepts far more than a verifier should: duplicate members (last one wins), UTF-16, padded or
non-canonical base64url, numbers in text, any ``typ``. So a token is taken apart here, once, and what was verified is
what is used afterwards; PyJWT's algorithm objects do the signature and nothing else (ES256: our own). Rules:

* three non-empty base64url segments, canonical, at most ``MAX_LENGTH`` characters in all;
* header and payload are JSON objects in UTF-8 without BOM, no member twice, no NaN or Infinity, bounded depth and numbers;
* ``alg`` is one of ``ALGORITHMS``; ``crit``, ``b64: false`` and ``zip`` are refused; ``jwk``, ``jku``, ``x5*`` are never read;
* the key decides the algorithm, never the header: ``verify`` is given both and compares.
"""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jwt
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from pi_agent.errors import InvalidAssertionError, MalformedTokenError

ALGORITHMS = ("ES256", "EdDSA", "RS256", "PS256")
MAX_LENGTH = 16 * 1024
MAX_DEPTH = 16

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
# Base64url and back, for the C functions; what does not belong to it becomes what they refuse. A segment that does not
# end on a whole byte has unused bits, which are zero in the canonical form: these are the characters it may end with.
_TO_BASE64 = bytes.maketrans(b"-_+/=\n\r", b"+/!!!!!")
_FROM_BASE64 = bytes.maketrans(b"+/", b"-_")
_LAST = {2: "AQgw", 3: "AEIMQUYcgkosw048"}

JsonObject = dict[str, Any]


class Algorithm(Protocol):
    """The part of PyJWT's algorithm objects that is used here."""

    def sign(self, msg: bytes, key: Any) -> bytes: ...
    def verify(self, msg: bytes, key: Any, sig: bytes) -> bool: ...


class Es256:
    """ES256 (RFC 7518 section 3.4) as PyJWT does it, at less than half of what that adds to the signature itself."""

    scheme = ec.ECDSA(SHA256())

    def sign(self, msg: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
        r, s = decode_dss_signature(key.sign(msg, self.scheme))
        return (r << 256 | s).to_bytes(64, "big")

    def verify(self, msg: bytes, key: ec.EllipticCurvePublicKey, sig: bytes) -> bool:
        if len(sig) != 64:
            return False
        r, s = int.from_bytes(sig[:32], "big"), int.from_bytes(sig[32:], "big")
        try:
            key.verify(encode_dss_signature(r, s), msg, self.scheme)
        except InvalidSignature:
            return False
        return True


_JWS = jwt.PyJWS(algorithms=list(ALGORITHMS))
_REGISTRY: dict[str, Algorithm] = {name: _JWS.get_algorithm_by_name(name) for name in ALGORITHMS} | {"ES256": Es256()}


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A well-formed token that nobody has vouched for yet. Its members may only choose the key to verify it with."""

    header: JsonObject
    claims: JsonObject
    signing_input: bytes
    signature: bytes


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return binascii.b2a_base64(data, newline=False).translate(_FROM_BASE64).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """The bytes of canonical, unpadded base64url. Raises MalformedTokenError for anything else."""
    rest = len(text) % 4
    try:
        data = binascii.a2b_base64(
            text.encode("ascii").translate(_TO_BASE64) + b"=" * (-len(text) % 4), strict_mode=True
        )
    except ValueError as error:
        raise MalformedTokenError("a segment is not base64url") from error
    if rest and text[-1] not in _LAST[rest]:
        raise MalformedTokenError("a segment is not canonical base64url")
    return data


def load_json_object(data: bytes) -> JsonObject:
    """The JSON object in ``data``, read strictly (RFC 7519 section 4: member names must be unique).

    Raises MalformedTokenError for invalid UTF-8, a BOM, a repeated member, a number that is not finite or needs more
    than 64 bits, a lone surrogate, nesting deeper than ``MAX_DEPTH``, and anything that is not an object.
    """
    try:
        text = data.decode("utf-8")
        value = _STRICT.decode(text)
        if "\\u" in text:  # nothing else can write a lone surrogate, which would only fail later, in a database
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise MalformedTokenError("not strict JSON") from error
    brackets = text.count("{") + text.count("[")
    if not isinstance(value, dict) or not (brackets <= MAX_DEPTH or _is_shallow(value, MAX_DEPTH)):
        raise MalformedTokenError("not a JSON object of bounded depth")
    return value


def parse(compact: str) -> UnverifiedToken:
    """Take a compact JWS apart without believing it. Raises MalformedTokenError."""
    if len(compact) > MAX_LENGTH or not _COMPACT.fullmatch(compact):
        raise MalformedTokenError("not a compact signed token")
    signing_input, _, signature = compact.rpartition(".")
    header_segment, _, claims_segment = signing_input.partition(".")
    header = load_json_object(b64url_decode(header_segment))
    if header.get("alg") not in ALGORITHMS:
        raise MalformedTokenError("the alg is not one of " + ", ".join(ALGORITHMS))
    if "crit" in header or "zip" in header or header.get("b64", True) is not True:
        raise MalformedTokenError("crit, zip and b64 are not supported")  # RFC 7515 4.1.11: not understood, so refused
    return UnverifiedToken(
        header=header,
        claims=load_json_object(b64url_decode(claims_segment)),
        signing_input=signing_input.encode("ascii"),
        signature=b64url_decode(signature),
    )


def verify_signature(token: UnverifiedToken, *, key: Any, alg: str) -> None:
    """Raise InvalidAssertionError unless the private half of ``key`` (a ``cryptography`` public key) signed ``token`` with ``alg``.

    ``alg`` belongs to the key as it was enrolled; a header that names another one is a bad signature (RFC 8725 section 3.1).
    """
    if token.header["alg"] != alg or not _REGISTRY[alg].verify(token.signing_input, key, token.signature):
        raise InvalidAssertionError("the signature is not good", claim="signature")


def serialize(header: JsonObject, claims: JsonObject, *, sign: Callable[[bytes], bytes]) -> str:
    """The compact JWS of ``claims``; ``sign`` turns the signing input into the raw JWS signature (RFC 7515 section 7.1)."""
    signing_input = f"{b64url(_compact_json(header))}.{b64url(_compact_json(claims))}".encode("ascii")
    return f"{signing_input.decode('ascii')}.{b64url(sign(signing_input))}"


def signer(private_key: Any, alg: str) -> Callable[[bytes], bytes]:
    """``sign`` for a private key object of ``cryptography`` held in this process."""
    algorithm = _REGISTRY[alg]
    return lambda signing_input: algorithm.sign(signing_input, private_key)


def _compact_json(value: JsonObject) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("utf-8")


def _unique_members(pairs: list[tuple[str, Any]]) -> JsonObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member stands twice")
    return members


def _bounded_int(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError("a number needs more than 64 bits")
    return int(text)


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("a number is not finite")
    return value


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique_members, parse_int=_bounded_int, parse_float=_finite_float, parse_constant=_no_constant
)


def _is_shallow(value: Any, levels: int) -> bool:
    """Whether ``value`` nests at most ``levels`` objects and arrays; looks no deeper than that itself."""
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(child, levels - 1) for child in children)
