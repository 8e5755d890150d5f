"""When a device is late: by its own rhythm, the way TCP knows that an answer is late (RFC 6298 section 2).

Each token tells how long it was since the one before. The rhythm is the smoothed time between tokens, the spread is how
far single times stray from it, and a device is due again after its rhythm and four times its spread. One that comes
every fifteen minutes is missed within the hour, and one that comes once a week is left in peace for that week.

Times under ``MIN_GAP`` are retries and say nothing; a long absence counts as eight times the rhythm at most, so that one
holiday does not make a device unmissable. All numbers are whole seconds, so that SQL does the same arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_GAP = 60
SLACK = 60
MAX_STRETCH = 8


@dataclass(frozen=True, slots=True)
class Rhythm:
    """The usual time between two tokens and its spread, in seconds."""

    usual: int
    spread: int

    def due(self, last: int) -> int:
        """The second after which the device is late, if its last token was at ``last``."""
        return last + self.usual + 4 * self.spread + SLACK

    def after(self, gap: int) -> Rhythm:
        """The rhythm once another ``gap`` has been seen."""
        if gap < MIN_GAP:
            return self
        gap = min(gap, MAX_STRETCH * self.usual)
        return Rhythm((7 * self.usual + gap) // 8, (3 * self.spread + abs(self.usual - gap)) // 4)


def first(gap: int) -> Rhythm | None:
    """The rhythm that two tokens show, if they were far enough apart to show one."""
    return Rhythm(gap, gap // 2) if gap >= MIN_GAP else None
