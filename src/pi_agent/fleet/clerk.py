"""The line in front of the token endpoint: many requests on the event loop, two threads, one transaction for all that wait.

    event loop -> prepare (signatures; the first thread) -> settle (transaction, tokens; the second) -> event loop

While the second thread waits for the disk, the first one works on what comes in, and all of that goes into the next
transaction together: the busier the server, the less a token costs. When too many wait, newcomers are sent away with
Retry-After (requirement RS-05), and whoever was let in is answered.

Addresses from which a good assertion came lately go first and have a line of their own length, so that a flood of
forgeries from elsewhere fills only the line of strangers (RS-08). One from the same address meets its limit (B-29).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from django.db import connections

from pi_agent.errors import OAuthError
from pi_agent.fleet import counters, grants
from pi_agent.fleet.grants import Claim, Unusable
from pi_agent.fleet.line import Known, Line
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Answer, Request, json_answer, oauth_refusal, try_again

MAX_WAITING = 512
MAX_READ = 16  # the first of them goes on when the last one is read
MAX_BATCH = 128
MAX_KNOWN = 100_000
BUSY = OAuthError("temporarily_unavailable")
FAILED = json_answer(500, {"error": "server_error"}, outcome="server_error")
BUG = "an endpoint failed with %s; this is a bug in pi-fleet"


class Asker(NamedTuple):
    """Whom to answer, on which event loop; where it asks from, and whether that was known."""

    loop: asyncio.AbstractEventLoop
    answer: Callable[[Answer], None]
    source: str
    known: bool


log = logging.getLogger("pi_agent.fleet")


class Clerk:
    """Answers token requests. ``authority`` and ``clock`` are asked anew for each batch."""

    def __init__(self, authority: Callable[[], Authority], clock: Callable[[], float]) -> None:
        self.authority = authority
        self.clock = clock
        self.waiting = [0, 0]  # strangers, known ones
        self.known = Known(MAX_KNOWN)
        self.asked: Line[tuple[Request, Asker]] = Line()
        self.claimed: Line[tuple[Claim | Unusable, Asker]] = Line()
        self.threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self.prepare, self.settle)
        ]
        for thread in self.threads:
            thread.start()

    def submit(self, request: Request, loop: asyncio.AbstractEventLoop, answer: Callable[[Answer], None]) -> None:
        """Have one token request answered, by a call of ``answer`` on ``loop``, which is the one that runs here."""
        known = request.source in self.known
        try:
            grants.check_source(request, int(self.clock()), self.authority())
            if self.waiting[known] >= MAX_WAITING:
                raise BUSY
        except OAuthError as error:
            outcome = "busy" if error is BUSY else error.error
            counters.count("pi_fleet_token_requests_total", outcome)
            answer(oauth_refusal(try_again("the server is busy") if error is BUSY else error))
        else:
            self.waiting[known] += 1
            self.asked.put((request, Asker(loop, answer, request.source, known)), first=known)

    async def answer(self, request: Request) -> Answer:
        """The answer to one token request."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        self.submit(request, loop, lambda answer: None if future.done() else future.set_result(answer))
        return await future

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self.asked.close()
        for thread in self.threads:
            thread.join()

    def prepare(self) -> None:
        """The first thread."""
        try:
            while batch := self.asked.take(MAX_READ):
                found = self._read([request for request, _ in batch])
                refused = []
                for each, (_, asker) in zip(found, batch, strict=True):
                    if isinstance(each, Answer):
                        refused.append((asker, each))
                    else:
                        self.claimed.put((each, asker))
                self.deliver([asker for asker, _ in refused], [each for _, each in refused])
        finally:
            connections.close_all()
            self.claimed.close()

    def _read(self, requests: Sequence[Request]) -> list[Claim | Unusable | Answer]:
        """What goes on to the second thread, or the answer that refuses it, for each request."""
        try:
            return grants.read(requests, now=int(self.clock()), authority=self.authority())
        except Exception as error:  # the last line: whatever it is, the client is told nothing about it
            if len(requests) > 1:  # one of them is the cause: each for itself
                return [self._read([request])[0] for request in requests]
            log.error(BUG, type(error).__name__, exc_info=error)
            return [FAILED]

    def settle(self) -> None:
        """The second thread."""
        try:
            while batch := self.claimed.take(MAX_BATCH):
                counters.count("pi_fleet_token_batches_total")
                counters.count("pi_fleet_token_batched_total", by=len(batch))
                self.deliver([asker for _, asker in batch], self._settle([each for each, _ in batch]))
        finally:
            connections.close_all()

    def _settle(self, waiting: Sequence[Claim | Unusable]) -> list[Answer]:
        try:
            return grants.settle(waiting, now=int(self.clock()), authority=self.authority())
        except Exception as error:  # as above
            log.error(BUG, type(error).__name__, exc_info=error)
            return [FAILED for _ in waiting]

    def deliver(self, askers: Sequence[Asker], answers: Sequence[Answer]) -> None:
        """Hand answers over to the event loop that waits for them, all in one step."""
        for loop in {asker.loop for asker in askers}:
            pairs = [(asker, answer) for asker, answer in zip(askers, answers, strict=True) if asker.loop is loop]
            with contextlib.suppress(RuntimeError):  # it was closed: nobody waits any more
                loop.call_soon_threadsafe(self._answer, pairs)

    def _answer(self, pairs: Sequence[tuple[Asker, Answer]]) -> None:
        for asker, answer in pairs:
            self.waiting[asker.known] -= 1
            if answer.status == 200:
                self.known.add(asker.source)
            counters.count("pi_fleet_token_requests_total", answer.outcome)
            asker.answer(answer)
