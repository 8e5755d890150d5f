"""Signing out: which tokens the server is to revoke (RFC 7009), and what has become of them. Pure.

A token that was not revoked is kept for the next try, since whoever has it may go on. So is what a worker still brings
that was under way when the agent signed out.
"""

from __future__ import annotations

from pi_agent.device import frames, outlets

ROOM = frames.MAX_FRAME // 2 - 1024  # for the tokens in a frame: the settings have the other half
MOST_LEFT = 64  # an agent that lives for years at a server that revokes nothing still has little memory
NOTHING_HELD, NOT_YET = "nothing was held", "not revoked yet"
AGAIN = "once more with: sudo pi-agent sign-out"

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from pi_agent.device.tokens import Tokens


class Leaving:
    """``said`` is what a sign-out has come to, "" while the agent is signed in."""

    def __init__(self) -> None:
        self.said = ""
        self._waiting: list[str] = []  # to be revoked yet
        self._in_hand: list[str] = []  # with the worker
        self._left: list[str] = []  # not revoked when this was tried last
        self._problem = ""

    def begin(self, tokens: Tokens, now: float) -> None:
        """Take down what is held now, what was let go while it was good, and what was left over."""
        held = [slot for slot in (*tokens.let_go, *tokens) if slot.left(now) > 0 or slot.refresh_token]
        self._waiting += self._left
        self._left, self._problem = [], ""
        for slot in held:
            self.add(slot.head, slot.refresh_token)
        self.said = NOT_YET if self.is_busy() else NOTHING_HELD

    def add(self, head: str, refresh_token: str) -> None:
        found = [token for token in (outlets.bare(head), refresh_token) if token]
        self._waiting += found
        if found:
            self.said = NOT_YET

    def is_busy(self) -> bool:
        return bool(self._waiting or self._in_hand)

    def is_done(self) -> bool:
        """Nothing that was held is worth anything any more."""
        return not (self._waiting or self._in_hand or self._left)

    def next_batch(self) -> str:
        """The tokens for a worker, which has them in hand from now on; "" when it has some yet, or there are none."""
        if self._in_hand:
            return ""
        length = 0
        while self._waiting and (not self._in_hand or length + len(self._waiting[0]) < ROOM):
            length += len(self._waiting[0]) + 1
            self._in_hand.append(self._waiting.pop(0))
        return " ".join(self._in_hand)

    def on_answer(self, fields: dict[str, str]) -> None:
        """A worker has done what it could. ``left`` are the numbers of the tokens that were not revoked; without it, all."""
        message = fields.get("message", "")
        if fields.get("outcome") != "revoked":
            left = fields["left"].split() if "left" in fields else None
            self._left += [token for number, token in enumerate(self._in_hand) if left is None or str(number) in left]
            del self._left[:-MOST_LEFT]
            self._problem = f"not revoked: {message}; {AGAIN}"
        self._in_hand = []
        if self.said:  # and not signed in again in the meantime
            self.said = NOT_YET if self._waiting else self._problem or message
