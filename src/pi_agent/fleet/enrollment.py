"""Dynamic registration (RFC 7591) of devices: a key, a proof that its holder is there now, and a board.

    JSON -> registration -> proof over our nonce -> device, pending or approved

A registration without more is a wish: the device waits as ``pending`` until an operator approves it. An enrollment
token (a Bearer header) is an operator's approval given beforehand, and so is a line of a list (``preauthorise``). The
server chooses the client_id; it ignores metadata it does not know, fetches no URL, and refuses a software_statement,
which would have to be verified.
Registering the same key again answers the same device, so that a lost answer costs nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError
from django.db.models import F, Q

from pi_agent import assertion, jws
from pi_agent.assertion import VerifiedAssertion
from pi_agent.catalogue import fold
from pi_agent.errors import InvalidAssertionError, MalformedTokenError, OAuthError, UnreadableBoardError
from pi_agent.fleet import audit, clones, database, ledger, preauthorise
from pi_agent.fleet.grants import NOT_WRITABLE, USED, check_source
from pi_agent.fleet.limits import wait_of_source
from pi_agent.fleet.models import Device, DeviceKey, EnrollmentToken, secret_hash
from pi_agent.fleet.policy import board_changes, normal_board
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, check_post, json_answer, oauth_refusal, try_again
from pi_agent.jwk import PublicKey, load_jwk
from pi_agent.jws import UnverifiedToken
from pi_agent.oauth import JWT_BEARER
from pi_agent.revision import decode_revision

MAX_REQUEST = 16 * 1024
MAX_NAME = 64
MAX_PENDING = 10_000
NONCE_LIFETIME = 300
NONCE_WANTED = "use_enrollment_nonce"
THUMBPRINT_URI = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"  # RFC 9278
KNOWN_BOARDS = ("pending", "approved", "quarantined")  # statuses in which a serial is taken


@dataclass(frozen=True, slots=True)
class Registration:
    """A request that is well formed; nobody has vouched for any of it yet. ``token`` is an enrollment token or empty."""

    name: str
    key: PublicKey
    alg: str
    proof: UnverifiedToken
    token: str


def answer(request: Request, *, now: int, authority: Authority) -> Answer:
    """Answer one registration request. ``now`` is the server's clock in seconds since 1970."""
    try:
        return _register(request, now, authority)
    except OAuthError as error:
        fresh = {"nonce": make_nonce(authority.nonce_secret, now)} if error.error == NONCE_WANTED else {}
        return oauth_refusal(error, **fresh)
    except MalformedTokenError as error:
        return oauth_refusal(OAuthError("invalid_client_metadata", str(error)))
    except InvalidAssertionError as error:
        return oauth_refusal(OAuthError("invalid_client_metadata", f"the proof cannot be believed: {error}"))
    except DatabaseError as error:
        database.give_up(error)
        return oauth_refusal(try_again(NOT_WRITABLE))


def _register(request: Request, now: int, authority: Authority) -> Answer:
    check_source(request, now, authority)
    registration = _read(request)
    check_nonce(authority.nonce_secret, registration.proof.claims.get("nonce"), now)
    _check_rate(request, now, authority)
    verified = assertion.verify(
        registration.proof,
        registration.key,
        alg=registration.alg,
        kind=assertion.ENROLLMENT,
        audience=authority.settings.issuer,
        now=now,
    )
    if verified.issuer != THUMBPRINT_URI + registration.key.kid or registration.proof.header.get("kid") != verified.kid:
        raise OAuthError("invalid_client_metadata", "kid, iss and sub of the proof must be the thumbprint of its key")
    with ledger.entry() as book:
        if not book.spend([verified])[0]:
            raise OAuthError("invalid_grant", USED)
        status, device = _enroll(registration, verified, request.source, now, authority)
    return json_answer(status, _description(device, registration))


# Reading the request.


def _read(request: Request) -> Registration:
    """The registration in a request. Raises OAuthError or MalformedTokenError."""
    check_post(request, "application/json")
    if len(request.body) > MAX_REQUEST:
        raise OAuthError("invalid_client_metadata", f"the request is larger than {MAX_REQUEST} bytes")
    members = jws.load_json_object(request.body)
    if "software_statement" in members:
        raise OAuthError("unapproved_software_statement", "software statements are not accepted")
    if members.get("token_endpoint_auth_method", "none") != "none":
        raise OAuthError("invalid_client_metadata", "token_endpoint_auth_method must be none")
    grant_types = members.get("grant_types", [JWT_BEARER])
    if not isinstance(grant_types, list) or JWT_BEARER not in grant_types:
        raise OAuthError("invalid_client_metadata", f"grant_types must hold {JWT_BEARER}")
    key, alg = read_key(members.get("jwks"))
    return Registration(
        name=_read_name(members.get("client_name")),
        key=key,
        alg=alg,
        proof=_read_proof(members.get("proof")),
        token=_read_bearer(request.authorization),
    )


