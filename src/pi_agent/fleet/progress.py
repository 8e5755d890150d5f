"""How far long work has come, on a terminal; and an end to it between two steps, and not within one."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable

EVERY = 0.2


class Progress:
    """A line on stderr that counts up to ``total`` (None: nobody knows how far it goes). Used as a context.

    Ctrl-C within it raises KeyboardInterrupt at the next ``add``, so that what ``done`` says is what was done; pressed
    twice, at once.
    """

    def __init__(self, what: str, total: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.what, self.total, self.clock = what, total, clock
        self.done, self.shown = 0, 0.0
        self.on_terminal = sys.stderr.isatty()
        self.interrupted = False

    def __enter__(self) -> Progress:
        self.before = signal.getsignal(signal.SIGINT)
        with contextlib.suppress(ValueError):  # only the main thread can be interrupted
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def _interrupt(self, number: int, frame: object) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def add(self, number: int) -> None:
        self.done += number
        if self.interrupted:
            raise KeyboardInterrupt
        if self.on_terminal and self.clock() - self.shown >= EVERY:
            self.shown = self.clock()
            of = f" of {self.total:,} ({self.done * 100 // self.total} %)" if self.total else ""
            sys.stderr.write(f"\r{self.what}: {self.done:,}{of}\x1b[K")
            sys.stderr.flush()

    def reach(self, number: int, total: int) -> None:
        """``add``, by somebody who knows the total now."""
        self.total = total or self.total
        self.add(number)

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, self.before)
        if self.on_terminal and self.shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
