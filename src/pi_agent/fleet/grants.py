"""The token endpoint: an assertion in, an access token out (RFC 7521 section 4.1, RFC 7523 section 3).

    form -> unverified assertion -> key by (iss, kid) -> verified assertion -> used once -> device -> access token

Each arrow is a function below, cheapest first, and says no by raising OAuthError. What is kept:

* the key comes from the registry, and the algorithm with it; an unknown device costs and answers what a bad signature does;
* an assertion is spent by a unique insert, in the transaction that reads the device and notes the result, so parallel
  posts and revocations cannot slip between (requirements B-21, B-25); only a good signature can spend anything;
* a token leaves only after that transaction is on disk; a database that cannot take it means 503, never a token.
"""

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from django.db import DatabaseError, connection, transaction
from django.db.backends.utils import CursorWrapper

from pi_agent import assertion, jws
from pi_agent.assertion import BOARD_CLAIMS, VerifiedAssertion
from pi_agent.catalogue import lower
from pi_agent.errors import InvalidAssertionError, MalformedTokenError, OAuthError
from pi_agent.fleet import audit, tokens
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, json_answer, oauth_refusal, read_form, try_again
from pi_agent.jwk import PublicKey, load_jwk, public_key
from pi_agent.oauth import JWT_BEARER, Token, token_answer

ALGORITHMS = ("ES256", "EdDSA")

# Verified in place of a key that is not there, so that guessing device names by the clock gains nothing (B-28).
NOBODY = {
    "ES256": public_key(ec.generate_private_key(ec.SECP256R1()).public_key()),
    "EdDSA": public_key(ed25519.Ed25519PrivateKey.generate().public_key()),
}

WAITING = "this device waits for an operator's approval"
TURNED_AWAY = {
    "rejected": "this device was rejected by an operator",
    "quarantined": "this device is in quarantine; an operator can release it",
    "revoked": "this device was revoked",
}

KEEP_USED = assertion.MAX_LIFETIME + 600  # longer than an assertion can live, also when this clock is set back a little
PURGE_EVERY, PURGE_ROWS = 64, 256

FIND_KEY = """
    SELECT k.jwk, k.alg FROM fleet_devicekey k JOIN fleet_device d ON d.id = k.device_id
    WHERE d.client_id = %s AND k.kid = %s AND k.retired_at IS NULL"""
SPEND = "INSERT INTO fleet_usedassertion (issuer, jti, expires_at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
PURGE = f"""
    DELETE FROM fleet_usedassertion WHERE id IN
    (SELECT id FROM fleet_usedassertion WHERE expires_at < %s ORDER BY expires_at LIMIT {PURGE_ROWS})"""  # noqa: S608  # a constant
READ_DEVICE = f"SELECT status, scopes, {', '.join(BOARD_CLAIMS)} FROM fleet_device WHERE client_id = %s"  # noqa: S608  # constants
NOTE_ISSUED = """
    UPDATE fleet_device SET auth_at = %s, seen_at = %s, agent_version = %s, key_protection = %s
    WHERE client_id = %s AND status = 'approved'"""
NOTE_REFUSED = "UPDATE fleet_device SET seen_at = %s, refused_at = %s, refused_reason = %s WHERE client_id = %s"
NOTE_SEEN = "UPDATE fleet_device SET seen_at = %s WHERE client_id = %s"
NOTE_UNUSABLE = """
    UPDATE fleet_device SET refused_at = %s, refused_reason = %s
    WHERE client_id = %s AND (refused_at IS NULL OR refused_at < %s)"""

_grants = itertools.count()


def answer(request: Request, *, now: int, authority: Authority) -> Answer:
    """Answer one token request. ``now`` is the server's clock in seconds since 1970."""
    try:
        return json_answer(200, token_answer(_grant(request, now, authority)))
    except OAuthError as error:
        return oauth_refusal(error)
    except DatabaseError:
        connection.close()  # whatever it was, the next request begins with a fresh one
        return oauth_refusal(try_again("the registry cannot be written to at the moment"))


