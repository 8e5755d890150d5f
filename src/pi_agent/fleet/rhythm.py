"""When a device is late: by its own rhythm, the way TCP knows that an answer is late (RFC 6298 section 2).

Each token tells how long it was since the one before. The rhythm is the smoothed time between tokens, the spread is how
far single times stray from it, and a device is due again after its rhythm and four times its spread. One that comes
every fifteen minutes is missed within the hour, and one that comes once a week is left in peace for that week.

Times under ``MIN_GAP`` are retries and say nothing; a long absence counts as eight times the rhythm at most, so that one
holiday does not make a device unmissable. All numbers are whole seconds.

The token path knows nothing of this: the housekeeper looks at those that had a token since it looked last, more often
than ``MIN_GAP``, so that it misses no gap that counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from django.db import connection, transaction
from django.db.models import F, Q

from pi_agent.fleet import database
from pi_agent.fleet.models import Device

MIN_GAP = 60
SLACK = 60
MAX_STRETCH = 8
LOOK_BACK = 900
BATCH = 200

READ = ("client_id", "pk", "auth_at", "rhythm_at", "rhythm", "rhythm_spread", "due_at")
KEEP = """
    UPDATE fleet_device SET rhythm_at = %s, rhythm = %s, rhythm_spread = %s, due_at = %s
    WHERE id = %s AND auth_at = %s AND (rhythm_at IS NULL OR rhythm_at < auth_at)"""


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


def keep(now: int, *, since: int | None = None) -> int:
    """Take up the tokens that devices had since ``since`` (or lately); how many devices were looked at.

    In small transactions, each in the order in which tokens lock devices, and with little Python for each device: tokens
    are issued meanwhile, and want both.
    """
    since = now - LOOK_BACK if since is None else since
    fresh = Q(rhythm_at=None) | Q(rhythm_at__lt=F("auth_at"))
    rows, seen, done, begun = Device.objects.filter(fresh).order_by("auth_at", "pk"), 0, Q(), time.monotonic()
    while batch := list(rows.filter(done, auth_at__gte=since).values_list(*READ)[:BATCH]):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.executemany(KEEP, [(*_kept(*known), pk, known[0]) for _, pk, *known in sorted(batch)])
        seen, (_, last, since, *_) = seen + len(batch), batch[-1]
        done = Q(auth_at__gt=since) | Q(pk__gt=last)
        database.give_way(begun)
        begun = time.monotonic()
    return seen


def _kept(
    auth_at: int, rhythm_at: int | None, usual: int | None, spread: int | None, due_at: int | None
) -> tuple[int | None, ...]:
    """What KEEP writes: ``rhythm_at`` and what follows it in READ."""
    gap = auth_at - rhythm_at if rhythm_at is not None else 0
    known = Rhythm(usual, spread) if usual is not None and spread is not None else None
    rhythm = known.after(gap) if known else first(gap)
    if rhythm is None:
        return auth_at, usual, spread, due_at
    return auth_at, rhythm.usual, rhythm.spread, rhythm.due(auth_at)
