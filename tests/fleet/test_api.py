"""REST under /api/v1: who gets in, what comes out, what it refuses. Requirements D-01, D-03, D-04, D-09, D-12, D-13."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from ninja import NinjaAPI

from fleet.conftest import approve
from fleet.support import BOARD, ME, Pi, Reply, ask, exchange, register, rest
from pi_agent.fleet import audit
from pi_agent.fleet.api import NO_OBJECT
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import AccessRule, AuditEvent, Device

CHANGES = ("approve", "reject", "quarantine", "release", "revoke")


def get(app: Application, path: str, client: tuple[str, int] = ME, **headers: str) -> Reply:
    return rest(app, "GET", path, None, client, **headers)


def post(app: Application, path: str, members: Any, client: tuple[str, int] = ME, **headers: str) -> Reply:
    return rest(app, "POST", path, json.dumps(members).encode(), client, **headers)  # also null is a body


def problem(reply: Reply, status: int) -> str:
    """The detail of a problem answer (RFC 9457)."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    return str(reply.json["detail"])


def test_the_list_says_what_it_lists(app: Application, pi: Pi) -> None:
    """Schema, meaning, time, items, cursor, total; a device with board, key and times."""
    answer = get(app, "/devices?query=model:2b%20memory:1gb").json
    assert list(answer) == ["schema", "meaning", "as_of", "items", "next", "total"]
    assert (answer["schema"], answer["meaning"]) == ("pi-fleet.devices/1", "model is 2B, memory is 1 GiB")
    assert (answer["next"], answer["total"]) == (None, 1)
    device = answer["items"][0]
    assert {name: device[name] for name in BOARD} == BOARD
    assert (device["id"], device["status"], device["key"], device["auth"]) == (pi.client_id, "approved", "file", None)
    assert device["keys"][0]["kid"] == pi.public.kid


def test_the_headline_question(app: Application, pi: Pi) -> None:
    """Which Pi 2 boards with 1 GB authenticated in the past day?"""
    question = "/devices?query=model:2b+memory:1gb+auth:1d"
    assert get(app, question).json["items"] == []
    assert ask(app, pi.form()).status == 200
    assert [device["id"] for device in get(app, question).json["items"]] == [pi.client_id]


def test_one_device_with_its_history(app: Application, pi: Pi) -> None:
    """The same members, and the newest audit lines first."""
    post(app, "/devices/quarantine", {"query": f"id:{pi.client_id}", "reason": "seen twice"})
    device = get(app, f"/devices/{pi.client_id}").json
    assert (device["schema"], device["status"], device["status_reason"]) == (
        "pi-fleet.device/1",
        "quarantined",
        "seen twice",
    )
    actions = [event["action"] for event in device["events"]]
    assert actions[0].startswith("device.quarantine") and actions[-1] == "device.enrolled"
    assert "no such device" in problem(get(app, "/devices/pi-0000000000000000"), 404)


def test_a_bad_query_is_explained(app: Application) -> None:
    """Where it is wrong, and one that would work; never an empty list."""
    reply = get(app, "/devices?query=modle:2b")
    assert "modle" in problem(reply, 400)
    assert (reply.json["position"], reply.json["suggestion"]) == (0, "model:2b")


@pytest.mark.parametrize(
    "parameters", ["limit=0", "limit=100000", "limit=x", "sort=password", "sort=--id", "cursor=AAAA", "cursor=%00"]
)
def test_d09_pages_and_orders_are_bounded(app: Application, parameters: str) -> None:
    """Page sizes are capped, sort columns come from a list, a cursor is one of ours."""
    problem(get(app, f"/devices?{parameters}"), 400)


@pytest.mark.parametrize("sort", ["id", "-id", "name", "-auth", "memory", "-serial", "created", "status"])
def test_pages_hold_every_device_once(app: Application, sort: str) -> None:
    """In any order, unknown values included, also when a device goes away between two pages."""
    names = ["a", "b", "b", "c"]
    for number, name in enumerate(names * 2):
        board = BOARD | {"serial": f"{number:016x}", "memory_mib": [None, 512, 1024][number % 3]}
        register(app, Pi(board=board if number % 4 else None), client_name=name)
    want = set(Device.objects.values_list("client_id", flat=True))
    seen: list[str] = []
    cursor = ""
    while True:
        answer = get(app, f"/devices?sort={sort}&limit=3" + (f"&cursor={cursor}" if cursor else "")).json
        seen += [device["id"] for device in answer["items"]]
        assert answer["total"] == 8
        cursor = answer["next"]
        if not cursor:
            break
        if len(seen) == 3:
            Device.objects.filter(client_id=seen[0]).delete()
    assert len(seen) == len(set(seen)) == 8 and set(seen) == want


