"""How far long work has come, on a terminal; elsewhere nothing is said until it is done."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

EVERY = 0.2


class Progress:
    """A line on stderr that counts up to ``total`` (None: nobody knows how far it goes). Used as a context."""

    def __init__(self, what: str, total: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.total, self.clock = what, total, clock
        self.done, self.shown = 0, 0.0
        self.on_terminal = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        return self

    def add(self, number: int) -> None:
        self.done += number
        if self.on_terminal and self.clock() - self.shown >= EVERY:
            self.shown = self.clock()
            of = f" of {self.total:,} ({self.done * 100 // self.total} %)" if self.total else ""
            sys.stderr.write(f"\r{self.what}: {self.done:,}{of}\x1b[K")
            sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        if self.on_terminal and self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
