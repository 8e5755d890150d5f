"""Compact JWS (RFC 7515), in the one strict form that pi-agent reads and writes.

A general JOSE library accepts far more than a verifier should: duplicate members (last one wins), UTF-16, padded or
non-canonical base64url, numbers in text, any ``typ``. So a token is taken apart here, once, and what was verified is
what is used afterwards; PyJWT's algorithm objects do the signature and nothing else. Rules:

* three non-empty base64url segments, canonical, at most ``MAX_LENGTH`` characters in all;
* header and payload are JSON objects in UTF-8 without BOM, no member twice, no NaN or Infinity, bounded depth and numbers;
* ``alg`` is one of ``ALGORITHMS``; ``crit``, ``b64: false`` and ``zip`` are refused; ``jwk``, ``jku``, ``x5*`` are never read;
* the key decides the algorithm, never the header: ``verify`` is given both and compares.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.algorithms import Algorithm

from pi_agent.errors import InvalidAssertionError, MalformedTokenError

ALGORITHMS = ("ES256", "EdDSA", "RS256", "PS256")
MAX_LENGTH = 16 * 1024
MAX_DEPTH = 16

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_JWS = jwt.PyJWS(algorithms=list(ALGORITHMS))
_REGISTRY: dict[str, Algorithm] = {name: _JWS.get_algorithm_by_name(name) for name in ALGORITHMS}

JsonObject = dict[str, Any]


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A well-formed token that nobody has vouched for yet. Its members may only choose the key to verify it with."""

    header: JsonObject
    claims: JsonObject
    signing_input: bytes
    signature: bytes


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def b64url_decode(text: str) -> bytes:
    """The bytes of canonical, unpadded base64url. Raises MalformedTokenError for anything else."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedTokenError("a segment is not base64url") from error
    if b64url(data) != text:
        raise MalformedTokenError("a segment is not canonical base64url")
    return data


def load_json_object(data: bytes) -> JsonObject:
    """The JSON object in ``data``, read strictly (RFC 7519 section 4: member names must be unique).

    Raises MalformedTokenError for invalid UTF-8, a BOM, a repeated member, a number that is not finite or needs more
    than 64 bits, a lone surrogate, nesting deeper than ``MAX_DEPTH``, and anything that is not an object.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique_members,
            parse_int=_bounded_int,
            parse_float=_finite_float,
            parse_constant=_no_constant,
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # a lone surrogate would only fail later, in a database
    except (ValueError, RecursionError) as error:
        raise MalformedTokenError("not strict JSON") from error
    if not isinstance(value, dict) or not _is_shallow(value, MAX_DEPTH):
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


def _is_shallow(value: Any, levels: int) -> bool:
    """Whether ``value`` nests at most ``levels`` objects and arrays; looks no deeper than that itself."""
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_shallow(child, levels - 1) for child in children)
