"""The token endpoint: an assertion in, an access token out (RFC 7521, RFC 7523, RFC 6749 section 4.4).

    form -> unverified assertion -> key by (iss, kid) -> Claim | used once -> device -> access token

What stands before the bar is ``read``, which reads, and checks signatures: cheapest first, refusals by OAuthError.
What stands behind it is ``settle``, one transaction for all claims that wait, as the end of a transaction waits for the
disk. ``answer`` is both for one request. What is kept:

* an assertion is spent by a unique insert, in the transaction that reads the device and notes the result, so parallel
  posts and revocations cannot slip between (requirements B-21, B-25); only a good signature can spend anything, and
  what is spent here is spent at every other endpoint too (B-31);
* a token leaves only after that transaction is on disk; a database that cannot take it means 503, never a token.

Both grants take the same statement of the same device: ``jwt-bearer`` as its ``assertion``, ``client_credentials`` as
its ``client_assertion``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from django.db import DatabaseError, OperationalError

from pi_agent import assertion
from pi_agent.assertion import VerifiedAssertion
from pi_agent.errors import OAuthError
from pi_agent.fleet import clients, clones, database, ledger, tokens
from pi_agent.fleet.clients import Statement, UnusableAssertionError
from pi_agent.fleet.devicekeys import first_use, is_due, speaks
from pi_agent.fleet.ledger import DeviceRow, Issued, Ledger
from pi_agent.fleet.limits import wait_of_source
from pi_agent.fleet.policy import Admitted, Rules, board_changes, decide
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, json_answer, oauth_refusal, read_form, try_again
from pi_agent.jwk import PublicKey
from pi_agent.oauth import CLIENT_ASSERTION_TYPE, JWT_BEARER, Token, token_answer

CLIENT_CREDENTIALS = "client_credentials"
GRANTS = (JWT_BEARER, CLIENT_CREDENTIALS)
NOT_WRITABLE = "the registry cannot be written to at the moment"
USED = "the assertion was used before; sign a new one for every request"
PACE = (0.45, 0.55)  # of a token's life: when to come back for the next one


@dataclass(frozen=True, slots=True)
class Claim:
    """A request with a good assertion: what is left is to spend it, and to see what its device may have."""

    verified: VerifiedAssertion
    grant: str
    scope: str
    resource: str
    source: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """A request whose assertion was signed by the device ``client_id``, and must not be believed: worth a note."""

    client_id: str
    grant: str
    error: OAuthError


@dataclass(frozen=True, slots=True)
class Unverified:
    """A request whose assertion is still to be believed."""

    statement: Statement
    grant: str
    form: dict[str, str]
    named: str | None
    source: str


def answer(request: Request, *, now: int, authority: Authority) -> Answer:
    """Answer one token request. ``now`` is the server's clock in seconds since 1970."""
    try:
        check_source(request, now, authority)
    except OAuthError as error:
        return oauth_refusal(error)
    claim = read([request], now=now, authority=authority)[0]
    return claim if isinstance(claim, Answer) else settle([claim], now=now, authority=authority)[0]


# Before the bar.


def read(requests: Sequence[Request], *, now: int, authority: Authority) -> list[Claim | Unusable | Answer]:
    """The claim of each request, or the answer that refuses it. Writes nothing."""
    opened = [_open(request) for request in requests]
    try:
        keys = clients.find_keys(each.statement.name for each in opened if isinstance(each, Unverified))
        return [
            _claim(each, keys[each.statement.name], now, authority) if isinstance(each, Unverified) else each
            for each in opened
        ]
    except DatabaseError as error:
        database.give_up(error)
        away = oauth_refusal(try_again("the registry cannot be read at the moment"))
        return [each if isinstance(each, Answer) else away for each in opened]


def check_source(request: Request, now: int, authority: Authority) -> None:
    """Raise OAuthError (429) when a network address asks too often."""
    limits = authority.limits
    if limits and (wait := wait_of_source(limits.requests, request.source, now)):
        raise OAuthError("slow_down", "too many requests from this address", status=429, retry_after=wait)


def _open(request: Request) -> Unverified | Answer:
    try:
        form = read_form(request)
        grant = form.get("grant_type")
        if grant is None:
            raise OAuthError("invalid_request", "grant_type is missing")
        if grant not in GRANTS:
            raise OAuthError("unsupported_grant_type", f"only {' and '.join(GRANTS)} are served")
        named = clients.named_by_basic(request)
        compact = read_assertion(form) if grant == JWT_BEARER else read_client_assertion(form)
    except OAuthError as error:
        return oauth_refusal(error)
    try:
        return Unverified(clients.take_apart(compact), grant, form, named, request.source)
    except OAuthError as error:
        return refused(grant, error)


