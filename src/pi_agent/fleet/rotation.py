"""Key rotation: ``POST /oauth/rotate`` (requirements F-04, F-05). The device's side is ``device/rotate.py``.

    JSON -> two statements of one text -> the old key's and the new key's signature -> a key that waits for its first use

Both keys sign the same claims over our nonce: the device, and the thumbprint (``jkt``) of the new key. From then on either
key gets tokens, until the new one is used for the first time, which retires the old. A new key that nobody uses is
forgotten after OVERLAP, and the old one goes on: whatever gets lost on the way, no device is locked out. Asking again
with the same key answers the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError

from pi_agent import assertion, jws
from pi_agent.assertion import VerifiedAssertion
from pi_agent.errors import InvalidAssertionError, MalformedTokenError, OAuthError
from pi_agent.fleet import audit, clients, clones, database, ledger
from pi_agent.fleet.devicekeys import speaks
from pi_agent.fleet.enrollment import NONCE_WANTED, check_nonce, make_nonce, read_key
from pi_agent.fleet.grants import NOT_WRITABLE, USED, check_source
from pi_agent.fleet.models import Device, DeviceKey
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, check_post, json_answer, oauth_refusal, try_again
from pi_agent.jwk import PublicKey, load_jwk
from pi_agent.jws import UnverifiedToken

OVERLAP = 30 * 86400
HOUR, MOST_AN_HOUR = 3600, 20  # new keys of one device: more are a fault, or somebody who fills the registry
MAX_REQUEST = 16 * 1024
KEY_UNUSABLE = "invalid_client_metadata"  # RFC 7591 section 3.2.2, as at enrollment: it is the new key that will not do
REFUSED = "the old key's signature is not good, or it is no key of this device"


@dataclass(frozen=True, slots=True)
class Wish:
    """A request that is well formed; nobody has vouched for any of it yet."""

    key: PublicKey
    alg: str
    by_old: UnverifiedToken
    by_new: UnverifiedToken


def answer(request: Request, *, now: int, authority: Authority) -> Answer:
    """Answer one rotation request. ``now`` is the server's clock in seconds since 1970."""
    try:
        return _rotate(request, now, authority)
    except OAuthError as error:
        fresh = {"nonce": make_nonce(authority.nonce_secret, now)} if error.error == NONCE_WANTED else {}
        return oauth_refusal(error, **fresh)
    except (MalformedTokenError, InvalidAssertionError) as error:
        return oauth_refusal(OAuthError("invalid_grant", str(error)))
    except DatabaseError as error:
        database.give_up(error)
        return oauth_refusal(try_again(NOT_WRITABLE))


def _rotate(request: Request, now: int, authority: Authority) -> Answer:
    check_source(request, now, authority)
    wish = _read(request)
    check_nonce(authority.nonce_secret, wish.by_new.claims.get("nonce"), now)
    issuer = authority.settings.issuer
    new = _verify(wish.by_new, wish.key, wish.alg, issuer, now)
    client_id, old_kid = assertion.claimed_identity(wish.by_old)
    old_key = DeviceKey.objects.filter(kid=old_kid or "", device__client_id=client_id).first()
    old = _verify_old(wish.by_old, old_key, issuer, now)
    said = ("iss", "nonce", "jkt")
    if [new.claims.get(name) for name in said] != [old.claims.get(name) for name in said]:
        raise OAuthError("invalid_grant", "the two statements do not say the same")
    if new.claims.get("jkt") != wish.key.kid or wish.by_new.header.get("kid") != wish.key.kid:
        raise OAuthError("invalid_grant", "jkt and kid must be the thumbprint of the new key")
    with ledger.entry() as book:
        if not all(book.spend([old, new])):
            raise OAuthError("invalid_grant", USED)
        until, refusal = _sign_in(old_key, old, wish, request.source, now)
    if refusal:
        raise refusal  # noted above, so it is raised where that is on disk
    return json_answer(200, {"client_id": old.issuer, "kid": wish.key.kid, "pending_until": until})


