"""The way in: links, where they lead, and what becomes of a form whose session has ended."""

from __future__ import annotations

import html
import re
from urllib.parse import urlencode

import pytest

from fleet.browser import Browser, link, take
from fleet.support import Pi
from pi_agent.fleet.asgi import Application


@pytest.mark.parametrize(
    "onward", ["evil", "//evil.example", "https://evil.example", "/\\evil.example", "javascript:x"]
)
def test_d05_signing_in_leads_nowhere_else(app: Application, onward: str) -> None:
    """Whatever a link to the sign-in page names, the session opens, and on this server."""
    browser = Browser(app)
    path = link(app)
    browser.get(path)
    reply = browser.post("/sign-in", code=path, next=onward)
    assert (reply.status, reply.headers["location"]) == (302, "/devices")
    assert browser.get("/devices").status == 200


def test_a_link_from_elsewhere_finds_the_session(browser: Browser, pi: Pi) -> None:
    """A browser leaves a Strict cookie out of a link in a chat; our page asks again, and the device is there."""
    path = f"/devices/{pi.client_id}"
    chat = Browser(browser.app)  # the same browser, without its cookies
    there = chat.get(path).headers["location"]
    chat.get(there)
    again = re.search(r'http-equiv="refresh" content="0;url=([^"]+)"', chat.page)
    assert again is not None and "sign-in-link" not in chat.page
    assert browser.get(html.unescape(again[1])).headers["location"] == path


def test_a_stranger_is_asked_again_once(app: Application) -> None:
    """The second time there are the sign-in words, and no third time."""
    stranger = Browser(app)
    assert "refresh" in stranger.get("/sign-in?next=/audit").body.decode()
    assert "refresh" not in stranger.get("/sign-in?next=/audit&again=1").body.decode()
    assert "pi-fleet sign-in-link" in stranger.page
    for onward in ("", "?next=evil", "?next=//evil.example"):
        assert "refresh" not in stranger.get(f"/sign-in{onward}").body.decode()


def test_a_link_keeps_where_one_wanted_to_go(app: Application) -> None:
    """The link that the server printed, opened or pasted, leads to the page that somebody was sent away from."""
    opened, pasted = Browser(app), Browser(app)
    opened.get("/sign-in?next=/audit?verify%3D1&again=1")
    cookie = opened.reply.headers["set-cookie"]
    assert "SameSite=Strict" in cookie and "HttpOnly" in cookie and "Secure" in cookie
    path = link(app)
    opened.get(path)
    reply = opened.post("/sign-in", code=path, next=opened.field("next"))
    assert reply.headers["location"] == "/audit?verify=1"
    assert 'pi-fleet-next=""' in reply.headers["set-cookie"]
    pasted.get("/sign-in?next=/audit&again=1")
    used = pasted.post("/sign-in", code=path, next=pasted.field("next"))
    assert used.status == 400
    assert pasted.post("/sign-in", code=link(app), next=pasted.field("next")).headers["location"] == "/audit"


def test_who_is_signed_in_is_not_asked(browser: Browser, app: Application) -> None:
    """The sign-in page and a link lead on; without a place to go to, a link can still open another session."""
    for path in ("/sign-in", link(app)):
        assert browser.get(f"{path}?next=/audit").headers["location"] == "/audit"
    assert take(browser, link(app, "bob")).headers["location"] == "/devices"
    assert "bob" in browser.get("/devices").body.decode()


@pytest.mark.parametrize(
    ("path", "onward"),
    [
        ("/devices/act", "/devices?query=model%3A2b&status=approved&sort=-auth"),
        ("/views", "/devices?query=model%3A2b&status=approved&sort=-auth"),
        ("/devices/pi-1", "/devices/pi-1"),
        ("/enrollment", "/enrollment"),
    ],
)
def test_a_form_whose_session_has_ended_leads_back_to_its_page(browser: Browser, path: str, onward: str) -> None:
    """After signing in there is a page again, and it is the one that had the form."""
    browser.get("/devices")
    ended = browser.cookies.pop("__Host-pi-fleet-session")
    browser.post(path, query="model:2b", status="approved", sort="-auth", action="approve", reason="x", id="pi-1")
    assert browser.reply.headers["location"] == "/sign-in?" + urlencode({"next": onward})
    browser.cookies["__Host-pi-fleet-session"] = ended
    assert browser.get(onward).status == (404 if "pi-1" in onward else 200)


@pytest.mark.parametrize("path", ["/devices/act", "/views", "/sign-out"])
def test_an_address_for_forms_has_a_way_back(browser: Browser, path: str) -> None:
    """Opened as a page it says so, and there is a link to go on."""
    reply = browser.get(path)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert "only takes what a form sends" in browser.page and 'href="/devices"' in browser.page


@pytest.mark.parametrize("path", ["/devices/\0", "/devices?query=%00", "/sign-in?next=%00"])
def test_d08_a_nul_in_an_address_is_refused_with_the_headers_of_a_page(browser: Browser, path: str) -> None:
    """The browser sees to the headers, as on every answer."""
    assert browser.get(path).status == 400


def test_no_link_shuts_somebody_out(app: Application) -> None:
    """Where it leads is kept in a cookie, unless that could not be read for its escapes."""
    stranger = Browser(app)
    assert stranger.get(f"/sign-in?again=1&next=/devices?query={1000 * ','}").status == 200
    assert "pi-fleet-next" not in stranger.reply.headers.get("set-cookie", "")
    assert stranger.get("/sign-in").status == 200


@pytest.mark.parametrize("path", ["/devices", "/sign-in", "/api/v1/devices", "/metrics"])
def test_a_nul_in_a_cookie_is_refused_before_the_database_is(browser: Browser, path: str) -> None:
    """In quotes a cookie has escapes, and a stranger's session key with a NUL was our fault on PostgreSQL."""
    browser.cookies["__Host-pi-fleet-session"] = '"aaaaaaaa\\000"'
    assert browser.get(path).status == 400


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/devices/act", {"id": "x\0y", "action": "approve"}),
        ("/devices/act", {"query": "@\0", "action": "approve"}),
        ("/views", {"name": "\0", "query": "model:2b"}),
        *[("/settings", {name: "a\0b"}) for name in ("remove", "revoke", "forget", "token")],
    ],
)
def test_a_nul_in_a_form_is_refused_before_the_database_is(browser: Browser, path: str, fields: dict[str, str]) -> None:
    """PostgreSQL takes none in a text, and SQLite would look for it: 400 on both."""
    browser.get("/devices")
    assert browser.post(path, **fields).status == 400
    assert "made no sense" in browser.page
