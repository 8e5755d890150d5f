"""Deciding in the pages: about what was shown, once, and nobody is overruled unseen."""

from __future__ import annotations

import base64
import html
import json
import re
import time
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from django.contrib.sessions.backends.base import UpdateError
from django.contrib.sessions.backends.db import SessionStore

from fleet.browser import Browser
from fleet.support import Pi, register
from fleet.test_changes import devices, post
from pi_agent.fleet import registry
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import Device, View


def forged(cursor: str, **members: Any) -> str:
    """A cursor of ours with other members."""
    known = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return base64.urlsafe_b64encode(json.dumps(known | members).encode()).decode().rstrip("=")


@pytest.mark.parametrize("held", [True, False], ids=["as it was shown", "without saying how"])
def test_a_stale_page_overrules_nobody(browser: Browser, app: Application, held: bool) -> None:
    """What a colleague decided since the page was made stands, and the page says so."""
    pi = Pi()
    register(app, pi)
    browser.get("/pending")
    version = browser.field("version")
    assert post(app, "reject", ids=[pi.client_id], reason="not ours").status == 200
    more = {"version": version} if held else {}
    assert browser.post(f"/devices/{pi.client_id}", action="approve", reason="mine", **more).status == 400
    assert Device.objects.get().status == "rejected"
    assert ("changed since you looked" if held else "how it saw the device") in browser.page


def test_a_page_of_what_waits_can_be_acted_on(browser: Browser, app: Application) -> None:
    """The form in each row is enough."""
    pi = Pi()
    register(app, pi)
    browser.get("/pending")
    fields = {"action": "approve", "reason": "mine", "version": browser.field("version")}
    assert browser.post(f"/devices/{pi.client_id}", **fields).status == 302
    assert Device.objects.get().status == "approved"


def test_a_view_that_was_removed_meanwhile_is_told(browser: Browser, app: Application) -> None:
    """Between the list and the button: the page says that the view is gone, and nothing has changed."""
    register(app, Pi())
    browser.get("/devices")
    assert browser.post("/devices/act", query="@gone", action="approve").status == 400
    assert "there is no view" in browser.page
    assert browser.get("/pending").status == 200 and Device.objects.get().status == "pending"


FORGED = ({"v": "x"}, {"v": None}, {"v": 2**63 - 1}, {"v": 1.5}, {"t": 2**61}, {"t": -(2**61)}, {"t": -1}, {"r": "1"})


@pytest.mark.parametrize("members", FORGED, ids=str)
def test_d09_a_forged_cursor_is_refused(browser: Browser, app: Application, members: dict[str, Any]) -> None:
    """In the pages and in REST, whatever its client has written into it."""
    devices(2, status="approved")
    cursor = registry.find("", now=int(time.time()), limit=1, sort="-created").cursor or ""
    path = f"devices?sort=-created&limit=1&cursor={forged(cursor, **members)}"
    for address in (f"/api/v1/{path}", f"/{path}"):
        assert browser.get(address).status == 400, address
    assert browser.get("/pending?cursor=zzz").status == 400
    assert "start again without a cursor" in browser.page and 'href="/pending"' in browser.page


def test_d09_a_forged_text_in_a_cursor_is_refused(browser: Browser) -> None:
    """A number where the order is one of texts, and a NUL, which PostgreSQL refuses."""
    devices(2)
    cursor = registry.find("", now=int(time.time()), limit=1, sort="name").cursor or ""
    for value in (1, "a\0b"):
        assert browser.get(f"/api/v1/devices?sort=name&limit=1&cursor={forged(cursor, v=value)}").status == 400


@pytest.mark.parametrize(
    ("query", "status"), [("model:2b) OR (id:*", "approved"), ("model:2b", "approved OR id:*"), ("model:2b", "bogus")]
)
def test_no_text_leaves_its_tab(browser: Browser, query: str, status: str) -> None:
    """A query with brackets of its own, or a status that is more than one, does not reach devices of another status."""
    devices(1, status="quarantined")
    browser.get("/devices")
    assert browser.post("/devices/act", query=query, status=status, action="release").status == 400
    assert 'name="selection"' not in browser.page
    assert browser.post("/views", query=query, status=status, name="mine").status == 400
    assert not View.objects.exists()


@pytest.mark.parametrize("name", ["CSV", "Charts"])
def test_a_tab_of_a_view_has_its_charts_and_csv(browser: Browser, pi: Pi, name: str) -> None:
    """Both are of the devices in the tab."""
    View.objects.create(slug="ours", query="model:2b", columns="", sort="", created_at=1, created_by="me")
    browser.get("/devices?query=@ours&status=approved")
    found = re.search(rf'href="([^"]+)"[^>]*>{name}<', browser.page)
    assert found is not None
    assert browser.get(html.unescape(found[1])).status == 200
    assert "2B" in browser.page


