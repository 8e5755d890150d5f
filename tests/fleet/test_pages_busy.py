"""What the pages say while another process holds the database's write lock for longer than anybody waits."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fleet.browser import Browser
from fleet.conftest import SETTINGS
from fleet.support import Pi, exchange
from fleet.test_changes import devices
from fleet.test_roles import token
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import Device, OperatorToken

pytestmark = pytest.mark.skipif(SETTINGS.shares_database, reason="the lock of SQLite")


@contextmanager
def write_lock() -> Iterator[None]:
    other = sqlite3.connect(SETTINGS.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def test_a_change_says_that_the_registry_is_busy(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """503 and that nothing has changed, and the log has one line and no traceback; afterwards the same form is still good."""
    devices(2)
    browser.get("/devices")
    browser.post("/devices/act", query="status:pending", action="approve")
    shown = browser.page
    fields = {"query": "status:pending", "action": "approve", "count": "2", "expected": "2", "reason": "all"}
    fields["selection"] = browser.field("selection")
    with write_lock():
        assert browser.post("/devices/act", **fields).status == 503
    assert "Nothing has changed" in browser.page and "our fault" not in browser.page
    assert browser.reply.headers["retry-after"]
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)]
    browser.page = shown
    assert browser.post("/devices/act", **fields).status == 302
    assert Device.objects.filter(status="approved").count() == 2


@pytest.mark.parametrize("path", ["/sd/prometheus", "/api/v1/devices"])
def test_a_question_needs_no_lock(app: Application, pi: Pi, path: str) -> None:
    """A token whose use cannot be noted is good all the same."""
    headers = {"host": "fleet.test", "authorization": f"Bearer {token('reader')}"}
    with write_lock():
        assert exchange(app, "GET", path, headers=headers).status == 200
    assert OperatorToken.objects.get().used_at is None
    assert exchange(app, "GET", path, headers=headers).status == 200
    assert OperatorToken.objects.get().used_at is not None
