"""The pages, as a browser without JavaScript uses them. Requirements D-01, D-05 to D-08."""

from __future__ import annotations

import html
import json
import re
from urllib.parse import urlencode, urlsplit

import pytest
from django.db import OperationalError

from fleet.browser import Browser, link, take
from fleet.support import BOARD, Pi, ask, exchange, register, rest
from pi_agent.fleet import access, audit
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.models import AuditEvent, Device, SignInLink


def test_d01_strangers_are_sent_to_sign_in(app: Application, pi: Pi) -> None:
    """Every page leads to the sign-in page, which tells nothing of the fleet."""
    browser = Browser(app)
    for path in ("/devices", f"/devices/{pi.client_id}"):
        reply = browser.get(path)
        assert (reply.status, urlsplit(reply.headers["location"]).path) == (302, "/sign-in")
    assert "pi-fleet sign-in-link" in browser.get("/sign-in").body.decode()
    assert pi.client_id not in browser.page


def test_d05_who_was_removed_does_not_come_back_with_a_name(app: Application, browser: Browser) -> None:
    """A session ends with its operator, also when there is one of that name again later."""
    actor = Actor("me", "test")
    for name, role in (("bob", "admin"), ("alice", None), ("alice", "admin")):
        access.set_role(name, role, actor=actor, now=1)
    assert urlsplit(browser.get("/devices").headers["location"]).path == "/sign-in"


def test_d12_webhooks_of_the_page_are_in_the_log(browser: Browser) -> None:
    """Who told another address what happens here, and who ended it."""
    browser.get("/settings")
    for what in ("webhook", "forget"):
        assert browser.post("/settings", what=what, url="https://hooks.example/x").status in (200, 302)
    assert list(AuditEvent.objects.order_by("id").values_list("action", flat=True))[-2:] == [
        "webhook.add",
        "webhook.remove",
    ]


def test_a_preview_does_not_burn_a_link(app: Application) -> None:
    """GET shows a button, however often; the first POST opens a session; the second finds the link used."""
    path = link(app)
    for _ in range(3):
        assert Browser(app).get(path).status == 200
    first, second = Browser(app), Browser(app)
    assert take(first, path).headers["location"] == "/devices"
    assert first.get("/devices").status == 200
    assert take(second, path).status == 400
    assert "used before" in second.page
    assert AuditEvent.objects.filter(action="operator.sign-in", actor="alice").count() == 1


def test_d05_a_link_of_somebody_who_was_removed_opens_nothing(app: Application) -> None:
    """Neither at once nor when there is somebody of that name again, who may have another role."""
    link(app, "carol")  # else alice would be the last admin
    path, me = link(app), Actor("me", "test")
    access.set_role("alice", None, actor=me, now=1)
    assert take(Browser(app), path).status == 400
    access.set_role("alice", "admin", actor=me, now=2)
    assert take(Browser(app), path).status == 400


