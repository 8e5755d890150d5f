"""The log on stderr: one event a line, as text or as JSON, without secrets and without a way to forge a line.

What comes from outside is cut and its control characters are escaped (requirement G-05). The same complaint is written
again after a minute, then ever more seldom, down to once an hour, with the number of times it was not (G-09).
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime

MAX_MESSAGE = 1000
QUIET_SECONDS, LONGEST_QUIET = 60, 3600
MAX_REMEMBERED = 1000
CAPPED = ("urllib3", "requests_oauthlib", "oauthlib", "psycopg", "psycopg.pool", "asyncio", "uvicorn")


def set_up(form: str) -> None:
    """Log to stderr in ``form`` (``text`` or ``json``). For a process of its own, such as the server's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonForm() if form == "json" else TextForm())
    handler.addFilter(Quiet(time.monotonic))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in CAPPED:  # at DEBUG and INFO they tell too much (requirement G-03)
        logging.getLogger(name).setLevel(logging.ERROR)


class TextForm(logging.Formatter):
    """``2026-11-20T00:45:00Z error: what happened``"""

    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname.lower()}: {_message(record)}{_trace(record)}"


class JsonForm(logging.Formatter):
    """``{"time":...,"level":...,"message":...}``"""

    def format(self, record: logging.LogRecord) -> str:
        members = {"time": _time(record), "level": record.levelname.lower(), "message": _message(record)}
        trace = _trace(record)
        return json.dumps(members | ({"trace": trace.strip().split("\n")} if trace else {}))


class Quiet(logging.Filter):
    """Lets the same message through once in QUIET_SECONDS, and in twice as long each time that it does not stop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.seen: dict[tuple[str, int, str], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        key, now = (record.name, record.lineno, str(record.msg)), self.clock()
        since, quiet, missed = self.seen.get(key, (float("-inf"), QUIET_SECONDS, 0))
        passed = now - since
        if passed < quiet:
            self.seen[key] = (since, quiet, missed + 1)
            return False
        if len(self.seen) >= MAX_REMEMBERED:
            self.seen.clear()
        goes_on = passed < 2 * quiet
        self.seen[key] = (now, min(2 * quiet, LONGEST_QUIET) if goes_on else QUIET_SECONDS, 0)
        if missed:
            record.msg = f"{record.msg} (and {missed} times more in {round(passed / 60)} min)"
        return True


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _message(record: logging.LogRecord) -> str:
    text = record.getMessage()[:MAX_MESSAGE]
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _trace(record: logging.LogRecord) -> str:
    """Where an exception came from: files, lines and functions; no values, no source lines, no message of its own (G-04)."""
    if not record.exc_info or record.exc_info[2] is None:
        return ""
    frames = traceback.extract_tb(record.exc_info[2])
    return "".join(f"\n  {frame.filename}:{frame.lineno} {frame.name}" for frame in frames)
