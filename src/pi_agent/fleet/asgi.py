"""The one application: the OAuth endpoints as plain functions, ahead of Django in the same process.

Rules kept here, for everything that comes in:

* a body is at most MAX_BODY bytes and arrives within BODY_SECONDS, and it is read on the event loop: a slow client
  holds a little memory and no thread;
* what blocks (database, signatures) runs in a pool of few threads; when too many requests wait for it, the next one is
  sent away with Retry-After (requirement RS-05);
* a path is served exactly as it is written, and nothing in a request changes what the server says about itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.db import DatabaseError, connection, connections

from pi_agent.errors import OAuthError
from pi_agent.fleet import enrollment, grants
from pi_agent.fleet.pages import static_files
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import MAX_BODY, NO_STORE, Answer, Request, json_answer, oauth_refusal, try_again

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Endpoint = Callable[[Request], Answer]

BODY_SECONDS = 20
THREADS = 4
MAX_WAITING = 512

log = logging.getLogger("pi_agent.fleet")


class Disconnected(Exception):  # noqa: N818  # not an error: there is nobody left to tell
    """The client went away in the middle of its request."""


class Application:
    """The ASGI application of a fleet (ASGI 3). ``close`` ends its threads."""

    def __init__(self, authority: Authority, *, clock: Callable[[], float] = time.time) -> None:
        self.django = ASGIHandler()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="oauth")
        self.waiting = 0

        def posted(endpoint: Callable[..., Answer]) -> Endpoint:
            return lambda request: endpoint(request, now=int(clock()), authority=authority)

        self.blocking: dict[str, Endpoint] = {
            "/oauth/token": posted(grants.answer),
            "/oauth/register": posted(enrollment.answer),
            "/healthz": health,
        }
        self.fixed = {
            "/oauth/jwks": authority.jwks,
            "/.well-known/oauth-authorization-server": authority.metadata,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"no {scope['type']} here")
        try:
            await self._serve(scope, receive, send)
        except Disconnected:
            return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        try:
            body = await read_body(headers, receive)
        except OAuthError as error:
            return await reply(send, oauth_refusal(error), scope["method"], close=True)
        path, method = scope["path"], scope["method"]
        if path in self.fixed:
            return await reply(send, self.fixed[path] if method in ("GET", "HEAD") else READ_ONLY, method)
        if path.startswith(static_files.PREFIX):
            return await reply(send, static_files.answer(method, path, headers), method)
        if path not in self.blocking:
            return await self.django(scope, replay(body, receive), send)
        request = Request(
            method=method,
            body=body,
            content_type=headers.get(b"content-type", b"").decode("latin-1"),
            authorization=headers.get(b"authorization", b"").decode("latin-1"),
            source=source_of(scope),
        )
        return await reply(send, await self._in_thread(self.blocking[path], request), method)

    async def _in_thread(self, endpoint: Endpoint, request: Request) -> Answer:
        if self.waiting >= MAX_WAITING:
            return oauth_refusal(try_again("the server is busy"))
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pool, _answer, endpoint, request)
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Let each thread finish and close its own database connection."""
        meeting = threading.Barrier(THREADS)

        def leave() -> None:
            meeting.wait(timeout=5)  # so that every thread takes one of these, and no thread two
            connections.close_all()

        for _ in range(THREADS):
            self.pool.submit(leave)
        self.pool.shutdown()


def _answer(endpoint: Endpoint, request: Request) -> Answer:
    try:
        return endpoint(request)
    except Exception as error:  # the last line: whatever it is, the client is told nothing about it
        log.error("an endpoint failed with %s; this is a bug in pi-fleet", type(error).__name__, exc_info=error)
        return json_answer(500, {"error": "server_error"})


def health(request: Request) -> Answer:
    """Whether the server can serve: it runs, and its database answers."""
    if request.method not in ("GET", "HEAD"):
        return READ_ONLY
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        connection.close()
        return json_answer(503, {"status": "the database does not answer"})
    return json_answer(200, {"status": "ok"})


READ_ONLY = json_answer(405, {"error": "invalid_request"}, {**NO_STORE, "allow": "GET, HEAD"})


def source_of(scope: Scope) -> str:
    """The peer: an IP address, or ``uid 1000`` on the local socket (``server.Protocol`` puts it there)."""
    host, port = scope.get("client") or ("", 0)
    return f"uid {port}" if host == "uid" else str(host)


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body. Raises OAuthError (413 or 408) when it is too large or too slow, Disconnected when it never ends."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:10]) > MAX_BODY:
        raise _too_large()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read_all(receive)
    except TimeoutError:
        raise OAuthError("invalid_request", f"the body took longer than {BODY_SECONDS} s", status=408) from None


async def _read_all(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise _too_large()
        if not message.get("more_body", False):
            return bytes(body)


def _too_large() -> OAuthError:
    return OAuthError("invalid_request", f"the body is larger than {MAX_BODY} bytes", status=413)


def replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` for an application behind us: the body that was read already, then what the connection says."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


async def reply(send: Send, answer: Answer, method: str, *, close: bool = False) -> None:
    headers = {"content-length": str(len(answer.body)), **answer.headers, "x-content-type-options": "nosniff"}
    if close:
        headers["connection"] = "close"
    await send({"type": "http.response.start", "status": answer.status, "headers": _encoded(headers.items())})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else answer.body})


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
