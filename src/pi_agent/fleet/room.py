"""Room for connections: so many in all, and so many from one place, so that one host alone cannot take them all (RS-06)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pi_agent.fleet.limits import neighbourhood
from pi_agent.fleet.sources import Network, is_proxy


class Room:
    """``total`` connections, ``each`` from one neighbourhood; behind one of ``proxies`` there are many."""

    def __init__(self, total: int, each: int, proxies: Sequence[Network] = ()) -> None:
        self.total, self.each, self.proxies = total, each, proxies
        self.taken = 0
        self.places: Counter[str] = Counter()

    def take(self, host: str) -> Place:
        """A place for a connection from ``host``, to be left when it ends, also when there was no room for it."""
        where = "" if is_proxy(host, self.proxies) else neighbourhood(host)
        self.taken += 1
        self.places[where] += 1
        crowded = bool(where) and self.places[where] > self.each
        return Place(self, where, is_free=self.taken <= self.total and not crowded)


class Place:
    """What one connection takes."""

    __slots__ = ("is_free", "room", "where")

    def __init__(self, room: Room, where: str, *, is_free: bool) -> None:
        self.room: Room | None = room
        self.where = where
        self.is_free = is_free

    def leave(self) -> None:
        """Twice is once."""
        room, self.room = self.room, None
        if room is not None:
            room.taken -= 1
            room.places[self.where] -= 1
            if not room.places[self.where]:
                del room.places[self.where]
