"""The resident's use of ``sinks``: what is put out when a token comes, when it ends, and when the server refuses."""

from __future__ import annotations

import time

from pi_agent.device import schedule, sinks

HOOK_DEADLINE = 30.0

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

    from pi_agent.device.tokens import Slot

    Start = Callable[[list[str], dict[str, str], float], None]

bare = sinks.bare


class Outlets:
    """``problem`` says what could not be written, or is "". ``settings`` are the fields that ``preparation.py`` packs."""

    def __init__(self, settings: dict[str, str], gid: int | None) -> None:
        self.problem = ""
        self._gid = gid
        self._out = False
        self.change(settings)

    def change(self, settings: dict[str, str]) -> None:
        """Take new settings. What is out under an old name goes."""
        self.remove()
        self._token_file = settings["token_file"]
        self._environment_file = settings["environment_file"]
        self._hooks = settings["hooks"]

    def put(self, slot: Slot, now: float, *, changed: bool, start: Start) -> None:
        """After an attempt: write a new token, or take a refused device's files away; and tell the hooks."""
        if slot.outcome == "token":
            self._write(slot, now)
        elif slot.outcome == schedule.REFUSED:
            self.remove()
        if slot.outcome == "token" or changed:
            variables = {"PI_AGENT_EVENT": slot.outcome, "PI_AGENT_REASON": slot.failure.get("reason", "")}
            for path in sinks.hooks(self._hooks, slot.outcome):
                start([path], variables, now)

    def sweep(self, slot: Slot, now: float) -> None:
        """Take the files away when their token has ended."""
        if self._out and slot.left(now) <= 0:
            self.remove()

    def remove(self) -> None:
        if self._out:
            self._out = False
            sinks.remove(self._token_file)
            sinks.remove(self._environment_file)

    def _write(self, slot: Slot, now: float) -> None:
        token, expires_at = sinks.bare(slot.head), int(time.time() + slot.left(now))
        problems = []
        if self._token_file:
            self._out = True
            problems.append(sinks.write(self._token_file, token.encode(), self._gid))
        if self._environment_file:
            self._out = True
            problems.append(sinks.write(self._environment_file, sinks.environment(token, expires_at), self._gid))
        self.problem = "; ".join(filter(None, problems))