def _grant(request: Request, now: int, authority: Authority) -> Token:
    check_source(request, now, authority)
    form = _read_grant(request, authority)
    verified = _authenticate(form["assertion"], now, authority)
    if form.get("client_id", verified.issuer) != verified.issuer:
        raise OAuthError("invalid_grant", "client_id is not the device that signed the assertion")
    device = _admit(verified, form.get("scope", ""), request.source, now, authority)
    text = tokens.access_token(authority, client_id=verified.issuer, scope=device.scope, board=device.board, now=now)
    return Token(text, expires_in=authority.settings.token_lifetime, scope=device.scope)


def check_source(request: Request, now: int, authority: Authority) -> None:
    """Raise OAuthError (429) when a network address asks too often."""
    limits = authority.limits
    if limits and not request.source.startswith("uid ") and (wait := limits.requests.wait(request.source, now)):
        raise OAuthError("slow_down", "too many requests from this address", status=429, retry_after=wait)


def _read_grant(request: Request, authority: Authority) -> dict[str, str]:
    """The parameters of a JWT-bearer request (RFC 7523 section 2.1). Whoever authenticates as a client is told that we do not."""
    form = read_form(request)
    if request.authorization or form.keys() & {"client_secret", "client_assertion", "client_assertion_type"}:
        raise OAuthError("invalid_client", "the assertion speaks for the client; send no other credential", status=401)
    if "grant_type" not in form:
        raise OAuthError("invalid_request", "grant_type is missing")
    if form["grant_type"] != JWT_BEARER:
        raise OAuthError("unsupported_grant_type", f"only {JWT_BEARER} is served")
    if "assertion" not in form:
        raise OAuthError("invalid_request", "assertion is missing")
    if form.get("resource", authority.settings.token_audience) != authority.settings.token_audience:
        raise OAuthError("invalid_target", "this server gives no tokens for that resource")  # RFC 8707 section 2
    return form


def _authenticate(compact: str, now: int, authority: Authority) -> VerifiedAssertion:
    """Believe the assertion, or raise OAuthError ``invalid_grant``."""
    try:
        token = jws.parse(compact)
        client_id, kid = assertion.claimed_identity(token)
    except MalformedTokenError as error:
        raise OAuthError("invalid_grant", str(error)) from error
    if token.header["alg"] not in ALGORITHMS or kid is None:
        raise OAuthError("invalid_grant", f"the assertion must name a kid and an alg of {', '.join(ALGORITHMS)}")
    key = _find_key(client_id, kid, token.header["alg"])
    try:
        return assertion.verify(
            token,
            key,
            alg=token.header["alg"],
            kind=assertion.GRANT,
            audience=authority.settings.issuer,
            now=now,
        )
    except InvalidAssertionError as error:
        if error.claim not in ("typ", "signature"):  # signed by the device: worth a note for whoever looks for it
            _note_unusable(client_id, str(error), now)
        raise OAuthError("invalid_grant", str(error)) from error


def _find_key(client_id: str, kid: str, alg: str) -> PublicKey:
    """The key enrolled for the device under ``kid``, if it is one for ``alg``; else nobody's."""
    with connection.cursor() as cursor:
        cursor.execute(FIND_KEY, [client_id, kid])
        row = cursor.fetchone()
    return _load_key(row[0]) if row and row[1] == alg else NOBODY[alg]


@functools.lru_cache(maxsize=100_000)
def _load_key(jwk: str) -> PublicKey:
    return load_jwk(json.loads(jwk))


@dataclass(frozen=True, slots=True)
class Admitted:
    """What an admitted device gets: the scope, and the board it enrolled as (None when it named none)."""

    scope: str
    board: dict[str, Any] | None


def _admit(verified: VerifiedAssertion, asked: str, source: str, now: int, authority: Authority) -> Admitted:
    """Spend the assertion and let the device in, in one transaction. Refusals are noted, so they are committed first."""
    with transaction.atomic(), connection.cursor() as cursor:
        spend(cursor, verified, now)
        cursor.execute(READ_DEVICE, [verified.issuer])
        row = cursor.fetchone()
        outcome = _decide(verified, row, asked) if row else OAuthError("invalid_grant", TURNED_AWAY["revoked"])
        if isinstance(outcome, Admitted):
            _check_device(verified.issuer, now, authority)
            _note_issued(cursor, verified, now)
        else:
            _note_refused(cursor, verified, outcome, row=row, source=source, now=now)
    if isinstance(outcome, OAuthError):
        raise outcome
    return outcome


