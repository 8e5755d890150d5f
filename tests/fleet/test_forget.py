"""Forgetting a device: off the list for good, refused like a stranger, and still in the audit log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.browser import Browser
from fleet.live import LiveFleet
from fleet.support import Pi, ask, register
from fleet.test_changes import devices, post
from pi_agent.fleet import audit, changes, database
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import AuditEvent, Device, DeviceBoot, DeviceKey, DeviceTag, UsedAssertion
from pi_agent.fleet.output import utc
from pi_agent.fleet.registry import rfc3339


def revoke(pi: Pi) -> None:
    """As an operator does, and half an hour ago."""
    Device.objects.filter(client_id=pi.client_id).update(status="revoked", token_until=int(time.time()) - 1)


def test_only_who_was_turned_away_and_holds_no_token_is_forgotten(app: Application) -> None:
    """The others stay and are counted, with the end of the last token that keeps one of them, in preview and change."""
    now = int(time.time())
    gone = [*devices(1, status="rejected"), *devices(1, status="revoked", token_until=now - 1)]
    kept = [device for status in ("pending", "approved", "quarantined") for device in devices(1, status=status)]
    kept += [
        *devices(1, status="revoked", token_until=now + 600),
        *devices(1, status="approved", token_until=now + 900),
    ]
    wish: dict[str, Any] = {"query": "id:*", "reason": "sold", "max": 9}
    for dry_run in (True, False):
        answer = post(app, "forget", **wish, dry_run=dry_run).json
        assert (answer["matched"], answer["count"], answer["status"]) == (7, 2, "forgotten")
        assert {each["id"] for each in answer["changed"]} == {each.client_id for each in gone}
        assert answer["stays"] == {"pending": 1, "approved": 2, "quarantined": 1, "revoked": 1}
        assert answer["tokens_until"] == rfc3339(now + 600)
    assert set(Device.objects.all()) == set(kept)


def test_who_is_forgotten_by_id_is_unknown_only_when_it_is_sent_again(app: Application) -> None:
    """The answer about devices that were there a moment ago does not call them unknown."""
    ids = [each.client_id for each in devices(2, status="rejected")]
    first = post(app, "forget", ids=ids, reason="sold").json
    assert (first["matched"], first["count"], first["unknown"]) == (2, 2, [])
    again = post(app, "forget", ids=ids, reason="sold").json
    assert (again["matched"], again["count"], again["unknown"]) == (0, 0, ids)


def test_its_rows_go_and_its_lines_stay(app: Application, pi: Pi) -> None:
    """Keys, tags and boots are deleted; the log has who it was, why it went, and is whole."""
    device = Device.objects.get()
    DeviceTag.objects.create(device=device, tag="lab", tag_key="lab")
    DeviceBoot.objects.create(device=device, boot="b", first_at=1, last_at=2, source="::1")
    revoke(pi)
    before = set(AuditEvent.objects.filter(device=pi.client_id).values_list("pk", flat=True))
    assert post(app, "forget", query=f"id:{pi.client_id}", reason="sold").json["count"] == 1
    assert not any(model._default_manager.exists() for model in (Device, DeviceKey, DeviceTag, DeviceBoot))
    lines = AuditEvent.objects.filter(device=pi.client_id)
    assert before and before < set(lines.values_list("pk", flat=True))
    detail = json.loads(lines.get(action="device.forget").detail)
    assert detail.pop("request")
    assert detail == {
        "from": "revoked",
        "to": "forgotten",
        "reason": "sold",
        "name": "kitchen",
        "serial": device.serial,
        "kids": [pi.public.kid],
    }
    assert audit.verify() is None


def test_what_it_signs_is_refused_as_a_strangers(app: Application, pi: Pi) -> None:
    """Also what was used before, is too old or is meant for somebody else, which the server knows its key well enough to see."""
    stranger = Pi(client_id="pi-0000000000000000")
    used = pi.form()
    assert ask(app, used).status == 200
    revoke(pi)
    assert post(app, "forget", query=f"id:{pi.client_id}", reason="sold").json["count"] == 1
    assert UsedAssertion.objects.filter(issuer=pi.client_id).exists()  # as long as before
    expected = ask(app, stranger.form())
    assert (ask(app, used).status, ask(app, used).body) == (400, expected.body)
    old = int(time.time()) - 3600
    kinds: list[dict[str, Any]] = [{}, {"iat": old, "exp": old + 60}, {"aud": "https://other.example"}]
    for more in [*kinds, {"header": {"typ": "x"}}]:
        reply, expected = (ask(app, one.form(one.assertion(**more))) for one in (pi, stranger))
        assert (reply.status, reply.body) == (400, expected.body), more


def test_its_key_may_come_back_as_another_device(app: Application, pi: Pi) -> None:
    """It waits for approval, like everybody new."""
    before = pi.client_id
    revoke(pi)
    assert post(app, "forget", query=f"id:{pi.client_id}", reason="sold").json["count"] == 1
    assert register(app, pi).status == 201
    assert pi.client_id != before and Device.objects.get().status == "pending"


def test_who_is_taken_back_between_two_steps_stays(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many are forgotten in steps; a device that somebody approved meanwhile is none of them."""
    monkeypatch.setattr(changes, "BATCH", 2)
    last = sorted(devices(5, status="rejected"), key=lambda device: device.client_id)[-1]
    taken = Device.objects.filter(pk=last.pk)
    monkeypatch.setattr(database, "give_way", lambda since, share: taken.update(status="approved"))
    done = post(app, "forget", query="id:*", max=5, reason="x").json
    assert (done["count"], done["stays"], list(Device.objects.all())) == (4, {"approved": 1}, [last])
    assert AuditEvent.objects.filter(action="device.forget").count() == 4 and audit.verify() is None


