"""How many requests a caller has left: counted in windows, and told in the answer's headers before it is too late."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

KEYS = 10_000


@dataclass(frozen=True, slots=True)
class State:
    """``left`` of ``limit`` requests until ``reset`` seconds from now; ``wait`` is how long to wait, 0 for not at all."""

    limit: int
    left: int
    reset: int
    wait: int


@dataclass(slots=True)
class Rate:
    """``limit`` requests in each ``seconds`` for a key; the keys seen last are remembered."""

    limit: int
    seconds: int
    _windows: OrderedDict[str, tuple[float, int]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count(self, key: str, now: float) -> State:
        """Count a request at ``now`` (any clock in seconds that does not go back)."""
        with self._lock:
            start, used = self._windows.pop(key, (now, 0))
            start, used = (now, 0) if now - start >= self.seconds else (start, used)
            self._windows[key] = (start, used + 1)
            if len(self._windows) > KEYS:
                self._windows.popitem(last=False)
        reset = math.ceil(start + self.seconds - now)
        return State(self.limit, max(0, self.limit - used - 1), reset, reset if used >= self.limit else 0)
