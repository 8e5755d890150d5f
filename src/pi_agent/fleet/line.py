"""A waiting line between threads, in which some come first."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Line(Generic[Item]):
    """Any thread puts, one thread takes. ``close`` ends it: what is there is still taken, and then nothing."""

    def __init__(self) -> None:
        self.first: deque[Item] = deque()
        self.others: deque[Item] = deque()
        self.closed = False
        self.ready = threading.Condition(threading.Lock())

    def put(self, item: Item, *, first: bool = False) -> None:
        with self.ready:
            (self.first if first else self.others).append(item)
            self.ready.notify()

    def close(self) -> None:
        with self.ready:
            self.closed = True
            self.ready.notify()

    def take(self, most: int) -> list[Item]:
        """Wait for something, then take all that is there, up to ``most``; nothing once it was closed and is empty."""
        with self.ready:
            while not (self.first or self.others or self.closed):
                self.ready.wait()
            taken = [self.first.popleft() for _ in range(min(most, len(self.first)))]
            taken += [self.others.popleft() for _ in range(min(most - len(taken), len(self.others)))]
            return taken


class Known:
    """The names seen last, at most ``most`` of them."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.names: OrderedDict[str, None] = OrderedDict()

    def add(self, name: str) -> None:
        self.names[name] = None
        self.names.move_to_end(name)
        if len(self.names) > self.most:
            self.names.popitem(last=False)

    def __contains__(self, name: str) -> bool:
        return name in self.names
