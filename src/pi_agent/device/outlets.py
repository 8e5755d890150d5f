"""The resident's use of ``sinks``: what is put out when a token comes, when it ends, and when the server refuses."""

from __future__ import annotations

import time

from pi_agent.device import schedule, sinks

HOOK_DEADLINE = 30.0

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pi_agent.device.tokens import Slot

    Start = Callable[[list[str], dict[str, str], float], None]

bare = sinks.bare


class Outlets:
    """``problem`` says what could not be written, or is "". ``settings`` are the fields that ``preparation.py`` packs."""

    def __init__(self, settings: dict[str, str], gid: int | None) -> None:
        self.problem = ""
        self._gid = gid
        self._ends: dict[str, float] = {}  # the files that are out, and when the token in each ends
        self.change(settings, gid)

    def change(self, settings: dict[str, str], gid: int | None) -> None:
        """Take new settings. What is out under an old name, or for another group, goes; what is not yet out under a new one
        comes with ``sweep``.
        """
        if gid != self._gid:
            self._take_away(self._ends)
        self._gid = gid
        self._token_file = settings["token_file"]
        self._environment_file = settings["environment_file"]
        self._hooks = settings["hooks"]
        named = [path for path in (self._token_file, self._environment_file) if path]
        self._take_away(path for path in self._ends if path not in named)
        for path in named:
            sinks.sweep(path)

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
        """Take the files away whose token has ended, and write what could not be written before."""
        self._take_away(path for path, end in self._ends.items() if now >= end)
        named = (path for path in (self._token_file, self._environment_file) if path)
        is_behind = self.problem or any(path not in self._ends for path in named)
        if is_behind and slot.left(now) > 0 and slot.outcome != schedule.REFUSED:
            self._write(slot, now)

    def remove(self) -> None:
        self._take_away(self._ends)
        self.problem = ""

    def _take_away(self, paths: Iterable[str]) -> None:
        for path in list(paths):
            sinks.remove(path)
            del self._ends[path]

    def _write(self, slot: Slot, now: float) -> None:
        token, expires_at = sinks.bare(slot.head), int(time.time() + slot.left(now))
        files = {self._token_file: token.encode(), self._environment_file: sinks.environment(token, expires_at)}
        problems = []
        for path, data in files.items():
            if path and (problem := sinks.write(path, data, self._gid)):
                problems.append(problem)
            elif path:
                self._ends[path] = slot.expires
        self.problem = "; ".join(problems)
