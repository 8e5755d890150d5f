"""The one application: the OAuth endpoints as plain functions, ahead of Django in the same process.

Rules kept here, for everything that comes in:

* a body is at most MAX_BODY bytes and arrives within the time that is set for it, and it is read on the event loop: a
  slow client holds a little memory and no thread;
* what blocks (database, signatures) runs in a pool of few threads; when too many requests wait for it, the next one is
  sent away with Retry-After (requirement RS-05);
* a path is served exactly as it is written, and nothing in a request changes what the server says about itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pi_agent.errors import OAuthError
from pi_agent.fleet import counters, database, enrollment, health, introspection, rotation
from pi_agent.fleet.clerk import BUG, FAILED, MAX_WAITING, Clerk, log
from pi_agent.fleet.pages import static_files
from pi_agent.fleet.rest import PROGRAMS
from pi_agent.fleet.sources import client_behind, networks, source_of
from pi_agent.fleet.threaded import Threaded, close_pool
from pi_agent.fleet.tokens import Authority, load_authority
from pi_agent.fleet.web import (
    MAX_BODY,
    MAX_ESCAPES,
    READ_ONLY,
    Answer,
    Request,
    oauth_refusal,
    problem_answer,
    too_large,
    too_slow,
    try_again,
)

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Endpoint = Callable[..., Answer]  # (request, *, now, authority)

THREADS = 4
MAX_KIND = 256  # for each quote and semicolon in a content type Django looks at all of it


class Disconnected(Exception):  # noqa: N818  # not an error: there is nobody left to tell
    """The client went away in the middle of its request."""


class Application:
    """The ASGI application of a fleet (ASGI 3). ``close`` ends its threads. ``authority`` is replaced when its keys change."""

    def __init__(self, authority: Authority, *, clock: Callable[[], float] = time.time) -> None:
        self.authority = authority
        self.clock = clock
        self.django = Threaded()
        self.clerk = Clerk(lambda: self.authority, clock)
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="oauth")
        self.waiting = 0
        self.proxies = networks(authority.settings.trusted_proxy)
        self.blocking: dict[str, Endpoint] = {
            "/oauth/register": enrollment.answer,
            "/oauth/rotate": rotation.answer,
            "/oauth/introspect": introspection.introspect,
            "/oauth/revoke": introspection.revoke,
            "/readyz": health.ready,
        }
        self.reading: dict[str, Callable[[], Answer]] = {
            "/oauth/jwks": lambda: self.authority.jwks(int(self.clock())),
            "/.well-known/oauth-authorization-server": lambda: self.authority.metadata,
            "/healthz": lambda: health.ALIVE,
        }

    def reload(self) -> None:
        """Take over what has changed in the database. Blocks; raises what ``load_authority`` raises."""
        self.authority = load_authority(self.authority.settings, now=int(self.clock()), before=self.authority)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"no {scope['type']} here")
        try:
            await self._serve(scope, receive, send)
        except Disconnected:
            return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self.proxies:
            scope["client"] = client_behind(scope.get("client") or ("", 0), scope["headers"], self.proxies)
        path, method = scope["raw_path"].decode("latin-1"), scope["method"]
        try:
            body = await read_body(headers, receive, self.authority.settings.body_seconds)
        except OAuthError as error:
            return await reply(send, refusal(path, error), method, close=True)
        if path == "/oauth/token":
            return await reply(send, await self.clerk.answer(self._request(scope, headers, body)), method)
        if path in self.reading:
            return await reply(send, self.reading[path]() if method in ("GET", "HEAD") else READ_ONLY, method)
        if path.startswith(static_files.PREFIX):
            return await reply(send, static_files.answer(method, path, headers), method)
        if path in self.blocking:
            answer = await self._in_thread(self.blocking[path], self._request(scope, headers, body))
            counters.count("pi_fleet_requests_total", f"{path.rpartition('/')[2]} {answer.outcome}")
            return await reply(send, answer, method)
        if why := unreadable(scope["headers"]):
            return await reply(send, refusal(path, why), method)
        scope["application"] = self  # for the metrics
        return await self.django.answer(scope, body, receive, send)

    def _request(self, scope: Scope, headers: Mapping[bytes, bytes], body: bytes) -> Request:
        return Request(
            method=scope["method"],
            body=body,
            content_type=headers.get(b"content-type", b"").decode("latin-1"),
            authorization=headers.get(b"authorization", b"").decode("latin-1"),
            source=source_of(scope),
        )

    async def _in_thread(self, endpoint: Endpoint, request: Request) -> Answer:
        if self.waiting >= MAX_WAITING:
            return oauth_refusal(try_again("the server is busy"))
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, self._answer, endpoint, request)
        finally:
            self.waiting -= 1

    def _answer(self, endpoint: Endpoint, request: Request) -> Answer:
        try:
            return endpoint(request, now=int(self.clock()), authority=self.authority)
        except Exception as error:  # noqa: BLE001  # the last line: whatever it is, the client is told nothing about it
            log.error(BUG, type(error).__name__, exc_info=error)
            return FAILED
        finally:
            database.release()

    def close(self) -> None:
        """Let each thread finish and close its own database connection."""
        self.clerk.close()
        self.django.close()
        close_pool(self.pool, THREADS)


def unreadable(headers: Iterable[tuple[bytes, bytes]]) -> OAuthError | None:
    """Why Django is not given a request, which it would read for seconds before it knows who asks."""
    headers = list(headers)
    kind = b",".join(value for name, value in headers if name == b"content-type").lower()
    if b"multipart" in kind or len(kind) > MAX_KIND:
        return OAuthError("invalid_request", "no such content type is taken, nor a form in parts", status=415)
    if sum(value.count(b"\\") for name, value in headers if name == b"cookie") > MAX_ESCAPES:
        return OAuthError("invalid_request", f"the cookies have more than {MAX_ESCAPES} escapes")
    return None


def refusal(path: str, error: OAuthError) -> Answer:
    return problem_answer(error) if path.startswith(PROGRAMS) else oauth_refusal(error)


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, seconds: float) -> bytes:
    """The whole body. Raises OAuthError (413 or 408) when it is too large or too slow, Disconnected when it never ends."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:10]) > MAX_BODY:
        raise too_large()
    try:
        async with asyncio.timeout(seconds):
            return await _read_all(receive)
    except TimeoutError:
        raise too_slow(seconds) from None


async def _read_all(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise too_large()
        if not message.get("more_body", False):
            return bytes(body)


async def reply(send: Send, answer: Answer, method: str, *, close: bool = False) -> None:
    headers = {"content-length": str(len(answer.body)), **answer.headers, "x-content-type-options": "nosniff"}
    if close:
        headers["connection"] = "close"
    await send({"type": "http.response.start", "status": answer.status, "headers": _encoded(headers.items())})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