def test_a_cursor_belongs_to_its_query(app: Application) -> None:
    """With another query or order it is refused, not misread."""
    for _ in range(3):
        register(app, Pi(board=None))
    cursor = get(app, "/devices?limit=1").json["next"]
    assert get(app, f"/devices?limit=1&cursor={cursor}").status == 200
    problem(get(app, f"/devices?limit=1&cursor={cursor}&query=model:2b"), 400)
    problem(get(app, f"/devices?limit=1&cursor={cursor}&sort=-id"), 400)


@pytest.mark.parametrize(
    ("change", "before", "after"),
    [
        ("approve", "pending", "approved"), ("approve", "rejected", "approved"), ("reject", "pending", "rejected"),
        ("quarantine", "approved", "quarantined"), ("release", "quarantined", "approved"), ("revoke", "approved", "revoked"),
        ("revoke", "pending", "revoked"), ("approve", "revoked", "revoked"), ("release", "revoked", "revoked"),
        ("approve", "quarantined", "quarantined"), ("reject", "approved", "approved"), ("quarantine", "pending", "pending"),
    ],
)  # fmt: skip
def test_a_change_starts_where_it_may(app: Application, pi: Pi, change: str, before: str, after: str) -> None:
    """From one status to another, or not at all; nothing leads back from revoked. Twice is once (requirement D-13)."""
    Device.objects.update(status=before)
    lines = AuditEvent.objects.count()
    for _ in range(2):
        answer = post(app, f"/devices/{change}", {"query": f"id:{pi.client_id}", "reason": "because"}).json
        assert (answer["matched"], Device.objects.get().status) == (1, after)
    assert AuditEvent.objects.count() - lines == (before != after)


def test_a_change_of_more_than_expected_changes_nothing(app: Application) -> None:
    """``max`` is 1 unless said; the refusal says how many there are, and is in the audit log (NetBox 7445)."""
    for _ in range(3):
        register(app, Pi(board=None))
    reply = post(app, "/devices/approve", {"query": "status:pending", "reason": "all"})
    assert "3 devices match" in problem(reply, 409)
    assert Device.objects.filter(status="pending").count() == 3
    assert AuditEvent.objects.get(result="refused").action == "device.approve"
    assert (
        len(post(app, "/devices/approve", {"query": "status:pending", "max": 3, "reason": "all"}).json["changed"]) == 3
    )
    assert audit.verify() is None


def test_a_dry_run_changes_nothing(app: Application, pi: Pi) -> None:
    """It says which devices would change, as they are now, and what they would become."""
    answer = post(app, "/devices/revoke", {"query": "id:*", "dry_run": True}).json
    assert [(device["id"], device["status"]) for device in answer["changed"]] == [(pi.client_id, "approved")]
    assert answer["status"] == "revoked"
    assert Device.objects.get().status == "approved"


def test_an_action_needs_a_query(app: Application, pi: Pi) -> None:
    """No query is not every device."""
    for text in ("", "   "):
        problem(post(app, "/devices/revoke", {"query": text}), 400)
    assert Device.objects.get().status == "approved"


@pytest.mark.parametrize("text", ["()", "( )", "tag:a OR ()"])
def test_an_empty_group_is_not_every_device(app: Application, pi: Pi, text: str) -> None:
    """It asks for nothing, and so cannot be what an action is for."""
    assert "nothing stands in the brackets" in problem(
        post(app, "/devices/revoke", {"query": text, "reason": "x"}), 400
    )


@pytest.mark.parametrize(
    ("method", "path", "members"),
    [
        ("POST", "/rules", {"query": "@two-b", "scopes": "a"}),
        ("POST", "/resource-servers", {"name": "a", "audience": "https://a.test", "query": "-tag:lab @two-b"}),
        ("PUT", "/views/other", {"query": "@two-b memory:1gb"}),
    ],
)
def test_what_is_kept_names_no_view(app: Application, method: str, path: str, members: Any) -> None:
    """It would change its meaning with the view; taken for a word, it would be for no device, or for all."""
    rest(app, "PUT", "/views/two-b", {"query": "model:2b"})
    assert "view" in problem(rest(app, method, path, members), 400)


def test_a_rule_that_cannot_be_read_is_listed(app: Application) -> None:
    """A query that an older version took is for no device, and can still be seen and removed."""
    row = AccessRule.objects.create(audience="a", query="@two-b", scopes="a", created_at=0, created_by="test")
    (item,) = (one for one in get(app, "/rules").json["items"] if one["id"] == row.pk)
    assert item["meaning"].startswith("no device: ")
    row.delete()


