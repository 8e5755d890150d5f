"""A question asked beside another one: how many devices there are, while the first of them are fetched.

An exact count takes as long as all the rest of an answer, and the database can do both at once. It is asked on a
connection of its own, by one of a few threads that a server has for that. Where there is none, or all are busy, it is
asked in its turn.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import ClassVar, TypeVar

from django.db import connection

from pi_agent.fleet import database

Answer = TypeVar("Answer")

THREADS = 4


class Assistants:
    """The threads. Whoever makes them lets them be ``employed``, and closes their ``pool`` (``threaded``)."""

    employed: ClassVar[Assistants | None] = None

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="aside", initializer=database.read_much)
        self.idle = BoundedSemaphore(THREADS)

    def ask(self, question: Callable[[], Answer]) -> Callable[[], Answer]:
        """Begin to ask, if one is idle; what is returned gives the answer, or raises what the question did."""
        if not self.idle.acquire(blocking=False):
            return question
        return self.pool.submit(self._work, question).result

    def _work(self, question: Callable[[], Answer]) -> Answer:
        try:
            connection.close_if_unusable_or_obsolete()
            return question()
        finally:
            database.release()
            self.idle.release()


def aside(question: Callable[[], Answer]) -> Callable[[], Answer]:
    """Ask beside what comes next, and collect the answer later. In a transaction it waits: no other connection sees into it."""
    if Assistants.employed is None or connection.in_atomic_block:
        return question
    return Assistants.employed.ask(question)