def spend(cursor: CursorWrapper, verified: VerifiedAssertion, now: int) -> None:
    """Use an assertion up, inside a transaction (RFC 7523 section 3 item 7). Raises OAuthError when it was used before."""
    if next(_grants) % PURGE_EVERY == 0:
        cursor.execute(PURGE, [now - KEEP_USED])
    cursor.execute(SPEND, [verified.issuer, verified.jti, verified.expires_at])
    if cursor.rowcount != 1:
        raise OAuthError("invalid_grant", "the assertion was used before; sign a new one for every request")


def _check_device(client_id: str, now: int, authority: Authority) -> None:
    """Raise OAuthError (429) when a device asks too often; inside the transaction, so that nothing is spent by it."""
    if authority.limits and (wait := authority.limits.device.wait(client_id, now)):
        raise OAuthError("slow_down", "too many requests from this device", status=429, retry_after=wait)


def _decide(verified: VerifiedAssertion, row: tuple[Any, ...], asked: str) -> Admitted | OAuthError:
    """What a device gets, from its row in the registry; or why it gets nothing."""
    status, allowed, *values = row
    board = dict(zip(BOARD_CLAIMS, values, strict=True))
    if status == "pending":
        return OAuthError("authorization_pending", WAITING)  # RFC 8628 section 3.5 has the code for it
    if status != "approved":
        return OAuthError("invalid_grant", TURNED_AWAY[status])
    if changed := board_changes(board, verified.board):
        return OAuthError("invalid_grant", f"the board is not the one that enrolled: {' and '.join(changed)} changed")
    wanted = asked.split() or allowed.split()
    if not set(wanted) <= set(allowed.split()):
        return OAuthError("invalid_scope", "this device may not have that scope")
    return Admitted(" ".join(dict.fromkeys(wanted)), board if any(values) else None)


def normal_board(claimed: dict[str, Any] | None) -> dict[str, Any]:
    """The ``board`` claim as the registry keeps it: hexadecimal in lower case, unknown (or empty) as None."""
    board: dict[str, Any] = {name: (claimed or {}).get(name) or None for name in BOARD_CLAIMS}
    return board | {name: lower(board[name]) for name in ("serial", "revision") if board[name]}


def board_changes(enrolled: dict[str, Any], claim: dict[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """Members of the board that differ, as (enrolled, claimed). What either side does not know is no difference."""
    claimed = normal_board(claim)
    pairs = {name: (enrolled[name], claimed[name]) for name in BOARD_CLAIMS}
    return {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}


def _note_issued(cursor: CursorWrapper, verified: VerifiedAssertion, now: int) -> None:
    agent = verified.agent
    cursor.execute(NOTE_ISSUED, [now, now, agent["version"] or None, agent["key"], verified.issuer])
    if cursor.rowcount != 1:  # where writers run side by side, a revocation may have come in between
        raise try_again("the device was changed at this moment")


def _note_refused(
    cursor: CursorWrapper, verified: VerifiedAssertion, refusal: OAuthError, *, row: Any, source: str, now: int
) -> None:
    if refusal.error == "authorization_pending":
        cursor.execute(NOTE_SEEN, [now, verified.issuer])
        return
    cursor.execute(NOTE_REFUSED, [now, now, refusal.description, verified.issuer])
    enrolled = dict(zip(BOARD_CLAIMS, row[2:], strict=True)) if row else {}
    if row and row[0] == "approved" and (changed := board_changes(enrolled, verified.board)):
        event = audit.Event("device.board-changed", verified.issuer, "refused", {"board": changed, "jti": verified.jti})
        audit.record([event], actor=audit.Actor(verified.issuer, source), now=now)


def _note_unusable(client_id: str, reason: str, now: int) -> None:
    """At most once a minute: an old assertion can be sent again by anybody, and must not keep the disk busy."""
    with connection.cursor() as cursor:
        cursor.execute(NOTE_UNUSABLE, [now, reason, client_id, now - 60])