LISTED = {"query": "id:*", "status": "pending", "sort": "name", "columns": "model,auth"}


def preview(browser: Browser, action: str = "approve", **more: str) -> dict[str, str]:
    """Look at a change, and what its form then has."""
    browser.get("/devices")
    assert browser.post("/devices/act", action=action, reason="a careful reason", **LISTED, **more).status == 200
    names = ("action", "selection", "expected", "reason", *LISTED)
    return {name: browser.field(name) for name in names}


def test_what_was_done_is_said_once(browser: Browser) -> None:
    """On the page that follows, which is the list as it was; and on no page after that."""
    devices(3)
    form = preview(browser)
    assert {name: form[name] for name in LISTED} == LISTED
    where = browser.post("/devices/act", **form, count="3").headers["location"]
    assert dict(parse_qsl(urlsplit(where).query)) == LISTED
    assert "3 devices approved" in browser.get(where).body.decode()
    assert "3 devices approved" not in browser.get(where).body.decode()


def test_words_that_cannot_be_kept_undo_nothing(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database may be busy again by then: what was done is not told to have failed."""
    devices(1)
    form = preview(browser)

    def busy(self: SessionStore, must_create: bool = False) -> None:
        raise UpdateError

    monkeypatch.setattr(SessionStore, "save", busy)
    assert browser.post("/devices/act", **form, count="1").status == 302
    assert browser.get("/devices").status == 200


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"count": "4"}, "type 3"), ({"reason": ""}, "needs a reason"), ({"selection": "1-2-3"}, "too old")],
    ids=["another number", "no reason", "an old preview"],
)
def test_what_is_wrong_is_said_beside_the_preview(browser: Browser, wrong: dict[str, str], words: str) -> None:
    """It is there again with its reason, what is wrong stands above it, and once that is put right it is done."""
    devices(3)
    form = preview(browser) | {"count": "3"}
    assert browser.post("/devices/act", **form | wrong).status == 409
    assert words in browser.page and "Approve 3 devices?" in browser.page
    assert browser.field("reason") == wrong.get("reason", "a careful reason")
    assert not Device.objects.filter(status="approved").exists()
    again = {"selection": browser.field("selection"), "expected": browser.field("expected")}
    assert browser.post("/devices/act", **form | again).status == 302
    assert Device.objects.filter(status="approved").count() == 3


def test_a_conflict_keeps_the_reason(browser: Browser) -> None:
    """What was typed on the device's page is still there when somebody was quicker."""
    (device,) = devices(1)
    browser.get(f"/devices/{device.client_id}")
    Device.objects.update(status_reason="somebody was quicker")
    fields = {"action": "approve", "version": browser.field("version"), "reason": "a careful reason"}
    assert browser.post(f"/devices/{device.client_id}", **fields).status == 400
    assert 'name="reason" value="a careful reason"' in browser.page
    assert browser.post(f"/devices/{device.client_id}", **fields | {"version": browser.field("version")}).status == 302


def test_all_links_of_the_list_keep_its_order(browser: Browser) -> None:
    """The tabs and the CSV; and a view's own order can be left for the usual one, also on its second page."""
    devices(60, status="approved")
    browser.get("/devices?query=id:*&sort=-auth")
    links = [html.unescape(one) for one in re.findall(r'href="(/devices[^"]*)"', browser.page)]
    for one in links:
        if "status=" in one or one.startswith("/devices.csv"):
            assert dict(parse_qsl(urlsplit(one).query))["sort"] == "-auth", one
    View.objects.create(slug="ours", query="", columns="", sort="name", created_at=1, created_by="me")
    browser.get("/devices?query=@ours&sort=-created")
    following = re.search(r'href="([^"]+)">Next page', browser.page)
    assert following is not None
    assert browser.get(html.unescape(following[1])).status == 200


def test_saving_a_view_replaces_nobody_elses(browser: Browser) -> None:
    """One of that name that a colleague saved stays, unless the box is ticked; one's own is replaced."""
    View.objects.create(slug="ours", query="model:2b", columns="", sort="", created_at=1, created_by="bob")
    browser.get("/devices")
    assert browser.post("/views", name="ours", query="model:3b").status == 409
    assert "@ours is a view that bob saved" in browser.page
    assert View.objects.get().query == "model:2b"
    assert browser.post("/views", name="ours", query="model:3b", replace="yes").status == 302
    browser.get("/devices")
    assert browser.post("/views", name="ours", query="model:4b").status == 302
    assert (View.objects.get().query, View.objects.get().created_by) == ("model:4b", "alice")
