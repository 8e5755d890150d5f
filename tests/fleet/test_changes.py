"""Many devices at once: exactly those that were shown, once, with a reason. Requirements D-12, D-13; NetBox 7445."""

from __future__ import annotations

import json
import secrets
import time
from contextlib import suppress
from typing import Any

import pytest
from django.db import OperationalError, connection

from fleet.support import Reply, rest
from pi_agent.errors import ConflictError
from pi_agent.fleet import access, audit, changes, database, output
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.models import AuditEvent, Device, DeviceTag
from pi_agent.fleet.output import utc
from pi_agent.fleet.registry import rfc3339


def devices(number: int, **values: Any) -> list[Device]:
    made = []
    for _ in range(number):
        name = f"pi-{secrets.token_hex(8)}"
        row = {"client_id": name, "name": name, "name_key": name, "created_at": int(time.time()) - 100} | values
        made.append(Device.objects.create(**row))
    return made


def post(app: Application, path: str, headers: dict[str, str] | None = None, **members: Any) -> Reply:
    return rest(app, "POST", f"/devices/{path}", members, **(headers or {}))


def test_a_selection_is_exactly_what_was_shown(app: Application) -> None:
    """If one device leaves the query and another one comes, their number is the same, and still nothing is changed."""
    first, _ = devices(2)
    shown = post(app, "approve", query="status:pending", dry_run=True).json
    first.status = "rejected"
    first.save()
    devices(1)
    reply = post(app, "approve", query="status:pending", selection=shown["selection"], reason="all")
    assert (reply.status, Device.objects.filter(status="approved").count()) == (409, 0)
    assert AuditEvent.objects.get().result == "refused"
    again = post(app, "approve", query="status:pending", dry_run=True).json
    done = post(app, "approve", query="status:pending", selection=again["selection"], reason="all").json
    assert (done["count"], Device.objects.filter(status="approved").count()) == (2, 2)


def test_ages_count_from_the_preview(app: Application) -> None:
    """What was older than a day when it was shown is what is changed, also a second later; an hour later it is too old."""
    devices(1, auth_at=int(time.time()) - 86401)
    shown = post(app, "approve", query="auth:older:1d", dry_run=True).json["selection"]
    seconds, _, rest = shown.partition("-")
    stale = f"{int(seconds) - 3700}-{rest}"
    for bad in (stale, f"{int(seconds) + 99}-{rest}", "x-1-y", "9" * 70):
        assert post(app, "approve", query="auth:older:1d", selection=bad, reason="x").status == 409
    assert post(app, "approve", query="auth:older:1d", selection=shown, reason="x").json["count"] == 1


def test_by_ids_only_these(app: Application) -> None:
    """Ids name devices; a query beside them, or too many, is refused."""
    one, two, _ = devices(3)
    done = post(app, "approve", ids=[one.client_id, two.client_id], reason="these").json
    assert (done["count"], Device.objects.filter(status="approved").count()) == (2, 2)
    assert post(app, "approve", ids=[one.client_id], query="id:*", reason="x").status == 400
    assert post(app, "approve", ids=["x"] * 1001, reason="x").status == 400


@pytest.mark.parametrize("action", ["approve", "reject", "quarantine", "release", "revoke", "forget"])
def test_an_action_needs_a_reason(app: Application, action: str) -> None:
    """Without one nothing changes."""
    devices(1)
    assert post(app, action, query="id:*").status == 400
    assert Device.objects.get().status == "pending"


def test_the_audit_line_has_before_and_after(app: Application) -> None:
    """Who, what, from which status to which, why, and by which request (D-12)."""
    (device,) = devices(1)
    reply = post(app, "approve", query="id:*", reason="kitchen")
    detail = json.loads(AuditEvent.objects.get().detail)
    assert detail == {
        "from": "pending",
        "to": "approved",
        "reason": "kitchen",
        "request": reply.headers["x-request-id"],
    }
    assert AuditEvent.objects.get().device == device.client_id


def test_d13_two_operators_do_not_undo_each_other(app: Application) -> None:
    """If-Match with the ETag that was read: 412 once somebody else has changed the device; its contacts change nothing."""
    (device,) = devices(1)
    read = rest(app, "GET", f"/devices/{device.client_id}")
    Device.objects.update(seen_at=int(time.time()))
    assert (
        post(app, "approve", {"if-match": read.headers["etag"]}, query=f"id:{device.client_id}", reason="a").status
        == 200
    )
    late = post(app, "revoke", {"if-match": read.headers["etag"]}, query=f"id:{device.client_id}", reason="b")
    assert (late.status, Device.objects.get().status) == (412, "approved")


