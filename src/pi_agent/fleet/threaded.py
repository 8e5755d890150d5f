"""Django behind ASGI, all of a request in one thread, out of few, each of which keeps its connection to the database.

Django's own handler starts a thread and opens the database anew for each request, and goes back and forth between the
thread and the event loop a dozen times until it is answered. That takes longer than most questions do.

Rules: a change that has arrived whole is worked off whole, whether or not the client is still there; a question is not
begun, and an answer that is streamed ends, when it leaves. A streamed answer is made a part at a time, in whichever thread
is free. Changes, and whoever is on this machine, have threads of their own: no reader can keep a revocation waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from django.core.handlers.asgi import ASGIHandler, get_script_prefix
from django.core.signals import request_started
from django.db import connections
from django.http import HttpResponseBase
from django.urls import set_script_prefix

from pi_agent.fleet import aside, database
from pi_agent.fleet.aside import Assistants

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

THREADS = 8
CHANGING = 2


class Threaded(ASGIHandler):
    """Answers requests whose body has been read. ``close`` ends its threads."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="django", initializer=database.read_much)
        self.changes = ThreadPoolExecutor(CHANGING, thread_name_prefix="changes", initializer=database.read_much)
        self.assistants = Assistants.employed = Assistants()

    def load_middleware(self, is_async: bool = False) -> None:  # as Django has it
        super().load_middleware(is_async=False)

    async def answer(self, scope: dict[str, Any], body: bytes, receive: Receive, send: Send) -> None:
        in_thread = asyncio.get_running_loop().run_in_executor
        asks = scope["method"] in ("GET", "HEAD")
        is_local = (scope.get("client") or ("",))[0] == "uid"
        leaving = asyncio.ensure_future(receive())
        try:
            pool = self.changes if is_local or not asks else self.pool
            response = await in_thread(pool, self._respond, scope, body, leaving.done if asks else lambda: False)
            if response is not None:
                await self._send(response, leaving, send)
        finally:
            leaving.cancel()

    async def _send(self, response: Any, leaving: asyncio.Future[Message], send: Send) -> None:
        in_thread = asyncio.get_running_loop().run_in_executor
        start = {"type": "http.response.start", "status": response.status_code, "headers": _headers(response)}
        if not response.streaming:
            await send(start)
            await send({"type": "http.response.body", "body": response.content})
            return
        parts = iter(response)
        try:
            await send(start)
            while not leaving.done() and (part := await in_thread(self.pool, _next, parts)):
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body"})
        finally:
            await in_thread(self.pool, response.close)

    def _respond(self, scope: dict[str, Any], body: bytes, is_gone: Callable[[], bool]) -> Any:
        """The response, or None to a client that left while its question waited for a thread."""
        if is_gone():
            return None
        set_script_prefix(get_script_prefix(scope))
        request_started.send(sender=type(self), scope=scope)
        request, refusal = self.create_request(scope, BytesIO(body))
        response: Any = refusal if request is None else self.get_response(request)
        response._handler_class = type(self)
        if not response.streaming:
            response.close()
        return response

    def close(self) -> None:
        close_pool(self.pool, THREADS)
        close_pool(self.changes, CHANGING)
        Assistants.employed = None
        close_pool(self.assistants.pool, aside.THREADS)


def _headers(response: HttpResponseBase) -> list[tuple[bytes, bytes]]:
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in response.items()]
    cookies = [
        (b"Set-Cookie", cookie.output(header="").strip().encode("ascii")) for cookie in response.cookies.values()
    ]
    return headers + cookies


def _next(parts: Iterator[bytes]) -> bytes:
    """The next part that is not empty; empty at the end."""
    return next(filter(None, parts), b"")


def close_pool(pool: ThreadPoolExecutor, threads: int) -> None:
    """Let each thread finish and close its own database connection."""
    meeting = threading.Barrier(threads)

    def leave() -> None:
        meeting.wait(timeout=5)  # so that every thread takes one of these, and no thread two
        connections.close_all()

    for _ in range(threads):
        pool.submit(leave)
    pool.shutdown()
