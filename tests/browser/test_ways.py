"""Small ways through the pages that only a real browser walks: from another site, with F5, by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browser.test_life import DESK, HAND, Seat
from fleet.live import LiveFleet


@pytest.fixture(scope="module")
def seat(chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seat]:
    """Somebody at a fleet with simulated boards; whatever a test changes, the others do without."""
    live = LiveFleet(tmp_path_factory.mktemp("fleet") / "data")
    assert live.cli("simulate", "80").returncode == 0
    one = Seat(chromium, live, viewport=DESK)
    yield one
    one.context.close()
    live.stop()


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
def test_a_link_in_a_chat_leads_to_its_device(chromium: Any, seat: Seat, javascript: bool) -> None:
    """Although the session's cookie does not come along a link of another site (SameSite=Strict)."""
    device = seat.live.cli("devices", "--limit", "1", "-o", "name").stdout.strip()
    context = chromium.new_context(java_script_enabled=javascript, storage_state=seat.context.storage_state())
    page = context.new_page()
    page.goto(f"data:text/html,<a href='{seat.live.issuer}/devices/{device}'>look</a>")
    page.get_by_text("look").click()
    page.get_by_text(device).first.wait_for()
    assert page.url == f"{seat.live.issuer}/devices/{device}"
    context.clear_cookies()
    page.goto(f"data:text/html,<a href='{seat.live.issuer}/devices/{device}'>look</a>")
    page.get_by_text("look").click()
    page.get_by_text("pi-fleet sign-in-link").wait_for()
    page.goto(seat.live.cli("sign-in-link").stdout.strip())
    page.get_by_role("button", name="Sign in").click()
    assert page.url == f"{seat.live.issuer}/devices/{device}"
    context.close()


@pytest.mark.parametrize("size", [DESK, HAND], ids=["desk", "hand"])
def test_a_long_name_makes_no_page_wider(chromium: Any, live: LiveFleet, size: dict[str, int]) -> None:
    """A device chooses its name, board and tags; 64 letters W without a space in each are still within the window."""
    long = "W" * 64
    pi = live.enroll(approved=False, name=long, board={"serial": long, "model": long})
    assert live.cli("tag", pi.client_id, f"+{long}", "--yes", "--reason", long * 3).returncode == 0
    assert live.cli("operator", "set", "o" * 64, "reader").returncode == 0
    assert live.cli("token", "make", "o" * 64, "--note", "n" * 64).returncode == 0
    assert live.cli("webhook", "add", f"https://hooks.example/{'h' * 300}").returncode == 0
    seat = Seat(chromium, live, viewport=size)
    every = "/devices?columns=status,tag,model,memory,serial,auth,created"
    for path in ("/devices", every, "/pending", f"/devices/{pi.client_id}", "/settings", "/audit"):
        assert seat.go(path).evaluate("document.documentElement.scrollWidth") <= size["width"], path
    page = seat.go("/devices?query=id:*")
    page.get_by_role("button", name="Look at the change").click()
    page.get_by_role("heading", name="Approve 1 device?").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    seat.context.close()


def test_slash_goes_on_where_the_query_ends(seat: Seat) -> None:
    """What is typed after it narrows the query, and does not stand before it."""
    page = seat.go("/devices?query=model:3b")
    page.keyboard.press("/")
    page.keyboard.type(" tag:lab")
    assert page.locator("#query").input_value() == "model:3b tag:lab"


def test_f5_after_a_token_makes_no_other(seat: Seat) -> None:
    """The browser asks to send the form again, and does: there is one token all the same."""
    page = seat.go("/enrollment")
    page.get_by_role("button", name="Make a token").click()
    page.get_by_text("Shown once").wait_for()
    page.reload()
    page.get_by_text("this form was sent before").wait_for()
    assert page.locator("tbody summary").count() == 1


def test_on_a_phone_the_actions_stand_above_the_devices(chromium: Any, seat: Seat) -> None:
    """And not below fifty of them; on a desk they follow the table."""
    context = chromium.new_context(viewport=HAND, storage_state=seat.context.storage_state())
    for page, above in ((context.new_page(), True), (seat.page, False)):
        page.goto(f"{seat.live.issuer}/devices?query=id:*")
        bar, table = (page.locator(one).bounding_box()["y"] for one in ("#bulk", "table.devices"))
        assert (bar < table) is above
    context.close()