def _read_name(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or not value.isprintable() or len(value) > MAX_NAME:
        raise OAuthError("invalid_client_metadata", f"client_name must be at most {MAX_NAME} printable characters")
    return value.strip()


def read_key(value: Any) -> tuple[PublicKey, str]:
    """The key, and the algorithm that it is pinned to from now on: the one its JWK names, or the first it is good for."""
    keys = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(keys, list) or len(keys) != 1 or not isinstance(keys[0], dict):
        raise OAuthError("invalid_client_metadata", "jwks must hold one key")
    key = load_jwk(keys[0])
    return key, keys[0].get("alg", key.algorithms[0])


def _read_proof(value: Any) -> UnverifiedToken:
    if value is None:
        raise OAuthError(NONCE_WANTED, "send a proof over this nonce")
    if not isinstance(value, str):
        raise OAuthError("invalid_client_metadata", "proof must be a compact signed token")
    return jws.parse(value)


def _read_bearer(authorization: str) -> str:
    scheme, _, token = authorization.partition(" ")
    if not authorization:
        return ""
    if scheme.lower() != "bearer" or not token.strip():
        raise _bad_token()
    return token.strip()


def _bad_token() -> OAuthError:
    return OAuthError(
        "invalid_token", "the enrollment token is wrong, expired, used up or for another board", status=401
    )


def _check_rate(request: Request, now: int, authority: Authority) -> None:
    limits = authority.limits
    if limits and (wait := wait_of_source(limits.registrations, request.source, now)):
        raise OAuthError("slow_down", "too many registrations from this address", status=429, retry_after=wait)


# The nonce: a promise of this server that needs no memory. Expiry and a tag over it, in base64url.


def make_nonce(secret: bytes, now: int) -> str:
    expiry = (now + NONCE_LIFETIME).to_bytes(8, "big") + secrets.token_bytes(8)
    return jws.b64url(expiry + hmac.digest(secret, expiry, hashlib.sha256)[:16])


def check_nonce(secret: bytes, nonce: Any, now: int) -> None:
    """Raise OAuthError (``use_enrollment_nonce``) unless this server gave the nonce, at most NONCE_LIFETIME ago."""
    try:
        data = jws.b64url_decode(nonce) if isinstance(nonce, str) and nonce.isascii() else b""
    except MalformedTokenError:
        data = b""
    body, tag = data[:16], data[16:]
    if not hmac.compare_digest(hmac.digest(secret, body, hashlib.sha256)[:16], tag):
        raise OAuthError(NONCE_WANTED, "sign the proof over this nonce")
    if not now < int.from_bytes(body[:8], "big") <= now + NONCE_LIFETIME:
        raise OAuthError(NONCE_WANTED, "the nonce has expired; sign the proof over this one")


# Writing it down. All of this runs inside one transaction.


def _enroll(
    registration: Registration, verified: VerifiedAssertion, source: str, now: int, authority: Authority
) -> tuple[int, Device]:
    """The device of this key and 201, or 200 when it was enrolled before."""
    database.lock("enrollment")  # of one key, or one serial, that comes to two servers at once, one is the first
    known = DeviceKey.objects.filter(kid=registration.key.kid).first()
    if known is None:
        return 201, _enroll_new(registration, verified, source, now, authority)
    if known.retired_at is not None:
        raise OAuthError("invalid_client_metadata", "this key was retired; make a new one")
    if known.alg != registration.alg:
        raise OAuthError("invalid_client_metadata", f"this key is enrolled for {known.alg}")
    device = Device.objects.select_for_update(of=("self",)).filter(keys=known).first()
    if device is None:  # forgotten since its key was read
        return 201, _enroll_new(registration, verified, source, now, authority)
    changed = board_changes({name: getattr(device, name) for name in assertion.BOARD_CLAIMS}, verified.board)
    if changed and device.status != "pending":
        policy = authority.settings.clone_policy
        clones.other_board(device.client_id, changed, source=source, now=now, policy=policy)
    if device.status == "pending" and not changed:
        _approve_late(device, registration, source, now)
    return 200, device


def _approve_late(device: Device, registration: Registration, source: str, now: int) -> None:
    """A device that waits brings a token, or an operator has named it since. One that was flagged goes on waiting."""
    if registration.token:
        _use_token(registration.token, device.serial, now, spend=not device.flag)
    if device.flag:
        return
    by = "enrollment token" if registration.token else _named_before(device, registration.key.kid, now)
    if by:
        device.status = "approved"
        device.save(update_fields=["status", "name", "name_key"])
        _record("device.approved", device, source, now, by=by)


def _named_before(device: Device, kid: str, now: int) -> str:
    """Whether an operator approved this board or key before it came, and by what; it is then called what the list says."""
    line = preauthorise.spend(serial=device.serial, kid=kid, client_id=device.client_id, now=now)
    if line is None:
        return ""
    if line.name:
        device.name, device.name_key = line.name, fold("name", line.name)
    return "key on the list" if line.kid else "serial on the list"


def _enroll_new(
    registration: Registration, verified: VerifiedAssertion, source: str, now: int, authority: Authority
) -> Device:
    board = normal_board(verified.board)
    twins = _same_serial(board["serial"])
    if registration.token:
        _use_token(registration.token, board["serial"], now, spend=not twins)
    device = _new_device(registration, verified, board, now, authority)
    by = (
        ""
        if twins
        else "enrollment token" * bool(registration.token) or _named_before(device, registration.key.kid, now)
    )
    if not by and not registration.token and Device.objects.filter(status="pending").count() >= MAX_PENDING:
        raise try_again("too many devices wait for approval")
    device.status = "approved" if by else "pending"
    device.flag = f"serial {board['serial']} is also enrolled as {', '.join(twins)}" if twins else ""
    device.save()
    key = registration.key
    DeviceKey.objects.create(device=device, kid=key.kid, alg=registration.alg, jwk=json.dumps(key.jwk), created_at=now)
    more = {"by": by} if by else {}
    _record("device.enrolled", device, source, now, status=device.status, kid=key.kid, board=board, **more)
    if twins:
        _record("device.same-serial", device, source, now, serial=board["serial"], others=twins)
    return device


def _new_device(
    registration: Registration, verified: VerifiedAssertion, board: dict[str, Any], now: int, authority: Authority
) -> Device:
    client_id = "pi-" + secrets.token_hex(8)
    overvoltage, warranty = verified.board_state
    name = registration.name or client_id
    return Device(
        client_id=client_id,
        name=name,
        name_key=fold("name", name),
        scopes=authority.settings.scopes,
        model_key=fold("model", board["model"]) if board["model"] else None,
        maker=_maker(board["revision"]),
        simulated=verified.agent["simulated"],
        key_protection=verified.agent["key"],
        agent_version=verified.agent["version"] or None,
        overvoltage=overvoltage,
        warranty=warranty,
        created_at=now,
        seen_at=now,
        **board,
    )


def _maker(code: str | None) -> str | None:
    """Who made the board, from its revision code."""
    try:
        return decode_revision(code).manufacturer if code else None
    except UnreadableBoardError:
        return None


def _same_serial(serial: str | None) -> list[str]:
    """The devices that already go by this serial: the same board with a new card, or a copy of it. An operator decides."""
    if serial is None:
        return []
    taken = Device.objects.filter(serial=serial, status__in=KNOWN_BOARDS).order_by("id")
    return list(taken.values_list("client_id", flat=True)[:5])


def _use_token(token: str, serial: str | None, now: int, *, spend: bool) -> None:
    """Spend one use of an enrollment token, by one conditional update (requirement F-03), or only see that it is good.

    Raises OAuthError (401) when it is not.
    """
    good = EnrollmentToken.objects.filter(
        Q(serial=None) | Q(serial=serial or ""), token_hash=secret_hash(token), uses_left__gt=0, expires_at__gt=now
    )
    if not (good.update(uses_left=F("uses_left") - 1) == 1 if spend else good.exists()):
        raise _bad_token()


def _record(action: str, device: Device, source: str, now: int, **detail: object) -> None:
    event = audit.Event(action, device.client_id, detail=detail)
    audit.record([event], actor=audit.Actor(device.client_id, source), now=now)


def _description(device: Device, registration: Registration) -> dict[str, object]:
    """The client information response (RFC 7591 section 3.2.1), with the device's status beside it."""
    return {
        "client_id": device.client_id,
        "client_id_issued_at": device.created_at,
        "client_name": device.name,
        "grant_types": [JWT_BEARER],
        "token_endpoint_auth_method": "none",
        "jwks": {"keys": [registration.key.jwk | {"kid": registration.key.kid, "alg": registration.alg}]},
        "status": device.status,
        "scope": device.scopes,
    }