def _claim(each: Unverified, key: PublicKey, now: int, authority: Authority) -> Claim | Unusable | Answer:
    kind = assertion.GRANT if each.grant == JWT_BEARER else assertion.CLIENT
    try:
        verified = clients.believe(each.statement, key, kind=kind, audience=authority.settings.issuer, now=now)
    except UnusableAssertionError as error:
        return Unusable(error.client_id, each.grant, error)
    except OAuthError as error:
        return refused(each.grant, error)
    if each.named not in (None, verified.issuer):
        return oauth_refusal(clients.unknown_client())
    form = each.form
    if form.get("client_id", verified.issuer) != verified.issuer:
        return refused(each.grant, OAuthError("invalid_grant", "client_id is not the device that signed the assertion"))
    return Claim(verified, each.grant, form.get("scope", ""), form.get("resource", ""), each.source)


def refused(grant: str, error: OAuthError) -> Answer:
    """The answer that says no. A client that is not believed is an ``invalid_client`` (RFC 6749 section 5.2)."""
    if grant == CLIENT_CREDENTIALS and error.error == "invalid_grant":
        error = OAuthError("invalid_client", error.description, status=401)
    return oauth_refusal(error)


def read_assertion(form: dict[str, str]) -> str:
    """The ``assertion`` of a JWT-bearer request (RFC 7523 section 2.1). Whoever sends another credential is told that we take none."""
    if form.keys() & {"client_secret", "client_assertion", "client_assertion_type"}:
        raise OAuthError("invalid_client", "the assertion speaks for the client; send no other credential", status=401)
    if "assertion" not in form:
        raise OAuthError("invalid_request", "assertion is missing")
    return form["assertion"]


def read_client_assertion(form: dict[str, str]) -> str:
    """The ``client_assertion`` of a client that authenticates with its key (RFC 7523 section 2.2)."""
    if "client_secret" in form:
        raise OAuthError("invalid_client", "the client authenticates with its key; send no secret", status=401)
    if "assertion" in form or form.get("client_assertion_type", CLIENT_ASSERTION_TYPE) != CLIENT_ASSERTION_TYPE:
        raise OAuthError("invalid_request", f"client_assertion_type must be {CLIENT_ASSERTION_TYPE}")
    if "client_assertion" not in form or "client_assertion_type" not in form:
        raise OAuthError("invalid_client", "client_assertion or its client_assertion_type is missing", status=401)
    return form["client_assertion"]


# Behind the bar.


def settle(waiting: Sequence[Claim | Unusable], *, now: int, authority: Authority) -> list[Answer]:
    """Answer what waits, all in one transaction, in its order."""
    try:
        authority.watch.check(now)
        outcomes = _admit_all(waiting, now, authority)
    except OAuthError as error:
        return [oauth_refusal(error) for _ in waiting]
    except DatabaseError as error:
        database.give_up(error)
        if len(waiting) > 1 and not isinstance(error, OperationalError):  # one of them is the cause: each for itself
            return [settle([each], now=now, authority=authority)[0] for each in waiting]
        return [oauth_refusal(try_again(NOT_WRITABLE)) for _ in waiting]
    return [_answer(each, outcome, now, authority) for each, outcome in zip(waiting, outcomes, strict=True)]


def _answer(each: Claim | Unusable, outcome: Admitted | OAuthError, now: int, authority: Authority) -> Answer:
    if isinstance(outcome, OAuthError):
        refusal = refused(each.grant, outcome)
        return replace(refusal, outcome="replayed") if outcome.description == USED else refusal
    assert isinstance(each, Claim)
    text = tokens.access_token(authority, client_id=each.verified.issuer, admitted=outcome, now=now)
    life = authority.settings.token_lifetime
    token = Token(text, expires_in=life, scope=outcome.scope, key_rotation=outcome.key_rotation)
    pace = int(life * random.uniform(*PACE))  # noqa: S311  # a spread, not a secret
    return json_answer(200, token_answer(token) | {"refresh_in": pace})


