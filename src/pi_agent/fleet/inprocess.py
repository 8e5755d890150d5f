"""The application without a server: one request at a time, from a command that found nobody listening."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.settings import Settings


def application(settings: Settings, *, uid: int) -> Callable[[str, str, bytes], tuple[int, bytes]]:
    """``exchange(method, path, body) -> (status, body)`` with the fleet of ``settings``, as a peer on its local socket."""
    fleet_settings.configure(settings)
    fleet_settings.migrate()
    from pi_agent.fleet.asgi import Application  # models exist only once Django is set up
    from pi_agent.fleet.tokens import load_authority  # the same

    app = Application(load_authority(settings, now=int(time.time())))
    return lambda method, path, body: asyncio.run(_exchange(app, _scope(method, path, uid), body))


def _scope(method: str, target: str, uid: int) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("uid", uid),
        "server": ("localhost", None),
    }


async def _exchange(app: Any, scope: dict[str, Any], body: bytes) -> tuple[int, bytes]:
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    answered = asyncio.Event()
    status, parts = 500, []

    async def receive() -> Mapping[str, Any]:
        if requests:
            return requests.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body"):
                answered.set()

    await app(scope, receive, send)
    return status, b"".join(parts)