@pytest.mark.parametrize(("given", "status"), [("*", 200), ('""', 412), ("", 412), ('"other"', 412), ("**", 412)])
def test_d13_a_condition_is_never_passed_over(app: Application, given: str, status: int) -> None:
    """A star holds for a device that is there, and for none that is not (RFC 9110 section 13.1.1); nothing is no ETag."""
    (device,) = devices(1)
    assert post(app, "approve", {"if-match": given}, query=f"id:{device.client_id}", reason="a").status == status
    assert Device.objects.get().status == ("approved" if status == 200 else "pending")
    assert post(app, "approve", {"if-match": given}, query="id:nobody", reason="a").status == 412


def test_ids_that_no_device_has_are_named(app: Application) -> None:
    """Each once, in a preview and in the change; the devices that are there are changed."""
    (device,) = devices(1)
    ids = ["pi-gone", device.client_id, "pi-lost", "pi-gone"]
    actions: dict[str, dict[str, Any]] = {"approve": {}, "tag": {"add": ["x"]}, "rotate-key": {}}
    for path, more in actions.items():
        for dry_run in (True, False):
            answer = post(app, path, ids=ids, reason="x", dry_run=dry_run, **more).json
            assert (answer["matched"], answer["unknown"]) == (1, ["pi-gone", "pi-lost"])
    assert post(app, "approve", query="id:*", reason="x").json["unknown"] == []


def test_the_same_request_twice_is_done_once(app: Application) -> None:
    """An Idempotency-Key gives the first answer again; for another request it is refused; errors are remembered, too."""
    devices(1)
    key = {"idempotency-key": "k1"}
    first = post(app, "approve", key, query="id:*", reason="x")
    second = post(app, "approve", key, query="id:*", reason="x")
    assert first.body == second.body and second.headers["idempotency-replayed"] == "true"
    assert AuditEvent.objects.count() == 1
    assert post(app, "reject", key, query="id:*", reason="x").status == 422
    assert post(app, "approve", {"idempotency-key": "x" * 65}, query="id:*", reason="x").status == 400