@pytest.mark.parametrize(
    "members",
    [{}, {"query": 5}, [], {"query": "id:*", "max": -1}, {"query": "id:*", "max": "all"}, {"query": "x" * 3000}],
)
def test_a_malformed_change_is_refused(app: Application, pi: Pi, members: Any) -> None:
    """400 that names the member, and nothing has changed."""
    assert problem(post(app, "/devices/revoke", members), 400)
    assert Device.objects.get().status == "approved"


@pytest.mark.parametrize("member", ["queri", "dryrun", "MAX"])
def test_a_misspelt_member_changes_nothing(app: Application, pi: Pi, member: str) -> None:
    """It is named: had it been passed over, a preview would be a change."""
    assert f"{member}: there is no such member" in problem(
        post(app, "/devices/revoke", {"query": "id:*", "max": 5, member: True}), 400
    )
    assert Device.objects.get().status == "approved"


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/devices?q=model:2b", "query, limit, sort, cursor"),
        ("/devices.csv?limit=5", "query, columns, sort"),
        ("/counts?by=model&Query=x", "by, query"),
        ("/fields?x", "none"),
    ],
)
def test_a_parameter_that_is_not_there_is_refused(app: Application, pi: Pi, path: str, known: str) -> None:
    """And those that are there are named: passed over, it would have asked for all devices."""
    reply = get(app, path)
    assert "there is no parameter" in problem(reply, 400) and known in reply.json["hint"]


@pytest.mark.parametrize("path", ["/devices?query=model:2b&query=model:3b", "/counts?by=model&by=memory"])
def test_a_parameter_that_stands_twice_is_refused(app: Application, path: str) -> None:
    """One of the two would have been passed over."""
    assert "stands 2 times" in problem(get(app, path), 400)


@pytest.mark.parametrize("body", [[], [None, None], "abc", 5, True, None])
@pytest.mark.parametrize("path", ["/keys", "/sign-in-links", "/enrollment-tokens", "/devices/revoke"])
def test_a_body_is_an_object(app: Application, path: str, body: Any) -> None:
    """Anything else has no members, and would be taken for an object that leaves all of them out."""
    before = AuditEvent.objects.count()
    assert problem(post(app, path, body), 400) == NO_OBJECT
    assert AuditEvent.objects.count() == before


@pytest.mark.parametrize(
    "body", [b'{"name": "late", "name": "all"}', b'{"name": "x", "extra": {"a": 1, "a": 1}}', b"{,}"]
)
def test_a_member_that_stands_twice_is_refused(app: Application, body: bytes) -> None:
    """Whoever looked at the request before us may have taken the other one for what is meant."""
    reply = rest(app, "POST", "/resource-servers", body)
    assert problem(reply, 400) == NO_OBJECT


def test_a_sign_in_link_is_for_somebody(app: Application) -> None:
    """Nobody in particular is not the first admin."""
    assert problem(post(app, "/sign-in-links", {}), 400).startswith("operator: ")


@pytest.mark.parametrize("text", ["red \x1b[31m", "two\nlines", "\u202eback", "\x9b31m"])
def test_free_text_can_be_seen(app: Application, text: str) -> None:
    """As at the door for devices: what a terminal would act on, or what turns text around, is refused."""
    jwk = Pi().public.jwk
    for path, members in (
        ("/tokens", {"operator": "ann", "note": text}),
        ("/devices/add", {"jwk": jwk, "name": text}),
        ("/preauthorisations", {"lines": [{"serial": "c0ffee01", "name": text}]}),
    ):
        assert "characters" in problem(post(app, path, members), 400)


def test_the_path_of_a_device_is_no_parameter(app: Application, pi: Pi) -> None:
    """What a route takes from its path is not taken from the question."""
    problem(get(app, f"/devices/{pi.client_id}?device_id=x"), 400)


def test_an_enrollment_token_is_shown_once(app: Application) -> None:
    """It enrolls, for as many devices and the board it was made for, and no list ever shows it (requirement D-04)."""
    made = post(app, "/enrollment-tokens", {"uses": 2, "ttl": 60, "serial": "00000000C0FFEE01"}).json
    assert (made["schema"], made["uses"], made["serial"]) == ("pi-fleet.enrollment-token/1", 2, "00000000c0ffee01")
    assert register(app, Pi(board=None), token=made["token"]).status == 401
    assert register(app, Pi(), token=made["token"]).json["status"] == "approved"
    assert made["token"] not in str(AuditEvent.objects.values_list())
    for members in ({"uses": 0}, {"ttl": 0}, {"uses": "many"}, {"serial": ""}):
        problem(post(app, "/enrollment-tokens", members), 400)


