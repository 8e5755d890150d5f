"""The way in: links, where they lead, and what becomes of a form whose session has ended."""

from __future__ import annotations

import pytest

from fleet.browser import Browser, link
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
