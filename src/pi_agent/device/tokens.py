"""The tokens that the resident keeps: one slot per (audience, scope), each with its own schedule. Pure: ``now`` is boot time.

The first slot is the configured one and is always kept fresh. Another comes to be when a caller who may have it asks,
is then kept fresh like the first, and goes when nobody has asked for a while. Nobody can take them all: who has fewer
gets one in place of another's. A failed attempt never takes away a token that is still good. Refresh tokens stay in this
memory and are never written anywhere.
"""

from __future__ import annotations

from pi_agent.device import schedule

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: the resident reads this
if TYPE_CHECKING:
    from collections.abc import Callable

MAX_SLOTS = 16
NEVER = 1e12  # boot seconds that no board lives to see
MOST_LET_GO = 64
FORGOTTEN_AFTER = 3600.0
LONGEST_FLIGHT = 60.0  # by then an attempt has come to something
DEMAND_PAUSE = 10.0  # what callers ask for reaches the server at most this often per slot


class Slot:
    """``outcome`` is ``starting``, ``token`` or what the last attempt came to; ``failure`` its fields, empty after a token.

    ``renewing`` while somebody waits for another token than this one.
    """

    def __init__(self, audience: str, scope: str, first: float) -> None:
        self.audience = audience
        self.scope = scope
        self.head = self.tail = self.refresh_token = ""
        self.expires = self.life = 0.0
        self.asked = first - schedule.REFUSED_CAP  # nothing has been asked: no pause to keep
        self.next = first
        self.wanted = first
        self.uid = 0  # who asked for it first
        self.failures = 0
        self.doublings = 0  # failures since the last success that lasted
        self.since = 0.0  # when this run of successes began
        self.renewing = False
        self.outcome = "starting"
        self.failure: dict[str, str] = {}

    def left(self, now: float) -> int:
        """Whole seconds that the token is still good for; 0 or less when there is none."""
        return int(self.expires - now)

    def may_hold(self, now: float) -> bool:
        """It has what the server would take, or an attempt that is under way may bring that."""
        return self.left(now) > 0 or bool(self.refresh_token) or now < self.asked + LONGEST_FLIGHT

    def answer(self, left: int) -> bytes:
        """The token answer (RFC 6749 section 5.1) with the seconds that are left now."""
        return f"{self.head}{left}{self.tail}".encode()

    def is_refused(self) -> bool:
        return self.outcome in (schedule.REFUSED, schedule.PENDING)

    def try_now(self, now: float, *, pause: float = schedule.SHORTEST_PAUSE) -> None:
        """Bring the next attempt forward, at least ``pause`` after the last one."""
        self.next = min(self.next, max(now, self.asked + pause))

    def keep(self, fields: dict[str, str], chance: float) -> None:
        """A token has come. Its life counts from before the request was sent (RA-13)."""
        self.head, self.tail = fields["head"], fields["tail"]
        self.refresh_token = fields.get("refresh_token", "")
        self.life = float(int(fields["expires_in"]))
        self.expires = self.asked + self.life
        self.next = schedule.refresh_at(self.asked, self.life, chance=chance)
        self.failures = 0
        if self.outcome != "token":
            self.since = self.asked
        self.outcome, self.failure = "token", {}

    def fail(self, fields: dict[str, str], now: float, chance: float) -> None:
        """An attempt came to nothing; what was there before stays."""
        self.failures += 1
        lasted = self.outcome == "token" and now - self.since >= schedule.LASTING
        self.doublings = 1 if lasted else self.doublings + 1
        self.outcome, self.failure = fields["outcome"], fields
        if fields.get("forget_refresh_token"):
            self.refresh_token = ""
        text = fields.get("retry_after", "")
        retry_after = float(text) if text.isdigit() and len(text) < 10 else None
        self.next = schedule.retry_at(now, self.outcome, self.doublings, chance=chance, retry_after=retry_after)

    def clear(self, next_attempt: float) -> None:
        """Forget the token, and try again at ``next_attempt``."""
        self.head = self.tail = self.refresh_token = ""
        self.expires, self.next = 0.0, next_attempt
        self.outcome, self.failure = "starting", {}
        self.failures = self.doublings = 0


class Tokens:
    """All slots. ``first`` is when the configured one is asked for.

    ``let_go`` are those that are kept no more while the server still takes their tokens: a sign-out revokes them, too.
    """

    def __init__(self, audience: str, scope: str, first: float) -> None:
        self.default = Slot(audience, scope, first)
        self._slots = {(audience, scope): self.default}
        self.let_go: list[Slot] = []
        self.rest = 0.0  # until then nothing is asked at all

    def __iter__(self):  # type: ignore[no-untyped-def]  # Iterator[Slot]; the word would need an import at run time
        return iter(list(self._slots.values()))

    def find(self, audience: str, scope: str, now: float, uid: int = 0) -> Slot | None:
        """The slot, made for ``uid`` if there is none and room for it; None when there is no room."""
        slot = self._slots.get((audience, scope))
        if slot is None and (len(self._slots) < MAX_SLOTS or self._make_room(uid, now)):
            slot = self._slots[audience, scope] = Slot(audience, scope, now)
            slot.uid = uid
        if slot is not None:
            slot.wanted = now
        return slot

    def _make_room(self, uid: int, now: float) -> bool:
        """Let go of the least wanted slot of whoever has most, as long as ``uid`` does not end up with more than they."""
        kept: dict[int, list[Slot]] = {uid: []}
        for slot in self._slots.values():
            if slot is not self.default:
                kept.setdefault(slot.uid, []).append(slot)
        most = max(kept.values(), key=len)
        if len(most) < len(kept[uid]) + 2:
            return False
        self._let_go(min(most, key=_wanted), now)
        return True

    def _let_go(self, slot: Slot, now: float) -> None:
        del self._slots[slot.audience, slot.scope]
        self.let_go = [each for each in (*self.let_go, slot) if each.may_hold(now)][-MOST_LET_GO:]

    def next_attempt(self) -> float:
        return max(self.rest, min(slot.next for slot in self._slots.values()))

    def due(self, now: float) -> Slot | None:
        """The slot that has waited longest, or None when no attempt is due."""
        slot: Slot = min(self._slots.values(), key=_next)
        return slot if self.next_attempt() <= now else None

    def sweep(self, now: float) -> None:
        """Let go of slots that nobody asks for any more."""
        for slot in self:
            if slot is not self.default and now - slot.wanted > max(FORGOTTEN_AFTER, 2 * slot.life):
                self._let_go(slot, now)

    def change(self, audience: str, scope: str, now: float) -> None:
        """Another configured token: it takes the first place, and the old one stays only if it is asked for."""
        if (audience, scope) != (self.default.audience, self.default.scope):
            slot = self._slots.get((audience, scope)) or Slot(audience, scope, now)
            self.default, self._slots = slot, {(audience, scope): slot} | self._slots

    def each(self, action: Callable[[Slot], None]) -> None:
        """Those let go, too."""
        for slot in (*self, *self.let_go):
            action(slot)


def _wanted(slot: Slot) -> float:
    return slot.wanted


def _next(slot: Slot) -> float:
    return slot.next