def test_a_preview_keeps_nobody_waiting(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under an Idempotency-Key, as the command line has it: no transaction, which would be SQLite's only one."""
    devices(2)
    alone: list[bool] = []
    preview = changes.preview

    def watched(*asked: Any, **more: Any) -> changes.Change:
        alone.append(connection.in_atomic_block)
        return preview(*asked, **more)

    monkeypatch.setattr(changes, "preview", watched)
    key = {"idempotency-key": "k4"}
    assert post(app, "approve", key, query="id:*", dry_run=True).json["count"] == 2
    assert alone == [False]
    assert post(app, "approve", key, query="id:*", reason="x", max=2).json["count"] == 2


def test_a_refusal_for_who_asked_is_not_remembered(app: Application) -> None:
    """A key that a reader used in vain is free for an admin; and what an admin did is not answered to a reader."""
    access.ensure_operator("ann", "admin", by="test", now=1)
    bearers = [
        access.make_token("ann", role, seconds=3600, note="", actor=Actor("me", "test"), now=int(time.time()))[0]
        for role in ("reader", "admin", "reader")
    ]
    devices(1)
    key = {"idempotency-key": "k3"}
    found = [
        post(app, "approve", key | {"authorization": f"Bearer {bearer}"}, query="id:*", reason="x", max=9).status
        for bearer in bearers
    ]
    assert found == [403, 200, 422]


def test_a_secret_is_not_remembered(app: Application) -> None:
    """D-04: an answer with a token in it is not kept, so the same key makes another token."""
    key = {"idempotency-key": "k2"}
    made = [rest(app, "POST", "/enrollment-tokens", {}, **key).json["token"] for _ in range(2)]
    from pi_agent.fleet.models import RememberedAnswer

    assert made[0] != made[1] and not RememberedAnswer.objects.exists()


def test_what_has_not_changed_is_not_sent_again(app: Application) -> None:
    """304 for the ETag of before; another answer once a device has changed."""
    devices(1)
    first = rest(app, "GET", "/devices?query=auth:never")
    known = {"if-none-match": first.headers["etag"]}
    assert rest(app, "GET", "/devices?query=auth:never", **known).status == 304
    devices(1)
    assert rest(app, "GET", "/devices?query=auth:never", **known).status == 200


def test_tags_are_given_and_taken(app: Application) -> None:
    """By query, once each, without regard to case; and what is no tag is refused."""
    devices(2)
    assert post(app, "tag", query="id:*", max=2, add=["Kiosk", "hall"], reason="x").json["count"] == 2
    assert post(app, "tag", query="tag:kiosk", max=2, remove=["KIOSK"], add=["lab"], reason="x").json["count"] == 2
    assert sorted(DeviceTag.objects.values_list("tag", flat=True)) == ["hall", "hall", "lab", "lab"]
    wrong: list[dict[str, Any]] = [
        {"add": ["a\nb"]},
        {"add": [" x"]},
        {},
        {"add": ["x"], "remove": ["x"]},
        {"add": ["a,b"]},
        {"add": ["-lab"]},
        {"add": ["x" * 65]},
    ]
    for bad in wrong:
        assert post(app, "tag", query="id:*", max=2, reason="x", **bad).status == 400
        assert post(app, "tag", query="id:*", dry_run=True, **bad).status == 400, "the preview says so, too"
    assert audit.verify() is None


def test_only_what_becomes_of_tags_is_logged(app: Application) -> None:
    """A tag that is there already is not given, one that is not there is not taken; the preview knows."""
    one, two = devices(2)
    DeviceTag.objects.create(device=one, tag="Kiosk", tag_key="kiosk")
    wish: dict[str, Any] = {"query": "id:*", "add": ["kiosk"], "remove": ["absent"], "reason": "x"}
    shown = post(app, "tag", **wish, dry_run=True).json
    done = post(app, "tag", **wish, max=2).json
    assert [each["id"] for answer in (shown, done) for each in answer["changed"]] == [two.client_id] * 2
    assert (done["matched"], done["count"], done["stays"]) == (2, 1, {"tagged": 1})
    assert json.loads(AuditEvent.objects.get(action="device.tag").detail)["removed"] == []
    assert post(app, "tag", **wish, max=2).json["count"] == 0
    assert AuditEvent.objects.filter(action="device.tag").count() == 1


def test_a_tag_can_be_written_in_another_way(app: Application) -> None:
    """The same tag given and taken, but for its case, is written as it is given."""
    (one,) = devices(1)
    DeviceTag.objects.create(device=one, tag="Kiosk", tag_key="kiosk")
    done = post(app, "tag", query="id:*", add=["kiosk"], remove=["Kiosk"], reason="x").json
    assert (done["count"], DeviceTag.objects.get().tag) == (1, "kiosk")
    assert post(app, "tag", query="id:*", add=["kiosk"], remove=["Kiosk"], reason="x").json["count"] == 0


def test_a_device_is_given_a_name(app: Application) -> None:
    """One at a time, found by the name from then on, with a line that has both names; and the device keeps it."""
    one, two = devices(2)
    for text in ("", " x", "a\nb", "x" * 65):
        assert post(app, "rename", query=f"id:{one.client_id}", name=text).status == 400
    assert post(app, "rename", query="id:*", name="hall").status == 409
    done = post(app, "rename", query=f"id:{one.client_id}", name="Hall", reason="moved").json
    assert (done["count"], done["changed"][0]["name"], done["changed"][0]["status"]) == (1, "Hall", "pending")
    assert json.loads(AuditEvent.objects.get(action="device.rename", result="done").detail)["from"] == one.client_id
    assert post(app, "rename", query="name:hall", name="Hall").json["stays"] == {"named so": 1}
    assert post(app, "rename", query="name:hall", name="attic").json["count"] == 1
    two.refresh_from_db()
    assert (two.name, audit.verify()) == (two.client_id, None)


def test_many_are_changed_in_steps(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them everybody else can write, and what they did stays."""
    monkeypatch.setattr(changes, "BATCH", 2)
    last = sorted(devices(5), key=lambda device: device.client_id)[-1]
    waits = []

    def somebody_else(since: float, share: int) -> None:
        assert not connection.in_atomic_block
        waits.append(Device.objects.filter(pk=last.pk).update(status="revoked"))

    monkeypatch.setattr(database, "give_way", somebody_else)
    done = post(app, "approve", query="id:*", max=5, reason="all").json
    assert (done["matched"], done["count"], len(done["changed"]), done["stays"]) == (5, 4, 4, {"revoked": 1})
    assert (len(waits), Device.objects.filter(status="approved").count()) == (2, 4)
    assert AuditEvent.objects.filter(action="device.approve").count() == 4 and audit.verify() is None


@pytest.mark.parametrize(("failures", "status", "approved"), [(2, 200, 5), (3, 409, 2)])
def test_a_step_that_fails_is_tried_again(
    app: Application, monkeypatch: pytest.MonkeyPatch, failures: int, status: int, approved: int
) -> None:
    """A database that is only busy is asked again; where it stays so, the answer says how far the change came."""
    monkeypatch.setattr(changes, "BATCH", 2)
    devices(5)
    record, left = audit.record, [failures]

    def sometimes(events: Any, **more: Any) -> None:
        if Device.objects.filter(status="approved").count() > 2 and left[0]:
            left[0] -= 1
            raise OperationalError("database is locked")
        record(events, **more)

    monkeypatch.setattr(audit, "record", sometimes)
    reply = post(app, "approve", query="id:*", max=5, reason="all")
    assert (reply.status, Device.objects.filter(status="approved").count()) == (status, approved)
    assert status == 200 or "when 2 of 5 devices were approved" in reply.json["detail"]
    assert AuditEvent.objects.filter(action="device.approve").count() == approved and audit.verify() is None


def test_who_decides_between_two_steps_has_decided(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """An approval of many, which also takes back rejections, takes back none that came while it was under way."""
    monkeypatch.setattr(changes, "BATCH", 2)
    last = sorted(devices(3), key=lambda device: device.client_id)[-1]

    def reject(since: float, share: int) -> None:
        Device.objects.filter(pk=last.pk).update(status="rejected")

    monkeypatch.setattr(database, "give_way", reject)
    done = post(app, "approve", query="id:*", max=3, reason="all").json
    last.refresh_from_db()
    assert (done["count"], done["stays"], last.status) == (2, {"rejected": 1}, "rejected")


def test_one_change_of_many_at_a_time(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one is told to come back, and has changed nothing; one of few goes on."""
    monkeypatch.setattr(changes, "BATCH", 2)
    devices(3)
    answers: list[object] = []

    def meanwhile(since: float, share: int) -> None:
        one = Device.objects.order_by("client_id").first()
        assert one is not None
        with suppress(ConflictError):
            changes.tag(
                changes.Chosen("id:*", most=9), add=["x"], remove=[], reason="", actor=Actor("b", "test"), now=1
            )
            answers.append("both")
        few = changes.Chosen(f"id:{one.client_id}", most=9)
        answers.append(changes.tag(few, add=["y"], remove=[], reason="", actor=Actor("b", "test"), now=1).count)

    monkeypatch.setattr(database, "give_way", meanwhile)
    assert post(app, "approve", query="id:*", max=3, reason="all").json["count"] == 3
    assert (answers, list(DeviceTag.objects.values_list("tag", flat=True))) == ([1], ["y"])
    monkeypatch.setattr(database, "give_way", lambda since, share: None)
    assert post(app, "tag", query="id:*", max=3, add=["x"], reason="").json["count"] == 3


def test_under_a_key_the_database_fails_as_a_whole(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """503, and nothing has changed: it is one transaction, however many steps it would be without the key."""
    monkeypatch.setattr(changes, "BATCH", 2)
    devices(3)

    def fail(*events: Any, **more: Any) -> None:
        raise OperationalError("the disk is full")

    monkeypatch.setattr(audit, "record", fail)
    reply = post(app, "approve", {"idempotency-key": "k3"}, query="id:*", max=3, reason="all")
    assert (reply.status, Device.objects.filter(status="approved").count()) == (503, 0)


def test_what_is_done_once_is_done_in_one_step(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under an Idempotency-Key a change is whole or not there, so it is of a thousand devices at most."""
    monkeypatch.setattr(changes, "BATCH", 2)
    monkeypatch.setattr(changes, "MAX_IDS", 3)
    devices(4)
    key = {"idempotency-key": "k1"}
    reply = post(app, "approve", key, query="id:*", max=4, reason="all")
    assert reply.status == 409 and "Idempotency-Key" in reply.json["detail"]
    names = list(Device.objects.values_list("client_id", flat=True))[:3]
    assert post(app, "approve", {"idempotency-key": "k2"}, ids=names, reason="all").json["count"] == 3
    assert Device.objects.filter(status="approved").count() == 3


def test_c02_who_turns_a_device_away_is_told_how_long_its_last_token_works(app: Application) -> None:
    """The latest end of the tokens of those that are turned away, before and after, and at the device; none for others."""
    now = int(time.time())
    devices(1, status="approved", token_until=now + 700)
    (last,) = devices(1, status="approved", token_until=now + 900)
    devices(1, status="revoked", token_until=now + 5000)
    shown = post(app, "quarantine", query="id:*", dry_run=True).json
    done = post(app, "quarantine", query="id:*", selection=shown["selection"], reason="lost").json
    assert shown["tokens_until"] == done["tokens_until"] == rfc3339(now + 900)
    card = rest(app, "GET", f"/devices/{last.client_id}").json
    assert f"Tokens:        tokens handed out before work until {utc(done['tokens_until'])}" in output.card(card, now)
    assert "Tokens:" not in output.card(card, now + 900)
    assert post(app, "release", query="id:*", dry_run=True).json["tokens_until"] is None
