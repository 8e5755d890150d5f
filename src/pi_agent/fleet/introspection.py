"""Asking about tokens and ending them: introspection (RFC 7662) and revocation (RFC 7009).

Both see one truth, the database, at the moment of the question: a token is active while it was signed by a key of ours,
is not over, was not revoked, and its device is approved. A resource server sees tokens for its own audience only; about
all others it learns what it would about noise. A device may end its own tokens.
"""

from __future__ import annotations

from django.db import DatabaseError

from pi_agent import assertion, jws
from pi_agent.errors import InvalidAssertionError, MalformedTokenError, OAuthError
from pi_agent.fleet import audit, database, ledger
from pi_agent.fleet.clients import BAD_SIGNATURE, authenticate, authenticate_resource_server, named_by_basic
from pi_agent.fleet.devicekeys import speaks
from pi_agent.fleet.grants import CLIENT_CREDENTIALS, NOT_WRITABLE, USED, check_source, read_client_assertion, refused
from pi_agent.fleet.models import Device, RevokedToken
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, json_answer, oauth_refusal, read_form, try_again
from pi_agent.jws import JsonObject

INACTIVE: JsonObject = {"active": False}
SHOWN = ("iss", "sub", "client_id", "aud", "scope", "iat", "exp", "jti", "board")


def introspect(request: Request, *, now: int, authority: Authority) -> Answer:
    """Answer whether a token is active, to the resource server that it is for (RFC 7662 section 2)."""
    try:
        check_source(request, now, authority)
        form = read_form(request)
        asker = authenticate_resource_server(request, form)
        claims = read_token(_token(form), now=now, authority=authority)
        active = claims is not None and claims["aud"] == asker.audience and _is_active(claims)
    except OAuthError as error:
        return oauth_refusal(error)
    except DatabaseError as error:
        database.give_up(error)
        return oauth_refusal(try_again("the registry cannot be read at the moment"))
    if not active or claims is None:
        return json_answer(200, INACTIVE)
    return json_answer(200, {"active": True, "token_type": "Bearer"} | {k: claims[k] for k in SHOWN if k in claims})


def revoke(request: Request, *, now: int, authority: Authority) -> Answer:
    """End a token before its time (RFC 7009 section 2). Whoever may not is told nothing: the answer is 200 either way."""
    try:
        check_source(request, now, authority)
        form = read_form(request)
        name, audience = _revoker(request, form, now, authority)
        claims = read_token(_token(form), now=now, authority=authority)
        if claims is not None and (claims["aud"] == audience or claims["client_id"] == name):
            _revoke(claims, audit.Actor(name, request.source), now)
    except OAuthError as error:
        return refused(CLIENT_CREDENTIALS, error)
    except DatabaseError as error:
        database.give_up(error)
        return oauth_refusal(try_again(NOT_WRITABLE))
    return json_answer(200, {})


def read_token(token: str, *, now: int, authority: Authority) -> JsonObject | None:
    """The claims of an access token of ours that is not over; None for any other text."""
    try:
        parsed = jws.parse(token)
        key = authority.ring.find(parsed.header.get("kid"), now)
        if key is None or parsed.header.get("typ") != "at+jwt":
            return None
        jws.verify_signature(parsed, key=key.public.key, alg="ES256")
    except (MalformedTokenError, InvalidAssertionError):
        return None
    claims = parsed.claims
    return claims if claims["iss"] == authority.settings.issuer and now < claims["exp"] else None


def _token(form: dict[str, str]) -> str:
    if "token" not in form:
        raise OAuthError("invalid_request", "token is missing")
    return form["token"]


def _is_active(claims: JsonObject) -> bool:
    approved = Device.objects.filter(client_id=claims["client_id"], status="approved")
    return approved.exists() and not RevokedToken.objects.filter(jti=claims["jti"]).exists()


def _revoker(request: Request, form: dict[str, str], now: int, authority: Authority) -> tuple[str, str]:
    """Who revokes, and the audience whose tokens it may revoke: a resource server, or a device by its key (none)."""
    if "client_assertion" not in form:
        asker = authenticate_resource_server(request, form)
        return asker.client_id, asker.audience
    named = named_by_basic(request)
    compact = read_client_assertion(form)
    verified = authenticate(compact, kind=assertion.CLIENT, audience=authority.settings.issuer, now=now)
    if named not in (None, verified.issuer) or form.get("client_id", verified.issuer) != verified.issuer:
        raise OAuthError("invalid_grant", "client_id is not the device that signed the assertion")
    with ledger.entry() as book:
        fresh, device = book.spend([verified])[0], book.read([verified])[0]
    if not fresh or device is None or not speaks(device.key.pending_until, now):
        raise OAuthError("invalid_grant", BAD_SIGNATURE if fresh or device is None else USED)
    return verified.issuer, ""


def _revoke(claims: JsonObject, actor: audit.Actor, now: int) -> None:
    """Remember that a token is over; once is enough."""
    with ledger.entry():
        database.lock(f"revoke {claims['jti']}")  # or two at once would both write it
        known = RevokedToken.objects.filter(jti=claims["jti"]).exists()
        if not known:
            values = {"device": claims["client_id"], "revoked_at": now, "expires_at": claims["exp"]}
            RevokedToken.objects.create(jti=claims["jti"], **values)
            event = audit.Event("token.revoked", claims["client_id"], detail={"jti": claims["jti"]})
            audit.record([event], actor=actor, now=now)
