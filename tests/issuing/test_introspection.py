"""Introspection and revocation see one truth, and show it to whom it concerns (requirements C-05, C-06, C-11)."""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import pytest

from fleet.support import FORM, ISSUER, Pi, Reply, ask, exchange
from issuing.test_client_credentials import client_form, rule
from pi_agent import jws
from pi_agent.device.keys.file import FileKey
from pi_agent.device.request import Profile, revocation_form
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.housekeeper import SteadyClock, purge
from pi_agent.fleet.ledger import KEEP_USED
from pi_agent.fleet.limits import Limit, Limits
from pi_agent.fleet.models import AuditEvent, Device, DeviceKey, ResourceServer, RevokedToken, SigningKey, secret_hash

SECRET = "s" * 43  # of a resource server that lives as long as one test


@pytest.fixture
def server(app: Application) -> str:
    """A resource server for the fleet's own audience."""
    return add_server("own", ISSUER)


def add_server(name: str, audience: str) -> str:
    client_id = f"rs-{name}"
    ResourceServer.objects.filter(client_id=client_id).delete()
    ResourceServer.objects.create(
        client_id=client_id,
        name=name,
        audience=audience,
        secret_hash=secret_hash(SECRET),
        created_at=0,
        created_by="test",
    )
    return client_id


def basic(name: str, secret: str = SECRET) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{name}:{secret}".encode()).decode()}


def introspect(app: Application, token: str, headers: dict[str, str], **more: str) -> Reply:
    body = urlencode({"token": token} | more).encode()
    return exchange(app, "POST", "/oauth/introspect", body, {"content-type": FORM} | headers)


def revoke(app: Application, token: str, headers: dict[str, str]) -> Reply:
    return exchange(
        app, "POST", "/oauth/revoke", urlencode({"token": token}).encode(), {"content-type": FORM} | headers
    )


def token_of(app: Application, pi: Pi, **more: str) -> str:
    return str(ask(app, pi.form(**more)).json["access_token"])


def test_c06_an_active_token_is_described(app: Application, pi: Pi, server: str) -> None:
    """Its members, and the board; never to be stored."""
    reply = introspect(app, token_of(app, pi), basic(server))
    assert reply.headers["cache-control"] == "no-store"
    found = reply.json
    assert (found["active"], found["client_id"], found["aud"], found["scope"]) == (True, pi.client_id, ISSUER, "device")
    assert found["board"]["serial"] == "00000000c0ffee01"


def test_c06_the_secret_may_be_in_the_form(app: Application, pi: Pi, server: str) -> None:
    """client_secret_post; but not both ways at once (RFC 6749 section 2.3)."""
    token = token_of(app, pi)
    assert introspect(app, token, {}, client_id=server, client_secret=SECRET).json["active"] is True
    assert introspect(app, token, basic(server), client_id=server, client_secret=SECRET).status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {},
        basic("rs-own", "wrong"),
        basic("rs-none"),
        basic("rs-own", ""),
        {"authorization": "Basic !"},
        basic("rs-\0own"),
    ],
)
def test_c06_nobody_else_may_ask(app: Application, pi: Pi, server: str, headers: dict[str, str]) -> None:
    """Without the credentials of a resource server: 401 and how to authenticate, the same for all."""
    reply = introspect(app, token_of(app, pi), headers)
    assert (reply.status, reply.json["error"]) == (401, "invalid_client")
    assert "www-authenticate" in reply.headers


def test_c06_a_device_token_is_no_credential(app: Application, pi: Pi, server: str) -> None:
    """Nor is a device's assertion."""
    token = token_of(app, pi)
    assert introspect(app, token, {"authorization": f"Bearer {token}"}).status == 401
    body = client_form(pi, token=token)
    assert exchange(app, "POST", "/oauth/introspect", body, {"content-type": FORM}).status == 401


def test_c06_post_only(app: Application, server: str) -> None:
    """A token never stands in a URL."""
    assert exchange(app, "GET", "/oauth/introspect?token=x", headers=basic(server)).status == 405


def test_c06_each_sees_its_own_tokens_only(app: Application, pi: Pi, server: str) -> None:
    """About a token for somebody else it learns what it would about noise."""
    other = add_server("other", "https://api.test")
    rule("id:*", "read")
    own, others = token_of(app, pi), token_of(app, pi, resource="https://api.test")
    assert introspect(app, own, basic(other)).json == {"active": False}
    assert introspect(app, others, basic(server)).json == {"active": False}
    assert introspect(app, others, basic(other)).json["active"] is True


@pytest.mark.parametrize("token", ["x", "a.b.c", "é", "\0", "x" * 20_000])
def test_c06_what_is_no_token_is_inactive_and_nothing_else(app: Application, server: str, token: str) -> None:
    """Exactly ``{"active": false}``, or a refusal of the form itself."""
    reply = introspect(app, token, basic(server))
    assert reply.json == {"active": False} if reply.status == 200 else reply.status == 400


