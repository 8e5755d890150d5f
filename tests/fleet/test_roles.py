"""Who may do what: every route has a role, and the roles hold. Requirements D-01 to D-04, D-12."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.urls import URLPattern

from fleet.browser import Browser
from fleet.support import Pi, Reply, exchange, register, rest
from pi_agent.errors import UsageError
from pi_agent.fleet import access
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.models import AuditEvent, Device, Operator, OperatorToken
from pi_agent.fleet.settings import current

ADMIN = Actor("root", "test")

# Every route and the least role that opens it. A new route fails the test below until somebody has thought about it.
ROUTES = """
GET /api/v1/audit reader
GET /api/v1/audit/verify reader
GET /api/v1/counts reader
GET /api/v1/devices reader
GET /api/v1/devices.csv reader
GET /api/v1/devices.jsonl reader
GET /api/v1/devices/{device_id} reader
GET /api/v1/enrollment-tokens reader
GET /api/v1/fields reader
GET /api/v1/operators admin
GET /api/v1/suggestions reader
GET /api/v1/tokens admin
GET /api/v1/views reader
GET /api/v1/views/{slug} reader
GET /api/v1/webhooks admin
POST /api/v1/devices/approve approver
POST /api/v1/devices/forget admin
POST /api/v1/devices/quarantine approver
POST /api/v1/devices/reject approver
POST /api/v1/devices/release approver
POST /api/v1/devices/rename approver
POST /api/v1/devices/revoke admin
POST /api/v1/devices/tag approver
POST /api/v1/enrollment-tokens approver
POST /api/v1/sign-in-links admin
POST /api/v1/tokens admin
POST /api/v1/webhooks admin
PUT /api/v1/operators/{name} admin
PUT /api/v1/views/{slug} approver
DELETE /api/v1/enrollment-tokens/{token_id} approver
DELETE /api/v1/operators/{name} admin
DELETE /api/v1/tokens/{prefix} admin
DELETE /api/v1/views/{slug} approver
DELETE /api/v1/webhooks/{webhook_id} admin
DELETE /api/v1/keys/{kid} admin
DELETE /api/v1/preauthorisations/{line_id} approver
DELETE /api/v1/resource-servers/{name} admin
DELETE /api/v1/rules/{rule_id} admin
GET /api/v1/keys reader
GET /api/v1/pending reader
GET /api/v1/preauthorisations reader
GET /api/v1/resource-servers reader
GET /api/v1/rules reader
POST /api/v1/devices/add approver
POST /api/v1/devices/rotate-key approver
POST /api/v1/keys admin
POST /api/v1/preauthorisations approver
POST /api/v1/resource-servers admin
POST /api/v1/rules admin
GET /devices reader
GET /devices.csv reader
GET /devices/suggest reader
GET /devices/charts reader
POST /devices/act approver
GET /devices/{device_id} reader
POST /devices/{device_id} approver
POST /views approver
GET /pending reader
GET /audit reader
GET /enrollment reader
POST /enrollment approver
GET /settings admin
POST /settings admin
GET /api reader
GET /sd/prometheus reader
GET /metrics reader
"""
OPEN = {"", "sign-in", "sign-in/<str:token>", "sign-out"}
POSTED_ONLY = {"devices/act", "views"}
READ_ONLY = {
    "devices",
    "devices.csv",
    "devices/suggest",
    "devices/charts",
    "pending",
    "audit",
    "api",
    "sd/prometheus",
    "metrics",
}
PATHS = {
    "{device_id}": "pi-0000000000000000",
    "{slug}": "late",
    "{token_id}": "1",
    "{name}": "ann",
    "{prefix}": "pfo_0",
    "{webhook_id}": "1",
    "{kid}": "none",
    "{line_id}": "1",
    "{rule_id}": "1",
}
BODIES: dict[str, dict[str, Any]] = {
    "/api/v1/devices/tag": {"query": "id:*", "add": ["x"], "reason": "x", "max": 9},
    "/api/v1/tokens": {"operator": "ann"},
    "/api/v1/webhooks": {"url": "https://hooks.test/"},
    "/api/v1/operators/ann": {"role": "reader"},
    "/api/v1/views/late": {"query": "late:true"},
}


@pytest.fixture(autouse=True)
def _no_stranger_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins with a full allowance for strangers, whatever the tests before it have used."""
    from pi_agent.fleet.rates import Rate
    from pi_agent.fleet.rest import common

    monkeypatch.setattr(common, "STRANGERS", Rate(limit=10_000, seconds=60))


