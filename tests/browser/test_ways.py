"""Small ways through the pages that only a real browser walks: from another site, with F5, by key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browser.test_life import DESK, Seat
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
