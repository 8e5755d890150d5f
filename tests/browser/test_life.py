"""The whole life of a device, as an operator lives it in a browser: with and without JavaScript, by day and night, on a
desk and in a hand. ``PI_AGENT_SCREENSHOTS=docs/images`` keeps the pictures that the README shows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.live import LiveFleet

DESK, HAND = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
PICTURES = os.environ.get("PI_AGENT_SCREENSHOTS")

# Suggestions that were still asked for when the page was left. What fails says responseError or sendError, too.
LEAVING = ("htmx:sendAbort", "htmx:afterRequest")


class Seat:
    """A signed-in browser tab. What the console complains of is kept: a strict page complains of nothing."""

    def __init__(self, chromium: Any, live: LiveFleet, **options: Any) -> None:
        self.live = live
        self.context = chromium.new_context(base_url=live.issuer, **options)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", self._listen)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(live.cli("sign-in-link").stdout.strip())
        self.page.get_by_role("button", name="Sign in").click()

    def _listen(self, message: Any) -> None:
        if message.type == "error" and not message.text.startswith(LEAVING):
            self.complaints.append(message.text)

    def go(self, path: str) -> Any:
        self.page.goto(path)
        self.page.wait_for_load_state("networkidle")
        return self.page

    def picture(self, name: str) -> None:
        if PICTURES:
            self.page.wait_for_load_state("networkidle")
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")

    def confirm(self, number: int, reason: str) -> None:
        """Type what the preview asks for, and go on."""
        self.page.get_by_label("Reason").fill(reason)
        self.page.get_by_label(re.compile("Type .* to go on")).fill(str(number))
        self.page.locator(".confirm button").click()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A simulated fleet, one real device that waits, and something of everything that the pages list; tests leave it as it is."""
    live = LiveFleet(tmp_path_factory.mktemp("fleet") / "data")
    for command in (
        "simulate 240", "operator set ann approver", "token make ann --note nightly", "enrollment-token --uses 3",
        "webhook add https://hooks.example/pi",
    ):  # fmt: skip
        assert live.cli(*command.split()).returncode == 0
    live.enroll(approved=False)
    yield live
    live.stop()


@pytest.mark.parametrize("javascript", [True, False], ids=["with JavaScript", "without JavaScript"])
def test_the_life_of_a_device(chromium: Any, live: LiveFleet, javascript: bool) -> None:
    """It waits and says why, is approved, tagged, found by query, quarantined, released and revoked; all of it is in its history."""
    pi = live.enroll(approved=False)
    seat = Seat(chromium, live, viewport=DESK, java_script_enabled=javascript)
    page = seat.go("/pending")
    assert "its serial was never seen before" in page.content()
    page.get_by_placeholder("Reason, kept in the audit log").fill("kitchen display")
    page.get_by_role("button", name="Approve").click()
    assert page.url.endswith(pi.client_id) and page.locator(".title .status").inner_text() == "approved"
    page.get_by_label("Tags, separated by commas").fill("kiosk, hall")
    page.get_by_role("button", name="Set tags").click()
    assert live.ask(pi.form()).status == 200

    page = seat.go("/devices")
    page.get_by_role("combobox", name="Query").fill("model:2b memory:1gb auth:1d tag:kiosk")
    page.get_by_role("button", name="Search").click()
    assert "1 device: model is 2B, memory is 1 GiB, authenticated after" in page.locator(".meaning").inner_text()
    for action, after in (("quarantine", "quarantined"), ("release", "approved"), ("revoke", "revoked")):
        page = seat.go("/devices?query=tag:kiosk")
        page.get_by_label("Action").select_option(action)
        page.get_by_role("button", name="Look at the change").click()
        seat.confirm(1, f"{action} it")
        assert page.locator("tbody .status").first.inner_text() == after
    assert live.ask(pi.form()).status == 400
    page = seat.go(f"/devices/{pi.client_id}")
    history = page.locator(".events").inner_text()
    for words in ("Approve", "Tag", "Quarantine", "Release", "Revoke", "kitchen display", "operator"):
        assert words in history
    seat.go("/audit?verify=1")
    assert "The chain is whole" in page.content()
    page.get_by_role("button", name="Sign out").click()
    assert "/sign-in" in seat.go("/devices").url
    assert not seat.complaints
    seat.context.close()


def test_the_keys(chromium: Any, fleet: LiveFleet) -> None:
    """/ searches with suggestions, j and k walk, a asks before it approves, ? explains."""
    seat = Seat(chromium, fleet, viewport=DESK)
    page = seat.go("/devices?query=status:pending&sort=name")
    page.keyboard.press("/")
    page.keyboard.type(" mod")
    page.get_by_role("option", name=re.compile("model:")).wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#query").input_value() == "status:pending model:"
    page.get_by_role("option").first.wait_for()
    page.keyboard.press("Escape")
    page.locator("#query").blur()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    name = page.locator("tr.here a").inner_text()
    page.keyboard.press("a")
    page.get_by_role("heading", name="Approve 1 device?").wait_for()
    assert name in page.locator("tbody").inner_text()
    assert not seat.complaints
    seat.context.close()


