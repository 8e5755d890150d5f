"""Token buckets: how often one source, or one device, may ask.

A limit slows down and never locks out: a bucket refills all the time, and only requests whose signature was good count
against a device, so that nobody can use up another's share (requirement B-29). ``now`` is a clock in seconds; one that
is set back only makes a bucket refill later.
"""

from __future__ import annotations

import ipaddress
import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from pi_agent.fleet.settings import Settings
from pi_agent.fleet.web import try_again

MAX_STEP = 60


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
    """All limits of a server. As they are set, they leave room for a site behind one address, and for a wave of reboots."""

    requests: Limit
    registrations: Limit
    device: Limit

    @staticmethod
    def of(settings: Settings) -> Limits:
        return Limits(
            requests=Limit(settings.request_rate, settings.request_burst),
            registrations=Limit(settings.registration_rate, settings.registration_burst),
            device=Limit(settings.device_rate, settings.device_burst),
        )


def wait_of_source(limit: Limit, source: str, now: float) -> int:
    """``limit.wait`` for a place in the network: one host may use any address of an IPv6 /64.

    Who is on this machine (``uid 1000``) never waits.
    """
    return 0 if source.startswith("uid ") else limit.wait(neighbourhood(source), now)


def neighbourhood(source: str) -> str:
    """The part of the network that counts as one: an IPv4 address, or the /64 of an IPv6 address."""
    if ":" not in source:
        return source
    address = ipaddress.IPv6Address(source.partition("%")[0])
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))


class Watch:
    """An eye on this server's clock: tokens that were issued have a time, and time does not go back (requirement RS-09)."""

    def __init__(self, newest: int) -> None:
        self.newest = newest

    def check(self, now: int) -> None:
        """Raise OAuthError (503) when the clock went back by more than MAX_STEP seconds since the newest token."""
        if now < self.newest - MAX_STEP:
            raise try_again(f"the server's clock is {self.newest - now} s behind the newest token it has issued")
        self.newest = max(self.newest, now)

    def reset(self, newest: int) -> None:
        """Go by what the database says now: somebody may have put it right."""
        self.newest = newest