def routes() -> Iterator[tuple[str, str, str]]:
    """Method, path and role of every route that the application has."""
    from pi_agent.fleet.api import api
    from pi_agent.fleet.urls import urlpatterns

    for path, methods in dict(api.get_openapi_schema())["paths"].items():
        for method, about in methods.items():
            yield method.upper(), path, about["x-role"]
    for pattern in urlpatterns:
        if isinstance(pattern, URLPattern) and str(pattern.pattern) not in OPEN:
            path = str(pattern.pattern)
            view: Any = pattern.callback
            shown = "/" + re.sub(r"<\w+:(\w+)>", r"{\1}", path)
            if path not in POSTED_ONLY:
                yield "GET", shown, view.role
            if path not in READ_ONLY:
                yield "POST", shown, view.change


def test_d02_every_route_has_the_role_that_was_decided_for_it(app: Application) -> None:
    """The table above is all there is, and all of it is true."""
    assert sorted(routes()) == sorted(tuple(line.split()) for line in ROUTES.strip().splitlines())


def token(role: str, operator_role: str = "admin") -> str:
    """A token of ann's, who is ``operator_role``."""
    now = int(time.time())
    access.ensure_operator("ann", operator_role, by="test", now=now)
    return access.make_token("ann", role, seconds=3600, note="", actor=ADMIN, now=now)[0]


def call(app: Application, method: str, path: str, bearer: str = "", **members: Any) -> Reply:
    headers = {"host": "fleet.test", "content-type": "application/json"}
    headers |= {"authorization": f"Bearer {bearer}"} if bearer else {}
    body = json.dumps(members).encode() if method in ("POST", "PUT") else b""
    return exchange(app, method, path, body, headers)


@pytest.mark.parametrize("role", ["", *access.ROLES])
def test_d02_each_role_opens_its_routes_and_no_others(app: Application, role: str) -> None:
    """For every route of the REST interface: 401 for a stranger, 403 below its role, and from its role on neither."""
    bearer = token(role) if role else ""
    for line in ROUTES.strip().splitlines():
        method, path, needed = line.split()
        if not path.startswith("/api/v1/"):
            continue
        for name, value in PATHS.items():
            path = path.replace(name, value)
        members = BODIES.get(path, {"query": "id:*", "reason": "x", "max": 9})
        status = call(app, method, path, bearer, **members).status
        if not role:
            assert status == 401, line
        elif access.RANK[role] < access.RANK[needed]:
            assert status == 403, line
        else:
            assert status not in (401, 403) and status < 500, line
        if role:  # an admin may just have removed ann, her role or her token
            Operator.objects.filter(name="ann").update(role="admin")
            bearer = token(role)


def test_a_refusal_is_in_the_audit_log(app: Application, pi: Pi) -> None:
    """Requirement D-12: who wanted what, and what it would have taken."""
    reply = call(app, "POST", "/api/v1/devices/revoke", token("reader"), query="id:*", reason="x")
    assert (reply.status, Device.objects.get().status) == (403, "approved")
    line = AuditEvent.objects.get(action="access.refused")
    detail = json.loads(line.detail)
    assert (line.actor, line.result, detail["role"], detail["needs"]) == ("ann", "refused", "reader", "admin")
    assert detail["request"] == reply.headers["x-request-id"]


def test_d04_a_token_is_shown_once(app: Application) -> None:
    """The database has its hash, and no answer but the first has it."""
    access.ensure_operator("ann", "admin", by="test", now=1)
    made = rest(app, "POST", "/tokens", {"operator": "ann", "role": "reader"})
    secret = made.json["token"]
    assert secret.startswith(made.json["prefix"])
    listed = rest(app, "GET", "/tokens").body.decode()
    audit = rest(app, "GET", "/audit").body.decode()
    for text in (listed, audit, str(OperatorToken.objects.values_list())):
        assert secret not in text and secret.rpartition("_")[2] not in text
    assert made.json["prefix"] in listed


def test_a_token_ends_when_it_should(app: Application) -> None:
    """When it expires, when it is revoked, and with its operator; a wrong one never begins."""
    bearer = token("reader")
    assert call(app, "GET", "/api/v1/devices", bearer).status == 200
    assert call(app, "GET", "/api/v1/devices", bearer[:-1] + "_").status == 401
    OperatorToken.objects.update(expires_at=int(time.time()) - 1)
    assert call(app, "GET", "/api/v1/devices", bearer).status == 401
    revoked = token("reader")
    assert access.revoke_token(revoked[:12], actor=ADMIN, now=1)
    assert call(app, "GET", "/api/v1/devices", revoked).status == 401
    other = token("reader")
    Operator.objects.all().delete()
    assert call(app, "GET", "/api/v1/devices", other).status == 401


