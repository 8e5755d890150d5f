"""When to ask for a token next. Pure: ``now`` and every answer are seconds of boot time, ``chance`` is a number in [0, 1).

A token is renewed at half its life, give or take a tenth, so that boards that started together drift apart. A failed
attempt waits a random part of a window that doubles (full jitter; at least half of it once it grows no more, since full
jitter alone would knock 2,000 times in a week's outage), a refused device asks slowly, and the server's ``Retry-After``
is obeyed up to six hours (requirements RA-01, RA-04, RA-14, RA-33).
"""

from __future__ import annotations

BASE, CAP = 2.0, 600.0
REFUSED_BASE, REFUSED_CAP = 300.0, 3600.0
PENDING_BASE, PENDING_CAP = 5.0, 120.0
MAX_RETRY_AFTER = 6 * 3600.0
SHORTEST_PAUSE = 1.0
LASTING = 60.0  # a success that holds this long ends a back-off: a network that comes and goes does not (RA-34)
BOOTING = 600.0  # an agent that starts this soon after boot was probably woken by a power cut, with all the others
RESTART_SPREAD = 2.0

FAILED, REFUSED, PENDING = "failed", "refused", "pending"


def first_attempt(now: float, *, phase: float, spread: float) -> float:
    """After boot: ``phase`` in [0, 1) is the device's own and never changes, so a fleet spreads the same way each time."""
    return now + phase * spread


def spread_at_start(now: float, spread: float) -> float:
    """A fleet boots together after a power cut; an agent that was merely restarted need not wait that long."""
    return spread if now < BOOTING else min(spread, RESTART_SPREAD)


def refresh_at(asked_at: float, expires_in: float, *, chance: float) -> float:
    """Half the life, +-10 % of it, counted from before the request was sent (RA-13), and never sooner than a second."""
    return asked_at + max(SHORTEST_PAUSE, expires_in * (0.4 + 0.2 * chance))


def retry_at(now: float, outcome: str, failures: int, *, chance: float, retry_after: float | None = None) -> float:
    """The next attempt after one that ended in ``outcome``, the last of ``failures`` (1, 2, ...) without a lasting success."""
    doubled = 2.0 ** min(failures - 1, 20)
    if outcome == REFUSED:
        pause = min(REFUSED_CAP, REFUSED_BASE * doubled) * (0.9 + 0.2 * chance)
    elif outcome == PENDING:
        pause = min(PENDING_CAP, PENDING_BASE * doubled) * (0.5 + 0.5 * chance)
    else:
        window = min(CAP, BASE * doubled)
        pause = window * (0.5 + 0.5 * chance if window == CAP else chance)
    if retry_after is not None and retry_after > 0:
        pause = max(pause, min(retry_after, MAX_RETRY_AFTER) * (1 + 0.1 * chance))
    return now + max(pause, SHORTEST_PAUSE)
