"""One query, one set: REST, pages of any size and order, CSV, the page, counts and bulk action agree with the language."""

from __future__ import annotations

import csv
import html
import io
import json
import random
import re
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.browser import Browser, link, take
from fleet.support import ME, exchange
from pi_agent import query as query_language
from pi_agent.catalogue import fold
from pi_agent.fleet import changes, export, registry
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.changes import Chosen
from pi_agent.fleet.models import Device, DeviceTag, View
from pi_agent.fleet.paging import SORTS

NOW = int(time.time())
COLUMNS = {
    "name": "name", "model": "model", "memory": "memory_mib", "serial": "serial", "revision": "revision", "rev": "pcb_revision",
    "soc": "soc", "maker": "maker", "status": "status", "auth": "auth_at", "seen": "seen_at", "refused": "refused_at",
    "created": "created_at", "key": "key_protection", "agent": "agent_version", "id": "client_id", "overvoltage": "overvoltage",
    "warranty": "warranty", "simulated": "simulated",
}  # fmt: skip
TERMS = (
    "model:2b", "model:zero*,3b", "memory:1gb", "memory:>=512mb", "-tag:lab", "tag:none", "tag:k*", "auth:1d", "auth:older:1d",
    "auth:never", "status:pending,approved", "late:true", "late:false", "late:none", "serial:*1", "kitchen", "name:*-1*",
    "soc:bcm2835", "memory:none", "seen:1h", "-(model:2b memory:1gb)", "warranty:true", "refused:never", "agent:0.*",
)  # fmt: skip


@pytest.fixture
def fleet(app: Application) -> list[Device]:
    """Sixty devices, with gaps in what is known of them and ties in every column."""
    dice = random.Random(7)
    for number in range(60):
        auth = dice.choice([None, NOW - dice.randrange(3 * 86400), NOW - 3600])
        model = dice.choice([None, "2B", "3B", "Zero W", "B+"])
        name = f"{dice.choice(['kitchen', 'Attic', 'hall'])}-{number % 20}"
        device = Device.objects.create(
            client_id=f"pi-{number:016x}",
            name=name,
            name_key=fold("name", name),
            status=dice.choice(["pending", "approved", "quarantined", "revoked"]),
            model=model,
            model_key=fold("model", model) if model else None,
            memory_mib=dice.choice([None, 256, 512, 1024]),
            serial=dice.choice([None, f"{number:016x}"]),
            soc=dice.choice([None, "BCM2835"]),
            warranty=dice.choice([None, True, False]),
            agent_version=dice.choice([None, "0.1.0", "1.0"]),
            created_at=NOW - dice.randrange(5) * 86400,
            auth_at=auth,
            seen_at=auth,
            due_at=None if auth is None else auth + dice.randrange(7200),
        )
        for tag in dice.sample(["lab", "Kiosk", "hall"], dice.randrange(3)):
            DeviceTag.objects.create(device=device, tag=tag, tag_key=tag.lower())
    return list(Device.objects.prefetch_related("tags"))


def row(device: Device) -> dict[str, Any]:
    values = {name: getattr(device, column) for name, column in COLUMNS.items()}
    late = None if device.due_at is None else device.due_at < NOW
    return values | {"tag": [tag.tag for tag in device.tags.all()], "late": late}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    terms=st.lists(st.sampled_from(TERMS), min_size=0, max_size=3),
    joined=st.sampled_from([" ", " OR "]),
    sort=st.sampled_from([*SORTS, *(f"-{name}" for name in SORTS)]),
    size=st.integers(1, 25),
)
def test_every_way_gives_the_same_set(fleet: list[Device], terms: list[str], joined: str, sort: str, size: int) -> None:
    """Whatever is asked, in whatever order and in pages of whatever size."""
    text = joined.join(terms)
    query = query_language.parse(text, NOW)
    expected = {device.client_id for device in fleet if query_language.matches(query, row(device))}

    found, cursor = [], ""
    while True:
        page = registry.find(text, now=NOW, limit=size, sort=sort, cursor=cursor)
        assert page.total == len(expected)
        found += [device.client_id for device in page.devices]
        if page.cursor is None:
            break
        cursor = page.cursor
    assert len(found) == len(set(found)) and set(found) == expected

    lines = list(csv.DictReader(io.StringIO("".join(export.lines("csv", text, sort=sort, now=NOW)))))
    assert [line["id"] for line in lines] == found
    jsonl = "".join(export.lines("jsonl", text, columns="id", sort=sort, now=NOW))
    assert [json.loads(line)["id"] for line in jsonl.splitlines()] == found
    assert sum(count for _, count in registry.count_by(text, "model", now=NOW).counts) == len(expected)
    assert sum(registry.count_by_status(text, now=NOW).values()) == len(expected)
    if text:
        preview = changes.preview("revoke", Chosen(text), now=NOW)
        assert preview.matched == len(expected)
        assert {device.client_id for device in preview.changed} <= expected


@pytest.mark.parametrize("text", ["model:2b", "late:true", "tag:lab OR auth:never", "kitchen"])
def test_the_page_and_rest_show_the_same(fleet: list[Device], app: Application, text: str) -> None:
    """What the page lists is what REST lists, and what its CSV link gives."""
    browser = Browser(app)
    take(browser, link(app))
    rest = exchange(
        app, "GET", f"/api/v1/devices?limit=1000&query={text.replace(' ', '+')}", b"", {"host": "localhost"}, ME
    )
    wanted = {item["id"] for item in rest.json["items"]}
    shown, path = set(), "/devices?sort=name&query=" + text.replace(" ", "+")
    while path:
        page = browser.get(path).body.decode()
        shown |= set(re.findall(r'href="/devices/(pi-[0-9a-f]{16})"', page))
        following = re.search(r'href="([^"]+)">Next page', page)
        path = following[1].replace("&amp;", "&") if following else ""
    assert shown == wanted and wanted


def test_the_links_of_a_view_ask_what_the_page_shows(app: Application, fleet: list[Device]) -> None:
    """CSV and charts beside a view in one status; a view is named nowhere but in front, so they have its query."""
    View.objects.create(slug="two-b", query="model:2b", columns="", sort="", created_at=NOW, created_by="test")
    browser = Browser(app)
    take(browser, link(app))
    page = browser.get("/devices?query=@two-b&status=approved").body.decode()
    csv_link, chart_link = (
        html.unescape(re.findall(rf'"(/{path}\?[^"]+)"', page)[0]) for path in (r"devices\.csv", "devices/charts")
    )
    rows = list(csv.DictReader(io.StringIO(browser.get(csv_link).body.decode())))
    wanted = {one.client_id for one in fleet if (one.model, one.status) == ("2B", "approved")}
    assert {found["id"] for found in rows} == wanted
    assert wanted and browser.get(chart_link).status == 200
