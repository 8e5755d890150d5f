"""What the agent says on stderr: a line when something changes, and once an hour while it does not get better (G-09).

With the journal behind it, a line begins with its priority (sd-daemon(3)). Outside text is made printable first.
"""

from __future__ import annotations

import os
import sys

HOUR = 3600.0
WARNING, INFO = 4, 6


class Journal:
    def __init__(self) -> None:
        self._said: dict[str, tuple[str, float]] = {}

    def say(self, sentence: str, *, level: int = INFO) -> None:
        prefix = f"<{level}>" if "JOURNAL_STREAM" in os.environ else "pi-agent: "
        clean = "".join(character if character.isprintable() else "?" for character in sentence)
        try:
            sys.stderr.write(f"{prefix}{clean}\n")
            sys.stderr.flush()
        except OSError:
            return  # whoever read it is gone, or its disk is full: tokens matter more

    def report(self, subject: str, what: str, sentence: str, now: float, *, level: int) -> None:
        """Say ``sentence`` about ``subject`` when ``what`` is news, or the same trouble is an hour old."""
        last, at = self._said.get(subject, ("", 0.0))
        if what != last or (level == WARNING and now - at >= HOUR):
            self._said[subject] = (what, now)
            self.say(sentence, level=level)

    def forget(self, subject: str) -> None:
        self._said.pop(subject, None)
