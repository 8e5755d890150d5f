"""What a server does by itself, beside requests: in step with the keys, forgetting what is over, putting the log away.

One thread, one chore at a time, each by its own clock. A chore that fails is tried again at its next turn; none of them
is needed for a request that is under way, and all servers of a fleet may do them at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from django.db import DatabaseError, connection, connections

from pi_agent.errors import PiAgentError
from pi_agent.fleet import audit, database, ledger, rhythm, signing
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.limits import MAX_STEP
from pi_agent.fleet.models import RevokedToken

RELOAD_SECONDS = 5
PURGE_SECONDS = 10
RHYTHM_SECONDS = 30
CHECKPOINT_SECONDS = 1
ROTATE_SECONDS = 600
TURN_SECONDS = 1.0  # the others wait meanwhile, and so does the end
PASSIVE = "PRAGMA wal_checkpoint(PASSIVE)"
MAX_LOG_PAGES = 32_000  # 128 MB: then the log is begun anew, for which a request may wait a moment

log = logging.getLogger("pi_agent.fleet")


@dataclass(slots=True)
class Chore:
    """``work(now)`` every ``seconds``, and again at once when it says that there is more; ``due`` is by the monotonic clock."""

    name: str
    seconds: float
    work: Callable[[int], object]
    due: float = 0.0


class SteadyClock:
    """Whether the wall clock can be acted upon: what is forgotten by a clock that is wrong for a moment is gone for good.

    It cannot for a while after it was set. A server that starts with a wrong clock is not noticed here.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.wall, self.monotonic = wall, monotonic
        self.offset = wall() - monotonic()
        self.steady_from = 0.0

    def is_steady(self) -> bool:
        offset, now = self.wall() - self.monotonic(), self.monotonic()
        if abs(offset - self.offset) > MAX_STEP:
            log.warning("the clock was set by %d s; nothing is forgotten for a while", round(offset - self.offset))
            self.steady_from = now + ledger.KEEP_USED
        self.offset = offset
        return now >= self.steady_from


class Housekeeper:
    """The thread. ``close`` ends it; ``hurry`` makes all chores due."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.clock = SteadyClock()
        self.chores = [
            Chore("loading the signing keys", RELOAD_SECONDS, lambda now: application.reload()),
            Chore("purging", PURGE_SECONDS, lambda now: self.clock.is_steady() and purge(now)),
            Chore("the rhythms of the devices", RHYTHM_SECONDS, self.keep_rhythms),
            Chore("the checkpoint", CHECKPOINT_SECONDS, checkpoint),
            Chore("the rotation of the signing keys", ROTATE_SECONDS, self.rotate),
        ]
        self.looked: int | None = None
        self.ended = threading.Event()
        self.woken = threading.Event()
        self.thread = threading.Thread(target=self.run, name="housekeeper", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def hurry(self) -> None:
        for chore in self.chores:
            chore.due = 0.0
        self.woken.set()

    def close(self) -> None:
        self.ended.set()
        self.woken.set()
        self.thread.join()

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                for chore in self.chores:
                    if not self.ended.is_set() and time.monotonic() >= chore.due:
                        chore.due = time.monotonic() + chore.seconds
                        if attempt(chore):
                            chore.due = 0.0
                            self.woken.set()
                self.woken.wait(1.0)
                self.woken.clear()
        finally:
            connections.close_all()

    def keep_rhythms(self, now: int) -> None:
        rhythm.keep(now, since=self.looked)
        self.looked = now - RHYTHM_SECONDS  # tokens that were under way at that moment, and clocks of other servers

    def rotate(self, now: int) -> None:
        if not self.clock.is_steady():
            return
        row = signing.rotate_when_due(self.application.authority.settings, now=now)
        if row is not None:
            event = Event("signing-key.rotate", detail={"kid": row.kid, "signs_from": row.signs_from})
            audit.record([event], actor=Actor("pi-fleet serve", "housekeeper"), now=now)


def attempt(chore: Chore) -> object:
    """What the chore has said; nothing when it failed."""
    try:
        return chore.work(int(time.time()))
    except DatabaseError as error:
        connection.close()
        log.warning("%s failed: %s", chore.name, database.reason(error))
    except PiAgentError as error:
        log.error("%s failed: %s", chore.name, error)
    except Exception as error:  # the last line: the other chores are still to be done
        log.error("%s failed with %s; this is a bug in pi-fleet", chore.name, type(error).__name__, exc_info=error)
    finally:
        database.release()
    return None


def purge(now: int) -> bool:
    """Forget used assertions and revoked tokens that are over, for a moment, in small steps; whether there are more."""
    end = time.monotonic() + TURN_SECONDS
    while (begun := time.monotonic()) < end:
        if ledger.purge(now) < ledger.PURGE_ROWS:
            RevokedToken.objects.filter(expires_at__lt=now - ledger.KEEP_USED).delete()
            return False
        database.give_way(begun)
    return True


def checkpoint(now: int) -> None:
    """Take SQLite's write-ahead log over into the database while requests go on; a long one is begun anew.

    For that requests have to wait. A passive checkpoint does not wait for the disk, so most of it would be left for that
    moment (measured: 54 ms); two rounds before it leave little to copy and little to wait for (3 ms).
    """
    if connection.vendor != "sqlite":
        return
    with connection.cursor() as cursor:
        cursor.execute(PASSIVE)
        _, pages, _ = cursor.fetchone()
        if pages > MAX_LOG_PAGES:
            for _ in range(2):
                database.wait_for_disk()
                cursor.execute(PASSIVE)
            cursor.execute("PRAGMA wal_checkpoint(RESTART)")