def _admit_all(waiting: Sequence[Claim | Unusable], now: int, authority: Authority) -> list[Admitted | OAuthError]:
    """What becomes of each. A refusal is noted like everything else, so it is returned and not raised."""
    claims = [each for each in waiting if isinstance(each, Claim)]
    verified = [claim.verified for claim in claims]
    with ledger.entry() as book:
        fresh, devices = book.spend(verified), book.read(verified)
        rules = Rules(authority.settings.token_audience, book.rules(), now)
        decided = [
            _decide(claim, device, rules, authority) if first else _used(claim, device, book)
            for claim, device, first in zip(claims, devices, fresh, strict=True)
        ]
        for each in waiting:
            if isinstance(each, Unusable):
                book.note_unusable(each.client_id, each.error.description, now)
        _note_all(book, claims, decided, now, authority)
        _report_changes(claims, devices, decided, now, authority)
    outcomes = iter(decided)
    return [each.error if isinstance(each, Unusable) else next(outcomes) for each in waiting]


def _used(claim: Claim, device: DeviceRow | None, book: Ledger) -> OAuthError:
    """The refusal of an assertion that was used before; of a device that was forgotten since, as any stranger's."""
    known = device is not None or book.read_keys([claim.verified.issuer])
    return OAuthError("invalid_grant", USED if known else clients.BAD_SIGNATURE)


def _decide(claim: Claim, device: DeviceRow | None, rules: Rules, authority: Authority) -> Admitted | OAuthError:
    verified, now = claim.verified, rules.now
    if device is None or not speaks(device.key.pending_until, now):  # the key or the device is out, or not yet in
        retired = clones.retired_key(verified.issuer, verified.kid, source=claim.source, now=now)
        return retired or OAuthError("invalid_grant", clients.BAD_SIGNATURE)
    if authority.limits and (wait := authority.limits.device.wait(verified.issuer, now)):
        return OAuthError("slow_down", "too many requests from this device", status=429, retry_after=wait)
    outcome = decide(verified, device, rules, scope=claim.scope, resource=claim.resource)
    return _look_at(claim, device, outcome, now, authority) if isinstance(outcome, Admitted) else outcome


def _look_at(
    claim: Claim, device: DeviceRow, admitted: Admitted, now: int, authority: Authority
) -> Admitted | OAuthError:
    """The last look at a device that gets a token: is there only one of it, and is its key the one to keep?"""
    verified, settings = claim.verified, authority.settings
    held = clones.watch(verified, device.past, source=claim.source, now=now, policy=settings.clone_policy)
    if held:
        return held
    if device.key.pending_until is not None:
        used = first_use(verified.issuer, verified.kid, source=claim.source, now=now)
        return admitted if used else OAuthError("invalid_grant", "this key was retired before its first use")
    due = is_due(device.key, protection=verified.agent["key"], max_days=settings.device_key_days, now=now)
    return replace(admitted, key_rotation=True) if due else admitted


def _note_all(
    book: Ledger, claims: Sequence[Claim], decided: Sequence[Admitted | OAuthError], now: int, authority: Authority
) -> None:
    """Write each outcome down at its device. One that was slowed down keeps its assertion."""
    until = now + authority.settings.token_lifetime
    pairs = list(zip(claims, decided, strict=True))
    book.note_issued([Issued(claim.verified, now, until) for claim, outcome in pairs if isinstance(outcome, Admitted)])
    for claim, outcome in pairs:
        if isinstance(outcome, Admitted) or outcome.description == USED:
            continue
        if outcome.error == "slow_down":
            book.unspend(claim.verified)
        elif outcome.error == "authorization_pending":
            book.note_seen(claim.verified.issuer, now)
        else:
            book.note_refused(claim.verified.issuer, outcome.description, now)


def _report_changes(
    claims: Sequence[Claim],
    devices: Sequence[DeviceRow | None],
    decided: Sequence[Admitted | OAuthError],
    now: int,
    authority: Authority,
) -> None:
    """A key on another board is a copied card until somebody says otherwise: an audit line (requirements B-19, F-09)."""
    for claim, device, outcome in zip(claims, devices, decided, strict=True):
        if (
            isinstance(outcome, Admitted)
            or device is None
            or device.status != "approved"
            or outcome.description == USED
        ):
            continue
        if changed := board_changes(device.board, claim.verified.board):
            policy = authority.settings.clone_policy
            clones.other_board(claim.verified.issuer, changed, source=claim.source, now=now, policy=policy)