PATHS = [
    ("GET", "/devices"),
    ("GET", "/devices/pi-0000000000000000"),
    ("POST", "/enrollment-tokens"),
    ("POST", "/sign-in-links"),
]


@pytest.mark.parametrize(("method", "path"), [*PATHS, *(("POST", f"/devices/{change}") for change in CHANGES)])
def test_d01_without_credentials_nothing_opens(app: Application, pi: Pi, method: str, path: str) -> None:
    """401 on every route, for strangers and for devices alike (requirement D-03)."""
    token = ask(app, pi.form()).json["access_token"]
    for headers in ({}, {"authorization": f"Bearer {token}"}, {"cookie": f"pi-fleet-session={token}"}):
        members = {"query": "id:*"} if "/devices/" in path else {}
        stranger = ("192.0.2.1", 1)
        reply = (
            post(app, path, members, stranger, **headers) if method == "POST" else get(app, path, stranger, **headers)
        )
        assert problem(reply, 401)
    assert Device.objects.get().status == "approved"


def test_another_host_name_is_refused(app: Application) -> None:
    """A page of another name that resolves to this server reads nothing (DNS rebinding)."""
    assert get(app, "/devices", host="evil.example").status == 400
    assert get(app, "/devices", host="fleet.test").status == 200


def test_every_change_is_in_the_chain(app: Application) -> None:
    """Who, from where, what, to which device; and the chain is whole (requirement D-12)."""
    pi = approve(app, Pi())
    post(app, "/devices/quarantine", {"query": f"id:{pi.client_id}", "reason": "line\nbreak\x1b[31m"})
    post(app, "/sign-in-links", {"operator": "alice", "role": "admin"})
    line = AuditEvent.objects.filter(device=pi.client_id).order_by("-id")[0]
    assert (line.result, line.source) == ("done", f"uid {os.geteuid()}")
    assert json.loads(line.detail)["reason"] == "line break [31m"
    assert audit.verify() is None


@pytest.mark.parametrize("path", ["/nothing", "/devices/a/b"])
def test_an_address_that_is_not_there_is_a_problem_too(app: Application, path: str) -> None:
    """Programs are told in JSON; found by asking for every operation with whatever comes (``test_openapi``)."""
    assert problem(get(app, path), 404)


def test_a_method_that_an_address_does_not_have_is_a_problem_too(app: Application) -> None:
    """It names those it has; found in the same way."""
    reply = rest(app, "PATCH", "/views/a")
    assert problem(reply, 405)
    assert set(reply.headers["allow"].split(", ")) >= {"GET", "PUT", "DELETE"}


@pytest.mark.parametrize("path", ["/devices?limit=1", "/devices.csv", "/views", "/devices/nobody"])
def test_head_is_get_without_the_content(app: Application, pi: Pi, path: str) -> None:
    """The same status and headers; of an export, nothing is read."""
    whole, head = (rest(app, method, path) for method in ("GET", "HEAD"))
    passing = ("x-request-id", "content-length")
    shown, told = ({name: one.headers[name] for name in one.headers if name not in passing} for one in (whole, head))
    assert (head.status, head.body, told) == (whole.status, b"", shown)
    assert head.headers.get("content-length") == whole.headers.get("content-length")


@pytest.mark.parametrize("path", ["/api/v1/devices/revoke", "/sd/prometheus"])
def test_a_body_that_is_too_large_is_a_problem_too(app: Application, path: str) -> None:
    """Programs read one kind of refusal; OAuth has its own."""
    assert "larger than" in problem(exchange(app, "POST", path, b"x" * 70_000, {"host": "localhost"}, ME), 413)
    refusal = exchange(app, "POST", "/oauth/register", b"x" * 70_000, {"host": "localhost"}, ME)
    assert (refusal.status, refusal.json["error"]) == (413, "invalid_request")


@pytest.mark.parametrize("path", ["/devices/\0", "/views/\0", "/suggestions?query=name:%00", "/devices?query=%00"])
def test_m08_a_nul_is_refused_before_the_database_is(app: Application, path: str) -> None:
    """PostgreSQL takes none in a text: found by asking for every operation there, where it was a 503."""
    assert problem(get(app, path), 400)


def test_the_description_is_made_once(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger may ask for it as often as for anything else, and keeps nobody waiting."""
    first = exchange(app, "GET", "/api/v1/openapi.json", b"", {"host": "fleet.test"})
    monkeypatch.setattr(NinjaAPI, "get_openapi_schema", None)
    again = exchange(app, "GET", "/api/v1/openapi.json", b"", {"host": "fleet.test"})
    assert (first.status, again.body) == (200, first.body)