def test_c04_assertions_and_altered_tokens_are_inactive(app: Application, pi: Pi, server: str) -> None:
    """Another type, another signature, another kid."""
    token = token_of(app, pi)
    head, claims, signature = token.split(".")
    altered = [pi.assertion(), f"{head}.{claims}.{signature[:-4]}AAAA", f"{head}.{claims}A.{signature}"]
    assert [introspect(app, each, basic(server)).json for each in altered] == [{"active": False}] * 3


@pytest.mark.parametrize("status", ["quarantined", "revoked", "rejected", "pending"])
def test_c05_a_device_that_is_turned_away_has_no_active_token(
    app: Application, pi: Pi, server: str, status: str
) -> None:
    """At once, without a word to anybody."""
    token = token_of(app, pi)
    Device.objects.filter(client_id=pi.client_id).update(status=status)
    assert introspect(app, token, basic(server)).json == {"active": False}


def test_c05_a_revoked_token_is_inactive_at_once(app: Application, pi: Pi, server: str) -> None:
    """The one and not the others; told in the audit log once, however often it is revoked."""
    token, other = token_of(app, pi), token_of(app, pi)
    assert [revoke(app, token, basic(server)).status for _ in range(2)] == [200, 200]
    assert introspect(app, token, basic(server)).json == {"active": False}
    assert introspect(app, other, basic(server)).json["active"] is True
    assert AuditEvent.objects.filter(action="token.revoked", device=pi.client_id).count() == 1


def test_c05_a_resource_server_revokes_its_own_tokens_only(app: Application, pi: Pi, server: str) -> None:
    """A token for somebody else stays what it was, and whoever tried is told 200 as for noise (RFC 7009 section 2.2)."""
    other = add_server("other", "https://api.test")
    token = token_of(app, pi)
    assert revoke(app, token, basic(other)).status == 200
    assert introspect(app, token, basic(server)).json["active"] is True
    assert RevokedToken.objects.count() == 0


def test_c06_a_token_that_is_over_is_inactive(app: Application, pi: Pi, server: str) -> None:
    """From the very second at which it ends."""
    token = token_of(app, pi)
    ends = int(jws.parse(token).claims["exp"])
    clock = [ends - 1]
    later = Application(app.authority, clock=lambda: clock[0])
    try:
        assert introspect(later, token, basic(server)).json["active"] is True
        clock[0] = ends
        assert introspect(later, token, basic(server)).json == {"active": False}
    finally:
        later.close()


def test_rfc7009_a_device_revokes_its_own_tokens(app: Application, pi: Pi, server: str) -> None:
    """By its key. For the token of another it is told 200 too, and nothing happens (RFC 7009 section 2.2)."""
    from fleet.conftest import approve

    stranger = approve(app, Pi(board=None))
    token = token_of(app, pi)
    for who, left in ((stranger, 0), (pi, 1)):
        reply = exchange(app, "POST", "/oauth/revoke", client_form(who, token=token), {"content-type": FORM})
        assert (reply.status, RevokedToken.objects.count()) == (200, left)
    assert introspect(app, token, basic(server)).json == {"active": False}
    RevokedToken.objects.all().delete()


def test_rfc7009_what_our_agent_sends_is_understood(app: Application, pi: Pi, server: str) -> None:
    """``pi-agent sign-out`` at our own server, with the settings that are built in: the token is over."""
    profile = Profile(issuer=ISSUER, client_id=pi.client_id, token_endpoint=f"{ISSUER}/oauth/token")
    token = token_of(app, pi)
    form = revocation_form(profile, FileKey(pi.key, pi.alg), token, now=int(time.time()))
    assert exchange(app, "POST", "/oauth/revoke", form.encode(), {"content-type": FORM}).status == 200
    assert introspect(app, token, basic(server)).json == {"active": False}
    RevokedToken.objects.all().delete()


def test_rfc7009_nonsense_is_revoked_in_peace(app: Application, server: str) -> None:
    """An invalid token is a 200, since it is what the client wanted; without credentials it is a 401."""
    assert revoke(app, "nonsense", basic(server)).status == 200
    assert revoke(app, "nonsense", {}).status == 401


def test_b18_whoever_revokes_goes_by_the_name_that_signed(app: Application, pi: Pi, server: str) -> None:
    """Another client_id, in the form or in a Basic header, is refused, and the token lives (RFC 7521 section 4.2)."""
    token = token_of(app, pi)
    for more, headers in (({"client_id": "pi-0000000000000000"}, {}), ({}, basic("pi-0000000000000000", ""))):
        body = client_form(pi, token=token, **more)
        assert exchange(app, "POST", "/oauth/revoke", body, {"content-type": FORM} | headers).status == 401
    assert introspect(app, token, basic(server)).json["active"] is True