def test_a_preview_that_is_not_confirmed_changes_nothing(chromium: Any, fleet: LiveFleet) -> None:
    """Another number than the one shown is refused, in words."""
    seat = Seat(chromium, fleet, viewport=DESK)
    page = seat.go("/devices?query=status:pending")
    before = page.locator(".meaning strong").inner_text()
    page.get_by_role("button", name="Look at the change").click()
    seat.confirm(1000, "oops")
    assert "nothing has changed" in page.content()
    assert page.locator(".meaning strong").inner_text() == before
    seat.context.close()


def test_views_and_columns_stay_together(chromium: Any, fleet: LiveFleet) -> None:
    """A saved view has its query and its columns; choosing columns never loses the query (NetBox 20694)."""
    seat = Seat(chromium, fleet, viewport=DESK)
    page = seat.go("/devices?query=model:2b")
    page.locator("summary", has_text="Columns").click()
    page.get_by_role("checkbox", name="Serial").uncheck()
    page.get_by_role("checkbox", name="Tags").check()
    page.get_by_role("button", name="Show these").click()
    assert page.locator("#query").input_value() == "model:2b"
    heads = page.locator("thead").inner_text()
    assert "Tags" in heads and "Serial" not in heads
    page.locator("summary", has_text="Save view").click()
    page.get_by_label("Name", exact=True).fill("two-b")
    page.get_by_role("button", name="Save", exact=True).click()
    assert page.locator("#query").input_value() == "@two-b"
    page = seat.go("/devices")
    page.get_by_role("link", name="two-b").click()
    assert "Serial" not in page.locator("thead").inner_text()
    assert "model is 2B" in page.locator(".meaning").inner_text()
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("name,id,") and "tag" in lines[0] and "serial" not in lines[0]
    assert len(lines) - 1 == int(page.locator(".meaning strong").inner_text())
    assert fleet.cli("view", "remove", "two-b").returncode == 0
    seat.context.close()


PAGES = (
    "/devices",
    "/devices?query=modle:2b",
    "/pending",
    "/audit?verify=1",
    "/enrollment",
    "/settings",
    "/api",
    "/devices/charts",
)


@pytest.mark.parametrize("size", [DESK, HAND], ids=["desk", "hand"])
def test_nobody_is_shut_out(chromium: Any, fleet: LiveFleet, axe: str, size: dict[str, int]) -> None:
    """axe-core has nothing serious to say of any page, by day and night, and none is wider than its window."""
    seat = Seat(chromium, fleet, viewport=size, bypass_csp=True)
    device = fleet.cli("devices", "simulated:false", "-o", "name").stdout.strip()
    for path in (*PAGES, f"/devices/{device}", "/sign-in"):
        page = seat.go(path)
        page.evaluate(axe)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
            serious = [
                f"{one['id']}: {one['nodes'][0]['html'][:150]}"
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert not serious, (path, scheme, serious)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (path, scheme)
    seat.context.close()


@pytest.mark.parametrize(
    ("name", "size", "scheme"), [("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", HAND, "dark")]
)
def test_pictures(chromium: Any, fleet: LiveFleet, name: str, size: dict[str, int], scheme: str) -> None:
    """The pages that the README shows are those that were just tested."""
    seat = Seat(chromium, fleet, viewport=size, color_scheme=scheme)
    page = seat.go("/devices?query=memory:1gb+auth:7d&sort=name")
    page.locator(".charts svg").first.wait_for()
    seat.picture(f"devices-{name}")
    seat.go("/pending")
    seat.picture(f"pending-{name}")
    device = fleet.cli("devices", "status:quarantined,approved", "--limit", "1", "-o", "name").stdout.strip()
    seat.go(f"/devices/{device}")
    seat.picture(f"device-{name}")
    assert not seat.complaints
    seat.context.close()


def test_what_a_device_says_is_text(chromium: Any, live: LiveFleet) -> None:
    """D-07: nothing of it runs, in any page."""
    live.enroll(approved=False, board={"serial": "<img src=x onerror=alert(1)>", "model": "<script>alert(1)</script>"})
    seat = Seat(chromium, live, viewport=DESK)
    said: list[str] = []
    seat.page.on("dialog", lambda dialog: said.append(dialog.message))
    for path in ("/devices", "/pending", "/audit", "/devices/charts"):
        page = seat.go(path)
        assert page.locator("img[src='x']").count() == 0
    assert not said and not seat.complaints
    seat.context.close()
