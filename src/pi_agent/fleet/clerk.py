"""The queue in front of the token endpoint: many requests on the event loop, two threads, one transaction for all that wait.

    event loop -> prepare (signatures; the first thread) -> settle (transaction, tokens; the second) -> event loop

While the second thread waits for the disk, the first one works on what comes in, and all of that goes into the next
transaction together: the busier the server, the less a token costs. When too many wait, newcomers are sent away with
Retry-After (requirement RS-05), and whoever was let in is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from django.db import connections

from pi_agent.fleet import grants
from pi_agent.fleet.grants import Claim, Unusable
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, json_answer, oauth_refusal, try_again

MAX_WAITING = 512
MAX_BATCH = 128
FAILED = json_answer(500, {"error": "server_error"})
BUG = "an endpoint failed with %s; this is a bug in pi-fleet"

Future = asyncio.Future[Answer]
Item = TypeVar("Item")

log = logging.getLogger("pi_agent.fleet")


class Clerk:
    """Answers token requests. ``authority`` and ``clock`` are asked anew for each batch."""

    def __init__(self, authority: Callable[[], Authority], clock: Callable[[], float]) -> None:
        self.authority = authority
        self.clock = clock
        self.waiting = 0
        self.asked: queue.SimpleQueue[tuple[Request, Future] | None] = queue.SimpleQueue()
        self.claimed: queue.SimpleQueue[tuple[Claim | Unusable, Future] | None] = queue.SimpleQueue()
        self.threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self.prepare, self.settle)
        ]
        for thread in self.threads:
            thread.start()

    async def answer(self, request: Request) -> Answer:
        """The answer to one token request. On the event loop."""
        if self.waiting >= MAX_WAITING:
            return oauth_refusal(try_again("the server is busy"))
        future: Future = asyncio.get_running_loop().create_future()
        self.waiting += 1
        self.asked.put((request, future))
        try:
            return await future
        finally:
            self.waiting -= 1

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self.asked.put(None)
        for thread in self.threads:
            thread.join()

    def prepare(self) -> None:
        """The first thread."""
        try:
            while batch := take(self.asked):
                for request, future in batch:
                    self._prepare(request, future)
        finally:
            connections.close_all()
            self.claimed.put(None)

    def _prepare(self, request: Request, future: Future) -> None:
        try:
            found = grants.prepare(request, now=int(self.clock()), authority=self.authority())
        except Exception as error:  # the last line: whatever it is, the client is told nothing about it
            log.error(BUG, type(error).__name__, exc_info=error)
            found = FAILED
        if isinstance(found, Answer):
            deliver([(future, found)])
        else:
            self.claimed.put((found, future))

    def settle(self) -> None:
        """The second thread."""
        try:
            while batch := take(self.claimed):
                deliver(
                    list(zip([future for _, future in batch], self._settle([each for each, _ in batch]), strict=True))
                )
        finally:
            connections.close_all()

    def _settle(self, waiting: Sequence[Claim | Unusable]) -> list[Answer]:
        try:
            return grants.settle(waiting, now=int(self.clock()), authority=self.authority())
        except Exception as error:  # as above
            log.error(BUG, type(error).__name__, exc_info=error)
            return [FAILED for _ in waiting]


def take(source: queue.SimpleQueue[Item | None]) -> list[Item]:
    """Wait for something, then take all that is there, up to MAX_BATCH; nothing once None has come."""
    batch: list[Item] = []
    item = source.get()
    while item is not None:
        batch.append(item)
        if len(batch) == MAX_BATCH or source.empty():
            return batch
        item = source.get()
    source.put(None)  # for the next call
    return batch


def deliver(answers: list[tuple[Future, Answer]]) -> None:
    """Hand answers over to the event loop that waits for them, all in one step."""
    for loop in {future.get_loop() for future, _ in answers}:
        with contextlib.suppress(RuntimeError):  # it was closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, [pair for pair in answers if pair[0].get_loop() is loop])


def _resolve(answers: list[tuple[Future, Answer]]) -> None:
    for future, answer in answers:
        if not future.done():  # the client may have left
            future.set_result(answer)