def _read(request: Request) -> Wish:
    check_post(request, "application/json")
    if len(request.body) > MAX_REQUEST:
        raise OAuthError("invalid_request", f"the request is larger than {MAX_REQUEST} bytes")
    members = jws.load_json_object(request.body)
    statements = [members.get(name) for name in ("signed_by_old", "signed_by_new")]
    if not all(isinstance(statement, str) for statement in statements):
        raise OAuthError("invalid_request", "jwks, signed_by_old and signed_by_new are needed")
    by_old, by_new = (jws.parse(str(statement)) for statement in statements)
    return Wish(*read_key(members.get("jwks")), by_old, by_new)


def _verify(token: UnverifiedToken, key: PublicKey, alg: str, issuer: str, now: int) -> VerifiedAssertion:
    return assertion.verify(token, key, alg=alg, kind=assertion.ROTATION, audience=issuer, now=now)


def _verify_old(token: UnverifiedToken, row: DeviceKey | None, issuer: str, now: int) -> VerifiedAssertion:
    """An unknown device costs and answers what a bad signature does (requirement B-28)."""
    alg = token.header["alg"]
    known = row is not None and row.alg == alg
    key = load_jwk(json.loads(row.jwk)) if row is not None and known else clients.NOBODY[alg]
    try:
        return _verify(token, key, alg, issuer, now)
    except InvalidAssertionError as error:
        if error.claim == "signature":
            raise OAuthError("invalid_grant", REFUSED) from error
        raise


def _sign_in(
    old_key: DeviceKey | None, old: VerifiedAssertion, wish: Wish, source: str, now: int
) -> tuple[int | None, OAuthError | None]:
    """The end of the new key's waiting time (None: it is in use), or the refusal. Inside one transaction."""
    key = wish.key
    device = Device.objects.select_for_update().filter(client_id=old.issuer).first()
    if device is None:  # forgotten since its key was read
        return None, OAuthError("invalid_grant", REFUSED)
    if device.status != "approved":
        return None, OAuthError("invalid_grant", f"this device is {device.status}")
    known = DeviceKey.objects.filter(kid=key.kid).first()
    if known is not None and (known.device != device or known.retired_at is not None):
        return None, OAuthError(KEY_UNUSABLE, "the new key was used before; make another")
    if known is not None and known.pending_until is None:
        return None, None  # it is the device's key already: the answer to that was lost
    if old_key is not None:
        old_key.refresh_from_db()  # it was read before this transaction
    if old_key is None or old_key.retired_at is not None or not speaks(old_key.pending_until, now):
        return None, clones.retired_key(old.issuer, old.kid, source=source, now=now) or OAuthError(
            "invalid_grant", REFUSED
        )
    recent = DeviceKey.objects.filter(device=device, created_at__gt=now - HOUR).count()
    if known is None and recent >= MOST_AN_HOUR:
        return None, OAuthError("slow_down", "too many new keys in an hour", status=429, retry_after=HOUR)
    until = now + OVERLAP
    others = DeviceKey.objects.filter(device=device, pending_until__isnull=False, retired_at=None)
    others.exclude(kid=key.kid).update(retired_at=now)
    if known is not None:
        DeviceKey.objects.filter(pk=known.pk).update(pending_until=until)
        return until, None
    DeviceKey.objects.create(
        device=device,
        kid=key.kid,
        alg=wish.alg,
        jwk=json.dumps(key.jwk),
        created_at=now,
        pending_until=until,
    )
    _record("device.key-signed-in", device.client_id, source, now, {"kid": key.kid, "by": old.kid})
    return until, None


def _record(action: str, client_id: str, source: str, now: int, detail: dict[str, Any]) -> None:
    audit.record([audit.Event(action, client_id, detail=detail)], actor=audit.Actor(client_id, source), now=now)