@pytest.mark.parametrize("path", ["/oauth/introspect", "/oauth/revoke", "/oauth/rotate", "/oauth/register"])
def test_b29_an_address_is_slowed_down_at_every_endpoint(app: Application, pi: Pi, path: str) -> None:
    """Whoever guesses secrets or proofs gets no more tries than at the token endpoint; others are served."""
    proof = json.dumps(pi.registration("nonce")).encode()
    body, kind = (proof, "application/json") if path == "/oauth/register" else (b"token=x", FORM)
    slow = Limit(0.01, 2)
    limited = Application(replace(app.authority, limits=Limits(slow, slow, slow)))
    try:
        found = [exchange(limited, "POST", path, body, {"content-type": kind}) for _ in range(3)]
        assert [reply.status == 429 for reply in found] == [False, False, True]
        assert int(found[2].headers["retry-after"]) > 0
        assert exchange(limited, "POST", path, body, {"content-type": kind}, ("192.0.2.2", 1)).status != 429
    finally:
        limited.close()


def test_c11_the_secret_is_kept_as_its_hash(app: Application, server: str) -> None:
    """Nothing in the table is the secret."""
    row: dict[str, Any] = ResourceServer.objects.values().get(client_id=server)
    assert SECRET not in map(str, row.values())


def test_rs13_a_token_of_a_revoked_device_is_never_active_afterwards(app: Application, pi: Pi, server: str) -> None:
    """Tokens are issued while the device is revoked; whatever was issued, nothing is active once the revocation has returned."""
    got: list[str] = []

    def fetch() -> None:
        for _ in range(10):
            reply = ask(app, pi.form())
            if reply.status == 200:
                got.append(reply.json["access_token"])

    thread = threading.Thread(target=fetch)
    thread.start()
    Device.objects.filter(client_id=pi.client_id).update(status="revoked")
    active = [introspect(app, token, basic(server)).json["active"] for token in list(got)]
    thread.join()
    active += [introspect(app, token, basic(server)).json["active"] for token in got]
    assert not any(active)
    assert ask(app, pi.form()).status == 400


def test_c01_the_private_half_never_leaves_the_table(app: Application) -> None:
    """What the database holds of a key is not in the answer about it."""
    private = SigningKey.objects.values_list("private_key", flat=True).first()
    assert private and private.splitlines()[1].encode() not in exchange(app, "GET", "/oauth/jwks").body


@pytest.mark.parametrize(
    ("typ", "iss", "active"),
    [("at+jwt", ISSUER, True), ("JWT", ISSUER, False), ("at+jwt", "https://elsewhere.test", False)],
)
def test_c04_what_our_key_signed_for_something_else_is_no_token(
    app: Application, pi: Pi, server: str, typ: str, iss: str, active: bool
) -> None:
    """C-04: the key is right, the type or the issuer is not: inactive."""
    claims = jws.parse(token_of(app, pi)).claims | {"iss": iss}
    key = app.authority.ring.signing(int(time.time()))
    token = jws.serialize({"alg": "ES256", "kid": key.kid, "typ": typ}, claims, sign=key.sign)
    assert introspect(app, token, basic(server)).json["active"] is active


def test_rs12_a_purge_forgets_no_revocation_that_counts(app: Application, pi: Pi, server: str) -> None:
    """A token that was revoked stays so for as long as it lives."""
    token = token_of(app, pi)
    assert revoke(app, token, basic(server)).status == 200
    ends = int(jws.parse(token).claims["exp"])
    for at, left in ((ends - 1, 1), (ends + 10_000, 0)):
        purge(at)
        assert RevokedToken.objects.count() == left


@pytest.mark.parametrize("state", ["pending_until", "retired_at"])
def test_f04_a_key_that_does_not_speak_revokes_nothing(app: Application, pi: Pi, state: str) -> None:
    """It was signed in and not used in time, or was retired: at revocation it is as little worth as for a token."""
    form = client_form(pi, token=token_of(app, pi))
    DeviceKey.objects.update(**{state: 1})
    assert exchange(app, "POST", "/oauth/revoke", form, {"content-type": FORM}).status == 401
    assert RevokedToken.objects.count() == 0


def test_a_clock_that_was_set_lets_nothing_be_forgotten() -> None:
    """It jumps a year ahead and comes back: neither is believed before an assertion of that time would be over."""
    wall, run = [1e9], [0.0]
    clock = SteadyClock(lambda: wall[0], lambda: run[0])

    def after(seconds: float, jump: float = 0.0) -> bool:
        wall[0] += seconds + jump
        run[0] += seconds
        return clock.is_steady()

    assert after(10)
    assert not after(10, 3e7)
    assert not after(KEEP_USED - 10)
    assert not after(5, -3e7)
    assert not after(KEEP_USED - 5)
    assert after(10)