def test_a_page_forgets_a_device(browser: Browser, app: Application) -> None:
    """Its button is there once its last token has ended; then the list says so, and the page of the device is gone."""
    (device,) = devices(1, status="revoked", token_until=int(time.time()) + 600)
    path, button = f"/devices/{device.client_id}", 'value="forget"'
    browser.get(path)
    assert button not in browser.page
    Device.objects.update(token_until=int(time.time()) - 1)
    browser.get(path)
    assert button in browser.page
    reply = browser.post(path, action="forget", reason="sold", version=browser.field("version"))
    assert (reply.status, reply.headers["location"]) == (302, "/devices")
    browser.get("/devices")
    assert f"{device.name} is forgotten" in browser.page
    assert browser.get(path).status == 404


def test_the_list_forgets_what_was_looked_at(browser: Browser, app: Application) -> None:
    """As it does everything else; and says until when a token keeps what stays."""
    until = int(time.time()) + 600
    devices(1, status="rejected")
    (kept,) = devices(1, status="revoked", token_until=until)
    browser.get("/devices")
    assert browser.post("/devices/act", query="id:*", action="forget").status == 200
    assert f"work until {utc(str(rfc3339(until)))}" in browser.page
    assert "1 is revoked, with a token that has not ended" in browser.page
    fields = {name: browser.field(name) for name in ("selection", "expected")}
    done = browser.post("/devices/act", query="id:*", action="forget", reason="sold", count="1", **fields)
    assert (done.status, list(Device.objects.all())) == (302, [kept])


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveFleet]:
    server = LiveFleet(tmp_path / "data")
    yield server
    server.stop()


def test_the_command_forgets_and_says_when_it_cannot_yet(live: LiveFleet) -> None:
    """Exit code 6 and a time, as long as a token may work; and the name of whoever is forgotten."""
    pi = live.enroll(board=None)
    wish = ("forget", pi.client_id, "--yes", "--reason", "sold")
    assert live.ask(pi.form()).status == 200
    early = live.cli(*wish)
    assert (early.returncode, "nothing to do: 1 is approved" in early.stderr) == (6, True)
    assert live.cli("revoke", pi.client_id, "--yes", "--reason", "sold").returncode == 0
    early = live.cli(*wish)
    assert early.returncode == 6 and "1 is revoked, with a token that has not ended" in early.stderr
    assert "work until" in early.stderr
    other = live.enroll(board=None, approved=False, name="attic")
    assert live.cli("reject", other.client_id, "--yes", "--reason", "not ours").returncode == 0
    assert "pi-fleet forget" in live.cli("device", other.client_id).stdout
    done = live.cli("forget", other.client_id, "--yes", "--reason", "not ours", "--json")
    answer = json.loads(done.stdout)
    assert (answer["count"], answer["changed"][0]["status"]) == (1, "forgotten"), done.stderr
    assert live.cli("device", other.client_id).returncode == 3
    assert "device.forget" in live.cli("audit", f"device:{other.client_id}").stdout