def test_a_link_is_good_for_minutes(app: Application) -> None:
    """An expired link opens nothing, and a wrong one says the same (requirement D-06)."""
    path = link(app)
    SignInLink.objects.update(expires_at=1)
    late, wrong = take(Browser(app), path), take(Browser(app), "/sign-in/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    assert late.status == wrong.status == 400
    strip = re.compile(rb'value="[^"]*"')
    assert strip.sub(b"", late.body) == strip.sub(b"", wrong.body)


def test_d04_a_link_is_kept_as_its_hash(app: Application) -> None:
    """The database does not know the link."""
    token = link(app).rpartition("/")[2]
    assert token not in str(SignInLink.objects.values_list())


def test_d05_the_session_cookie_is_guarded(app: Application) -> None:
    """Secure, HttpOnly, SameSite=Strict, bound to this host, and new at sign-in."""
    browser = Browser(app)
    browser.cookies["__Host-pi-fleet-session"] = "planted"
    reply = take(browser, link(app))
    cookies = reply.headers["set-cookie"].splitlines()
    cookie = next(cookie for cookie in cookies if cookie.startswith("__Host-pi-fleet-session="))
    assert "planted" not in cookie
    for part in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"):
        assert part in cookie


def test_d05_signing_out_ends_the_session(browser: Browser) -> None:
    """The old cookie opens nothing afterwards, and the log says who left."""
    browser.get("/devices")
    before = dict(browser.cookies)
    assert browser.post("/sign-out").status == 302
    assert AuditEvent.objects.get(action="operator.sign-out").actor == "alice"
    browser.cookies = before
    assert browser.get("/devices").status == 302


def test_d05_signing_out_needs_no_line_in_the_log(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The session ends, too, when the log is busy for longer than anybody waits."""

    def busy(*lines: object, **by: object) -> None:
        raise OperationalError("the log is locked")

    browser.get("/devices")
    before = dict(browser.cookies)
    monkeypatch.setattr(audit, "record", busy)
    assert browser.post("/sign-out").status == 302
    browser.cookies = before
    assert browser.get("/devices").status == 302


def test_d05_a_change_needs_the_token_of_the_form(browser: Browser, pi: Pi) -> None:
    """Without it, with another, or from another site: 403, and nothing has changed."""
    path = f"/devices/{pi.client_id}"
    browser.get(path)
    body = urlencode({"action": "revoke"}).encode()
    assert browser.request("POST", path, body).status == 403
    assert browser.post(path, action="revoke", reason="x", csrfmiddlewaretoken="x" * 64).status == 403
    browser.get(path)
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', browser.page)
    assert token is not None
    body = urlencode({"action": "revoke", "csrfmiddlewaretoken": token[1]}).encode()
    assert browser.request("POST", path, body, origin="https://evil.example").status == 403
    api = json.dumps({"query": "id:*"}).encode()
    assert browser.request("POST", "/api/v1/devices/revoke", api, **{"content-type": "application/json"}).status == 403
    assert Device.objects.get().status == "approved"


def test_the_session_opens_the_api_for_reading(browser: Browser, pi: Pi) -> None:
    """And for changes with the CSRF token in a header."""
    assert browser.get("/api/v1/devices").json["total"] == 1


def test_the_list_shows_what_the_query_means(browser: Browser, app: Application, pi: Pi) -> None:
    """Meaning, count, tabs with counts, and the board of each device."""
    assert ask(app, pi.form()).status == 200
    browser.get("/devices?query=model:2b+memory:1gb+auth:1d")
    page = re.sub(r"<[^>]+>", " ", html.unescape(browser.page))
    for text in (
        "model is 2B, memory is 1 GiB, authenticated after",
        "kitchen",
        pi.client_id,
        "2B",
        "1 GB",
        BOARD["serial"],
        "ago",
        "UTC",
    ):
        assert str(text) in page, text
    assert re.search(r"approved\s+1", page)


def test_a_bad_query_is_explained_beside_it(browser: Browser) -> None:
    """With a link to a query that works; the text stays in the box."""
    assert browser.get("/devices?query=modle:2b").status == 400
    assert 'value="modle:2b"' in browser.page
    assert 'href="/devices?query=model%3A2b"' in browser.page


def test_a_device_is_approved_with_a_reason(browser: Browser, app: Application) -> None:
    """The button does it, the reason is kept, and the audit log has the operator."""
    pi = Pi()
    register(app, pi)
    path = f"/devices/{pi.client_id}"
    browser.get(path)
    assert "Approve" in browser.page and "Release" not in browser.page
    assert (
        browser.post(path, action="approve", reason="kitchen display", version=browser.field("version")).status == 302
    )
    assert Device.objects.get().status == "approved"
    line = AuditEvent.objects.filter(device=pi.client_id).order_by("-id")[0]
    assert (line.actor, json.loads(line.detail)["reason"]) == ("alice", "kitchen display")
    assert "kitchen display" in browser.get(path).body.decode()


def test_a_device_is_given_a_name_on_its_page(browser: Browser, pi: Pi) -> None:
    """Once: the same form again is about a device that has changed since. A reader has no such form."""
    path = f"/devices/{pi.client_id}"
    browser.get(path)
    seen = browser.field("version")
    assert browser.post(path, action="rename", name=" Hall way ", version=seen).status == 302
    assert Device.objects.get().name == "Hall way"
    browser.get(path)
    assert browser.post(path, action="rename", name="attic", version=seen).status == 400
    assert "changed since" in browser.page and Device.objects.get().name == "Hall way"
    for name, role in (("bob", "admin"), ("alice", "reader")):
        access.set_role(name, role, actor=Actor("me", "test"), now=1)
    assert 'value="rename"' not in browser.get(path).body.decode()


def test_an_unknown_device_is_a_404(browser: Browser) -> None:
    """In our own words."""
    assert browser.get("/devices/pi-0000000000000000").status == 404
    assert browser.get("/nowhere/at/all").status == 404
    assert "nothing here" in browser.page


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</td><script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "{{ user }}{% now %}",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_d07_what_a_device_says_is_text(browser: Browser, app: Application, text: str) -> None:
    """Name, model, serial and agent version in list and page, and the query in its box, are shown and never run."""
    board = BOARD | {"serial": text[:64], "model": text[:64]}
    pi = Pi(board=board)
    nonce = exchange(
        app, "POST", "/oauth/register", json.dumps(pi.registration(None)).encode(), {"content-type": "application/json"}
    ).json
    proof = pi.proof(nonce["nonce"], agent={"version": text[:64], "key": "file", "simulated": False})
    assert register(app, pi, client_name=text, proof=proof).status == 201
    for path in (
        "/devices",
        f"/devices/{pi.client_id}",
        "/devices?" + urlencode({"query": text}),
        "/devices?" + urlencode({"status": text, "sort": text}),
    ):
        browser.get(path)
        assert text not in browser.page or "<" not in text
        assert not re.search(r"<(script>|svg onload|img src=x)", browser.page)
    assert html.escape(text) in browser.get(f"/devices/{pi.client_id}").body.decode()


def test_d08_pages_need_nothing_from_elsewhere(browser: Browser, pi: Pi) -> None:
    """Every address in a page is one of this server, and what it names is there."""
    for path in ("/devices", f"/devices/{pi.client_id}", "/sign-in"):
        browser.get(path)
        for address in set(re.findall(r'(?:href|src|action)="([^"]*)"', browser.page)):
            assert address.startswith(("/", "#")) and not address.startswith("//"), address
            if address.startswith("/static/"):
                reply = exchange(browser.app, "GET", address)
                assert reply.status == 200
                assert b"http://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert exchange(browser.app, "GET", "/static/../views.py").status == 404


def test_the_first_page_of_an_empty_fleet_helps(browser: Browser) -> None:
    """It shows the command for the first device."""
    assert "sudo pi-agent setup https://fleet.test" in browser.get("/devices").body.decode()


def test_an_audit_line_says_what_was_made_and_until_when(browser: Browser, app: Application) -> None:
    """``webhook: add`` and not only ``add``; a time as people read it, and a flag as yes."""
    made = rest(app, "POST", "/enrollment-tokens", {"ttl": 3600})
    page = browser.get("/audit").body.decode()
    assert "enrollment token: create" in page.lower()
    assert f"expires: <bdi>{made.json['expires'][:16].replace('T', ' ')} UTC</bdi>" in page
