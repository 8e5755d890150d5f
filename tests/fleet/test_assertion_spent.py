"""An assertion is used once, by a device that may, on the board that enrolled: requirements B-19, B-21 to B-25, B-29, B-31."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import DataError

from fleet.conftest import SETTINGS, approve
from fleet.support import BOARD, FORM, Pi, ask, claims_of
from pi_agent.fleet import grants
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.limits import Limit, Limits
from pi_agent.fleet.models import AuditEvent, Device, UsedAssertion
from pi_agent.fleet.tokens import Authority, load_authority
from pi_agent.fleet.web import Request


def test_b21_the_second_use_is_refused(app: Application, pi: Pi) -> None:
    """The same assertion again is invalid_grant, and says why."""
    body = pi.form()
    assert ask(app, body).status == 200
    again = ask(app, body)
    assert (again.status, again.json["error"]) == (400, "invalid_grant")
    assert "used before" in again.json["error_description"]


def test_b21_of_fifty_parallel_posts_one_is_served(app: Application, pi: Pi) -> None:
    """Five rounds of fifty: exactly one token each, every other answer invalid_grant, none a 5xx."""
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            body = pi.form()
            answers = Counter(reply.status for reply in pool.map(ask, [app] * 50, [body] * 50))
            assert answers == {200: 1, 400: 49}


def test_b21_a_jti_belongs_to_its_issuer(app: Application, pi: Pi) -> None:
    """Two devices that chose the same jti do not lock each other out."""
    other = approve(app, Pi(board=None))
    jti = "a-jti-that-two-have-chosen"
    assert [ask(app, one.form(one.assertion(jti=jti))).status for one in (pi, other)] == [200, 200]


@pytest.mark.parametrize(
    ("status", "error"),
    [("pending", "authorization_pending"), ("rejected", "invalid_grant"), ("quarantined", "invalid_grant"), ("revoked", "invalid_grant")],
)  # fmt: skip
def test_b25_the_status_counts_at_once(app: Application, pi: Pi, status: str, error: str) -> None:
    """A device that was served a moment ago is refused as soon as its status says so (CVE-2026-1486)."""
    assert ask(app, pi.form()).status == 200
    Device.objects.update(status=status)
    reply = ask(app, pi.form())
    assert (reply.status, reply.json["error"]) == (400, error)
    assert reply.json["error_description"]
    Device.objects.update(status="approved")
    assert ask(app, pi.form()).status == 200


def test_b25_a_device_that_was_deleted_is_unknown(app: Application, pi: Pi) -> None:
    """Its key is gone with it, cached or not."""
    assert ask(app, pi.form()).status == 200
    Device.objects.all().delete()
    assert ask(app, pi.form()).json["error"] == "invalid_grant"


def test_b25_a_retired_key_signs_nothing(app: Application, pi: Pi) -> None:
    """A key that was retired is like one that never was."""
    assert ask(app, pi.form()).status == 200
    device = Device.objects.get()
    device.keys.update(retired_at=1)
    assert ask(app, pi.form()).json["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("member", "value"), [("serial", "00000000deadbeef"), ("revision", "a02082"), ("memory_mib", 512), ("model", "3B")]
)
def test_b19_a_key_on_another_board_is_refused(app: Application, pi: Pi, member: str, value: object) -> None:
    """A card moved to another board gets no token, and the audit log has both values."""
    reply = ask(app, pi.form(pi.assertion(board=BOARD | {member: value})))
    assert (reply.status, reply.json["error"]) == (400, "invalid_grant")
    assert member in reply.json["error_description"]
    event = AuditEvent.objects.get(action="device.board-changed")
    assert (event.device, event.result) == (pi.client_id, "refused")
    assert json.loads(event.detail)["board"] == {member: [BOARD[member], value]}
    assert Device.objects.get().refused_at is not None


def test_b19_what_is_not_known_is_no_difference(app: Application, pi: Pi) -> None:
    """A claim without a serial, or without a board, is not a claim of another one; spelling does not matter."""
    assert ask(app, pi.form(pi.assertion(board=BOARD | {"serial": None}))).status == 200
    assert ask(app, pi.form(pi.assertion(board=None))).status == 200
    assert ask(app, pi.form(pi.assertion(board=BOARD | {"serial": "00000000C0FFEE01"}))).status == 200


def test_the_token_names_the_enrolled_board(app: Application, pi: Pi) -> None:
    """Not the board of the assertion: what an operator approved is what a resource server sees."""
    token = ask(app, pi.form(pi.assertion(board=None))).json["access_token"]
    assert claims_of(token)["board"] == BOARD


def test_contacts_are_noted(app: Application, pi: Pi) -> None:
    """Last token, last seen, last refused with its reason, and what the agent says about itself."""
    now = int(time.time())
    agent = {"version": "0.1.0", "key": "tpm", "simulated": False}
    assert ask(app, pi.form(pi.assertion(agent=agent))).status == 200
    device = Device.objects.get()
    assert (device.agent_version, device.key_protection, device.refused_at) == ("0.1.0", "tpm", None)
    assert device.auth_at is not None and device.auth_at >= now
    assert ask(app, pi.form(pi.assertion(iat=1, exp=61))).status == 400
    assert "by this server's clock" in Device.objects.get().refused_reason
    Device.objects.update(refused_at=None, refused_reason="")
    stranger = Pi(client_id=pi.client_id)
    for header in ({}, {"kid": pi.public.kid}, {"kid": pi.public.kid, "typ": "at+jwt"}):
        assert ask(app, pi.form(stranger.assertion(header=header))).status == 400
    assert Device.objects.get().refused_at is None, "a stranger can say nothing about a device"


def test_a_device_that_waits_is_seen_and_not_refused(app: Application, pi: Pi) -> None:
    """Whoever looks for a board in the pending list sees that it is alive."""
    Device.objects.update(status="pending", seen_at=1)
    assert ask(app, pi.form()).json["error"] == "authorization_pending"
    device = Device.objects.get()
    assert ((device.seen_at or 0) > 1, device.auth_at, device.refused_at) == (True, None, None)


def test_b21_a_replay_is_no_refusal_of_the_device(app: Application, pi: Pi) -> None:
    """Whoever sends an old assertion again writes nothing into the device that signed it."""
    body = pi.form()
    assert [ask(app, body).status for _ in range(2)] == [200, 400]
    assert Device.objects.get().refused_at is None


def test_what_cannot_be_used_is_noted_once_a_minute(app: Application, pi: Pi) -> None:
    """An old assertion can be sent by anybody as often as they like; the disk does not learn of each."""
    now = int(time.time())
    for age, kept in ((30, True), (90, False)):
        Device.objects.update(refused_at=now - age, refused_reason="before")
        assert ask(app, pi.form(pi.assertion(iat=1, exp=61))).status == 400
        assert (Device.objects.get().refused_reason == "before") is kept, age


@pytest.mark.parametrize("status", ["pending", "quarantined", "revoked", "rejected"])
def test_b19_another_board_is_an_alarm_for_approved_devices_only(app: Application, pi: Pi, status: str) -> None:
    """For the others it would change nothing, and anybody with a revoked key could fill the log."""
    body = pi.form(pi.assertion(board=BOARD | {"serial": "00000000deadbeef"}))
    Device.objects.update(status=status)
    assert ask(app, body).status == 400
    assert (Device.objects.get().flag, AuditEvent.objects.filter(action="device.board-changed").count()) == ("", 0)


def test_rs09_a_server_that_starts_in_the_past_hands_out_nothing(app: Application, pi: Pi) -> None:
    """503 while its clock is behind the newest token in the database, also when this process has issued none yet."""
    now = int(time.time())
    Device.objects.update(auth_at=now + 3600)
    late = Application(load_authority(SETTINGS, now=now))
    try:
        reply = ask(late, pi.form())
        assert reply.status == 503 and "behind the newest token" in reply.json["error_description"]
    finally:
        late.close()


@pytest.fixture
def limited(app: Application, authority: Authority) -> Iterator[Application]:
    """An application with narrow limits: 20 requests of an address, 3 tokens of a device."""
    limits = Limits(requests=Limit(rate=0.01, burst=20), registrations=Limit(1, 100), device=Limit(rate=0.01, burst=3))
    application = Application(dataclasses.replace(authority, limits=limits))
    yield application
    application.close()


def test_b29_a_device_that_asks_too_often_is_slowed(limited: Application, pi: Pi) -> None:
    """429 with Retry-After, and the assertion is not spent by it."""
    assert [ask(limited, pi.form()).status for _ in range(3)] == [200, 200, 200]
    before = UsedAssertion.objects.count()
    reply = ask(limited, pi.form())
    assert (reply.status, reply.json["error"]) == (429, "slow_down")
    assert int(reply.headers["retry-after"]) > 0
    assert UsedAssertion.objects.count() == before


@pytest.mark.parametrize("status", ["pending", "revoked"])
def test_b29_a_device_that_is_turned_away_is_slowed_too(limited: Application, pi: Pi, status: str) -> None:
    """Every assertion it signs costs a write, so its share is that of any other."""
    Device.objects.update(status=status)
    assert [ask(limited, pi.form()).status for _ in range(4)] == [400, 400, 400, 429]


def test_b29_forgeries_do_not_use_up_a_device(limited: Application, pi: Pi) -> None:
    """Only what a device signed counts against it; replays of it do not either."""
    thief = Pi(client_id=pi.client_id)
    body = pi.form()
    assert ask(limited, body).status == 200
    for _ in range(6):
        assert ask(limited, pi.form(thief.assertion(header={"kid": pi.public.kid}))).status == 400
        assert ask(limited, body).status == 400
    assert ask(limited, pi.form()).status == 200


def test_b29_an_address_that_asks_too_often_is_slowed(limited: Application) -> None:
    """The limit of an address comes before anything that costs."""
    replies = [ask(limited, b"") for _ in range(21)]
    assert [reply.status for reply in replies] == [400] * 20 + [429]


@pytest.fixture
def locked() -> Iterator[None]:
    """Another process holds the write lock of the database."""
    other = sqlite3.connect(SETTINGS.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.rollback()
    other.close()


@pytest.mark.skipif(bool(SETTINGS.database_url), reason="it is a lock of SQLite")
def test_rs01_a_locked_database_is_a_503(app: Application, pi: Pi, locked: None) -> None:
    """RS-01, RS-02: no token without a durable record, and never a 500."""
    reply = ask(app, pi.form())
    assert (reply.status, reply.json["error"]) == (503, "temporarily_unavailable")
    assert 2 <= int(reply.headers["retry-after"]) <= 10


@pytest.mark.skipif(bool(SETTINGS.database_url), reason="it is a lock of SQLite")
def test_rs01_service_goes_on_after_the_lock(app: Application, pi: Pi) -> None:
    """The same assertion is good once the database can be written to again: it was not spent."""
    body = pi.form()
    other = sqlite3.connect(SETTINGS.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert ask(app, body).status == 503
    other.rollback()
    other.close()
    assert ask(app, body).status == 200


def test_a_claim_that_the_database_refuses_fails_alone(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were in its transaction are served all the same, and each assertion is spent once."""
    pis = [approve(app, Pi(board=None)) for _ in range(3)]
    decide = grants._decide

    def stumble(claim: grants.Claim, *more: Any) -> Any:
        if claim.verified.issuer == pis[1].client_id:
            raise DataError("a value that does not fit")
        return decide(claim, *more)

    monkeypatch.setattr(grants, "_decide", stumble)
    requests, now = [Request("POST", pi.form(), FORM) for pi in pis], int(time.time())
    claims = [
        each for each in grants.read(requests, now=now, authority=app.authority) if isinstance(each, grants.Claim)
    ]
    assert [reply.status for reply in grants.settle(claims, now=now, authority=app.authority)] == [200, 503, 200]
    monkeypatch.undo()
    assert [ask(app, request.body).status for request in requests] == [400, 200, 400]


def test_b31_an_enrollment_proof_buys_no_token(app: Application, pi: Pi) -> None:
    """One table of used statements for all of them, and a typ for each (requirement B-31)."""
    proof = pi.proof("nonce", iss=pi.client_id, sub=pi.client_id)
    assert ask(app, pi.form(proof)).json["error"] == "invalid_grant"
    issuers = UsedAssertion.objects.values_list("issuer", flat=True)
    assert any(issuer.startswith("urn:ietf:params:oauth:jwk-thumbprint") for issuer in issuers)
