"""Token buckets: how often one source, or one device, may ask.

A limit slows down and never locks out: a bucket refills all the time, and only requests whose signature was good count
against a device, so that nobody can use up another's share (requirement B-29). ``now`` is a clock in seconds; one that
is set back only makes a bucket refill later.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Limit:
    """``rate`` requests a second for each key, ``burst`` at once; the ``keys`` seen last are remembered."""

    rate: float
    burst: int
    keys: int = 100_000
    _buckets: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def wait(self, key: str, now: float) -> int:
        """0 and one request counted, or the whole seconds until the next one would pass."""
        with self._lock:
            level, since = self._buckets.pop(key, (float(self.burst), now))
            level = min(float(self.burst), level + max(0.0, now - since) * self.rate)
            passes = level >= 1
            self._buckets[key] = (level - 1 if passes else level, now)
            if len(self._buckets) > self.keys:
                self._buckets.popitem(last=False)
        return 0 if passes else math.ceil((1 - level) / self.rate)


@dataclass(frozen=True, slots=True)
class Limits:
    """All limits of a server. The figures leave room for a site behind one address, and for a wave of reboots."""

    requests: Limit = field(default_factory=lambda: Limit(rate=500, burst=2000))
    registrations: Limit = field(default_factory=lambda: Limit(rate=2, burst=200))
    device: Limit = field(default_factory=lambda: Limit(rate=1, burst=60))
