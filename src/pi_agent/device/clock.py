"""What time it is, on a board without a battery clock. Pure: ``wall`` is the system clock, ``boot`` boot time, in seconds.

The server's Date is remembered as an *anchor*: the server's time when the board booted. Boot time goes on through
every step of the system clock, so the anchor stays true when somebody sets it. The system clock is never touched, and
nothing is signed while neither of the two is believable (requirements A-06, A-07, RA-15, RA-16).
"""

from __future__ import annotations

BUILT = 1_793_491_200  # 2026-11-01: no clock that is right shows an earlier time to this program
LAST = BUILT + 50 * 366 * 86400
TOLERANCE = 10.0  # a Date has whole seconds and spent some of them on the way
STEP = 2.0

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: the resident reads this
if TYPE_CHECKING:
    from collections.abc import Callable


def is_plausible(seconds: float) -> bool:
    """False for a time before this program was built, or more than fifty years after."""
    return BUILT <= seconds < LAST


def anchor(date: float, boot: float) -> float | None:
    """The anchor of a server's Date that came at ``boot``, or None when the server's clock cannot be right either."""
    return date - boot if is_plausible(date) else None


def offset(wall: float, boot: float, anchored: float) -> int:
    """How many seconds the server is ahead of the system clock; 0 within what an answer can tell."""
    difference = boot + anchored - wall
    return 0 if abs(difference) <= TOLERANCE else round(difference)


def signing_time(wall: float, boot: float, anchored: float | None) -> int | None:
    """The time to sign with: the server's where it is known and differs, else the system's. None: no believable time."""
    if anchored is not None and (not is_plausible(wall) or offset(wall, boot, anchored)):
        return int(boot + anchored)
    return int(wall) if is_plausible(wall) else None


class Watch:
    """Notices that somebody has set the system clock: its distance from boot time has changed."""

    def __init__(self, wall: float, boot: float) -> None:
        self._distance = wall - boot

    def step(self, wall: float, boot: float) -> float:
        """The seconds by which the clock was set since the last call, 0.0 if it was not."""
        step = wall - boot - self._distance
        self._distance += step
        return step if abs(step) >= STEP else 0.0


def sentence(wall: float, boot: float, anchored: float | None, date: Callable[[float], str]) -> str:
    """What is wrong with the clock, in words; "" when nothing is. ``date`` writes a time as a person reads it."""
    if not is_plausible(wall):
        cause = f"the clock is wrong: it says {date(wall)}, and this program was built {date(BUILT)}"
        return cause if anchored is None else f"{cause}; signing with the server's time"
    ahead = offset(wall, boot, anchored) if anchored is not None else 0
    if not ahead:
        return ""
    return f"the clock is {length(abs(ahead))} {'behind' if ahead > 0 else 'ahead of'} the server; signing with the server's time"


def length(seconds: float) -> str:
    """``95 s``, ``12 min``, ``5 h``, ``3 days``."""
    whole = int(max(seconds, 0))
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 2 * 86400)):
        if whole < most:
            return f"{whole // size} {unit}"
    return f"{whole // 86400} days"
