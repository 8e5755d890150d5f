"""Power cuts and full disks at every step, as SQLite tests itself: the n-th step fails, for n = 1, 2, ... to the end.

A step is a change on the card (made, linked, renamed, removed, flushed) or a request, before it leaves and after the
answer was made. ``run`` gives back True when the work came through without meeting the n-th step.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from fleet.board import Board
from pi_agent.errors import TransportError

CALLS = ("link", "rename", "replace", "unlink", "fsync", "mkdir", "write")


class PowerCut(BaseException):
    """The board is off: nothing after this line of code has happened."""


class Steps:
    """Counts steps; at the ``fatal``-th, ``fail`` is called."""

    def __init__(self, fatal: int, fail: Callable[[str], None]) -> None:
        self.fatal = fatal
        self.fail = fail
        self.count = 0
        self.armed = True

    def step(self, what: str) -> None:
        self.count += 1
        if self.armed and self.count == self.fatal:
            self.armed = False
            self.fail(what)


def power_cut(what: str) -> None:
    raise PowerCut(what)


def full_disk(what: str) -> None:
    if what.startswith("/oauth"):
        raise TransportError("the answer was lost", reason="timeout")
    raise OSError(28, "No space left on device")


FAULTS: dict[str, Callable[[str], None]] = {"power cut": power_cut, "full disk, lost answers": full_disk}


@contextmanager
def counted(board: Board, steps: Steps) -> Iterator[None]:
    """Every step of ``board`` goes through ``steps``."""

    def line(moment: str, path: str) -> None:
        steps.step(path if path.startswith("/oauth") else "/oauth/metadata")

    def wrapped(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            steps.step(name)
            return real(*arguments, **named)

        return call

    before = board.network.line
    board.network.line = line
    patches = [patch.object(os, name, wrapped(name)) for name in CALLS]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()
        board.network.line = before


def run(board: Board, work: Callable[[], object], fatal: int, fail: Callable[[str], None]) -> bool:
    """Do ``work`` with the ``fatal``-th step failing. True when there were fewer steps than that."""
    steps = Steps(fatal, fail)
    try:
        with counted(board, steps):
            work()
    except (PowerCut, OSError, Exception):  # noqa: BLE001  # whatever it was: the board starts again
        pass
    return steps.armed