def test_a_token_does_no_more_than_its_operator(app: Application) -> None:
    """It cannot be made for more, and it shrinks with its operator's role."""
    with pytest.raises(UsageError):
        token("admin", "approver")
    Operator.objects.all().delete()
    bearer = token("admin")
    Operator.objects.update(role="reader")
    assert call(app, "POST", "/api/v1/devices/approve", bearer, query="id:*", reason="x").status == 403


def test_a_wrong_token_is_a_stranger_even_on_the_local_socket(app: Application) -> None:
    """Whoever shows a token means it: nothing else of the request counts then."""
    reply = rest(app, "GET", "/devices", authorization="Bearer pfo_00000000_x")
    assert (reply.status, reply.json["detail"]) == (401, "the operator token is not known, or is over")


def test_the_last_admin_stays(app: Application) -> None:
    """Nobody can lock everybody out."""
    access.ensure_operator("ann", "admin", by="test", now=1)
    for role in (None, "reader"):
        with pytest.raises(UsageError):
            access.set_role("ann", role, actor=ADMIN, now=2)
    access.set_role("bob", "admin", actor=ADMIN, now=3)
    access.set_role("ann", None, actor=ADMIN, now=4)
    assert list(Operator.objects.values_list("name", flat=True)) == ["bob"]


def test_too_many_strangers_wait(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """D-06: guesses are counted, and told when to come again."""
    from pi_agent.fleet.rates import Rate
    from pi_agent.fleet.rest import common

    monkeypatch.setattr(common, "STRANGERS", Rate(limit=5, seconds=60))
    statuses = [call(app, "GET", "/api/v1/devices", "pfo_guess").status for _ in range(8)]
    assert statuses == [401] * 5 + [429] * 3
    assert int(call(app, "GET", "/api/v1/devices", "pfo_guess").headers["retry-after"]) <= 60
    assert call(app, "GET", "/api/v1/devices", token("reader")).status == 200


def test_strangers_from_one_network_wait_together(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """One host may use any address of an IPv6 /64, and each refused sign-in would be another line in the log."""
    from pi_agent.fleet.pages import session
    from pi_agent.fleet.rates import Rate
    from pi_agent.fleet.rest import common

    monkeypatch.setattr(common, "STRANGERS", Rate(limit=5, seconds=60))
    monkeypatch.setattr(session, "TRIES", Rate(limit=5, seconds=60))
    headers, neighbours = {"host": "fleet.test"}, [(f"2001:db8::{number}", 40000) for number in range(8)]
    statuses = [exchange(app, "GET", "/api/v1/devices", b"", headers, each).status for each in neighbours]
    assert statuses == [401] * 5 + [429] * 3
    assert exchange(app, "GET", "/api/v1/devices", b"", headers, ("2001:db8:0:1::1", 40000)).status == 401
    browser = Browser(app)
    browser.get("/sign-in")
    statuses = []
    for browser.client in neighbours:
        statuses.append(browser.post("/sign-in", code="guess").status)
    assert statuses == [400] * 5 + [429] * 3


def test_a_caller_sees_what_is_left(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """Headers tell how many requests are left and when there are more; then comes 429."""
    from pi_agent.fleet.rates import Rate
    from pi_agent.fleet.rest import common

    monkeypatch.setattr(common, "CALLS", Rate(limit=2, seconds=60))
    monkeypatch.setattr(common, "current", lambda: replace(current(), rate_limit=True))
    bearer = token("reader")
    replies = [call(app, "GET", "/api/v1/devices", bearer) for _ in range(3)]
    assert [(reply.status, reply.headers["ratelimit-remaining"]) for reply in replies] == [
        (200, "1"),
        (200, "0"),
        (429, "0"),
    ]
    assert replies[0].headers["ratelimit-limit"] == "2" and int(replies[2].headers["retry-after"]) <= 60


def test_d03_a_device_enrolls_and_still_reads_nothing(app: Application) -> None:
    """A device without a role stays outside, whatever its token says."""
    pi = Pi()
    register(app, pi)
    assert call(app, "GET", f"/api/v1/devices/{pi.client_id}", pi.assertion()).status == 401
