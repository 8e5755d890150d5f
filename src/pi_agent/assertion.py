"""The signed statements a device makes: written and read back in one place (RFC 7521, RFC 7523, RFC 7519).

Four kinds share one verifier and differ in their ``typ`` (RFC 8725 section 3.11), so that none can be used as another:

* the grant assertion, which buys an access token (RFC 7523 section 2.1);
* the client assertion, which authenticates a client (RFC 7523 section 2.2, RFC 10070);
* the enrollment proof, in which a new key speaks for itself over a nonce of the server;
* the key rotation, which the old key and the new one both sign over such a nonce, and in which ``jkt`` names the new one.

``verify`` is the second half of reading; the first is ``jws.parse`` and finding the key by ``(iss, kid)``. Time is an
argument, in whole seconds since 1970 (NumericDate). ``now`` on the device is the corrected clock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pi_agent import jws
from pi_agent.errors import InvalidAssertionError, MalformedTokenError
from pi_agent.jwk import PublicKey
from pi_agent.jws import JsonObject, UnverifiedToken
from pi_agent.protection import PROTECTIONS

LIFETIME = 60
MAX_LIFETIME = 300
MAX_FLAGS = 16
SKEW = 60

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/-]{0,127}", re.ASCII)
_JTI = re.compile(r"[A-Za-z0-9._~-]{16,128}", re.ASCII)
_BOOT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_LABEL = re.compile(r"[ -~]{0,64}", re.ASCII)

BOARD_CLAIMS: dict[str, type] = {
    "serial": str,
    "revision": str,
    "model": str,
    "memory_mib": int,
    "soc": str,
    "pcb_revision": str,
}
KEY_PROTECTIONS = tuple(PROTECTIONS)


@dataclass(frozen=True, slots=True)
class Kind:
    """What a statement is for. ``types`` are the ``typ`` values it may carry when read; the first is the one we write."""

    name: str
    types: tuple[str, ...]
    max_lifetime: int = MAX_LIFETIME


GRANT = Kind("assertion", ("pi-device-grant+jwt", "JWT"))
CLIENT = Kind("client assertion", ("client-authentication+jwt", "JWT"))
ENROLLMENT = Kind("enrollment proof", ("pi-enrollment+jwt",))
ROTATION = Kind("key rotation", ("pi-key-rotation+jwt",))


@dataclass(frozen=True, slots=True)
class VerifiedAssertion:
    """A statement that was signed by ``kid``, for us, now. Whether it was used before is for the registry to say.

    ``board`` is the ``board`` claim (``board.board_claims``) or None from a foreign client. ``agent`` always has
    ``version``, ``key``, ``simulated`` and ``flags``: the words of the board's state bits, None when it did not say.
    ``claims`` holds every member, for the kinds that carry more.
    """

    issuer: str
    kid: str
    jti: str
    issued_at: int
    expires_at: int
    board: JsonObject | None
    boot: str | None
    agent: JsonObject
    claims: JsonObject

    @property
    def board_state(self) -> tuple[bool | None, bool | None]:
        """(overvoltage is allowed, a warranty bit is set), in the words of ``revision.FLAGS``; None where it was not said."""
        flags = self.agent["flags"]
        if flags is None:
            return None, None
        return "overvoltage-disallowed" not in flags, bool({"warranty", "warranty-old"} & set(flags))


def claims(*, issuer: str, audience: str, now: int, jti: str, lifetime: int = LIFETIME, **more: object) -> JsonObject:
    """The claims of a statement by ``issuer`` (also its ``sub``); ``more`` adds ``board``, ``boot``, ``agent``, ``nonce``.

    ``jti`` must be new for every HTTP attempt (RFC 7519 section 4.1.7). None values are left out.
    """
    if not 0 < lifetime <= MAX_LIFETIME:
        raise ValueError(f"an assertion lives 1 to {MAX_LIFETIME} seconds, not {lifetime}")
    registered = {"iss": issuer, "sub": issuer, "aud": audience, "iat": now, "exp": now + lifetime, "jti": jti}
    return registered | {name: value for name, value in more.items() if value is not None}


def sign(
    members: JsonObject, *, kind: Kind, alg: str, kid: str, sign: Callable[[bytes], bytes], typ: str | None = None
) -> str:
    """The compact JWS of ``members``. ``typ`` replaces our own type where a foreign server wants ``JWT``."""
    return jws.serialize({"alg": alg, "kid": kid, "typ": typ or kind.types[0]}, members, sign=sign)


def claimed_identity(token: UnverifiedToken) -> tuple[str, str | None]:
    """``(iss, kid)`` as the token claims them: good for looking up a key, and for nothing else.

    Raises MalformedTokenError when they are not identifiers. ``kid`` is None when the header names none.
    """
    issuer, kid = token.claims.get("iss"), token.header.get("kid")
    if not _matches(_IDENTIFIER, issuer) or not (kid is None or _matches(_LABEL, kid)):
        raise MalformedTokenError("iss or kid is not an identifier")
    return issuer, kid  # type: ignore[return-value]  # _matches saw a str


def verify(
    token: UnverifiedToken, key: PublicKey, *, alg: str, kind: Kind, audience: str, now: int
) -> VerifiedAssertion:
    """Believe ``token``, or raise InvalidAssertionError naming the claim that stands in the way.

    ``key`` and ``alg`` are those enrolled for the ``(iss, kid)`` that ``claimed_identity`` found. The checks are those
    of RFC 7523 section 3, taken strictly: ``aud`` is ``audience`` alone (RFC 10070), ``sub`` is ``iss``, ``jti`` and
    ``iat`` are required, numbers are numbers, and the life is at most ``kind.max_lifetime``, with SKEW either way.
    """
    typ = token.header.get("typ", "JWT")
    if typ not in kind.types:
        raise InvalidAssertionError(f"typ is not that of an {kind.name}", claim="typ")
    jws.verify_signature(token, key=key.key, alg=alg)
    members = token.claims
    if members.get("aud") not in (audience, [audience]):
        raise InvalidAssertionError(f"aud must be {audience} alone", claim="aud")
    if not _matches(_IDENTIFIER, members.get("iss")) or members.get("sub") != members["iss"]:
        raise InvalidAssertionError("sub must equal iss", claim="sub")
    if not _matches(_JTI, members.get("jti")):
        raise InvalidAssertionError("jti must be 16 to 128 characters of A-Z a-z 0-9 . _ ~ -", claim="jti")
    issued_at, expires_at = _check_times(members, kind, now)
    return VerifiedAssertion(
        issuer=members["iss"],
        kid=key.kid,
        jti=members["jti"],
        issued_at=issued_at,
        expires_at=expires_at,
        board=_board(members.get("board")),
        boot=_boot(members.get("boot")),
        agent=_agent(members.get("agent", {})),
        claims=members,
    )


def _check_times(members: JsonObject, kind: Kind, now: int) -> tuple[int, int]:
    issued_at, expires_at = _seconds(members, "iat"), _seconds(members, "exp")
    not_before = _seconds(members, "nbf") if "nbf" in members else issued_at
    if not 0 < expires_at - issued_at <= kind.max_lifetime:
        raise InvalidAssertionError(f"exp must be 1 to {kind.max_lifetime} s after iat", claim="exp")
    if expires_at <= now - SKEW:
        raise InvalidAssertionError(f"expired {now - expires_at} s ago by this server's clock", claim="exp")
    if max(issued_at, not_before) >= now + SKEW:
        ahead = max(issued_at, not_before) - now
        raise InvalidAssertionError(f"issued {ahead} s in the future by this server's clock", claim="iat")
    return issued_at, expires_at


def _seconds(members: JsonObject, name: str) -> int:
    value = members.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidAssertionError(f"{name} must be a number", claim=name)
    return int(value)


def _board(value: Any) -> JsonObject | None:
    """The ``board`` claim as ``board.board_claims`` writes it: known members only, each text printable and short."""
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() - BOARD_CLAIMS.keys():
        raise InvalidAssertionError("board must be an object of " + ", ".join(BOARD_CLAIMS), claim="board")
    board = {name: value.get(name) for name in BOARD_CLAIMS}
    for name, member in board.items():
        if member is not None and not _is_board_value(member, BOARD_CLAIMS[name]):
            raise InvalidAssertionError(f"board.{name} is not what a board has", claim="board")
    return board


def _is_board_value(value: Any, wanted: type) -> bool:
    if wanted is int:
        return type(value) is int and 0 < value < 2**31
    return _matches(_LABEL, value)


def _boot(value: Any) -> str | None:
    if value is not None and not _matches(_BOOT, value):
        raise InvalidAssertionError("boot must be 43 characters of base64url", claim="boot")
    return value  # type: ignore[no-any-return]  # None or the str just matched


def _agent(value: Any) -> JsonObject:
    if not isinstance(value, dict):
        raise InvalidAssertionError("agent must be an object", claim="agent")
    version, key, simulated = value.get("version", ""), value.get("key", "file"), value.get("simulated", False)
    flags = value.get("flags", [])
    if not isinstance(flags, list) or len(flags) > MAX_FLAGS or not all(_matches(_LABEL, flag) for flag in flags):
        raise InvalidAssertionError("agent.flags must be a short list of words", claim="agent")
    if not _matches(_LABEL, version) or key not in KEY_PROTECTIONS or not isinstance(simulated, bool):
        raise InvalidAssertionError("agent must hold version, key and simulated", claim="agent")
    return {"version": version, "key": key, "simulated": simulated, "flags": flags if "flags" in value else None}


def _matches(pattern: re.Pattern[str], value: Any) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None
