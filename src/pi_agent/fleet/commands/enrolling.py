"""``pending`` and ``preauthorise``: devices on their way in."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pi_agent.errors import UsageError
from pi_agent.fleet import output
from pi_agent.fleet.commands.common import AS_JSON, command, count, fleet_of, printed, say, seconds
from pi_agent.fleet.lists import read_csv
from pi_agent.fleet.progress import Progress

AT_ONCE = 200


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    parser = command(commands, "pending", "devices that wait for approval, and why", pending)
    parser.add_argument("code", nargs="?", default="", metavar="CODE", help="the one that shows this code")
    parser.add_argument("--json", **AS_JSON)
    parser = command(commands, "preauthorise", "approve boards or keys of a list before they come", preauthorise)
    parser.add_argument("file", nargs="?", metavar="FILE", help="CSV with a line of names: serial,key,name; - is stdin")
    parser.add_argument("--ttl", default="90d", metavar="AGE", help="how long a line waits for its board (default 90d)")
    parser.add_argument("--json", **AS_JSON)


def pending(arguments: argparse.Namespace) -> int:
    """3 when nobody waits."""
    answer = fleet_of(arguments).get("/pending", code=arguments.code)
    say(
        f"{count(answer['total'])} waiting for approval"
        if not arguments.code
        else f"the device with code {arguments.code}"
    )
    printed(arguments, answer, "\n".join(map(_card, answer["items"])))
    return 0 if answer["items"] else 3


def _card(item: dict[str, Any]) -> str:
    board = f"{item['model_name'] or item['model'] or 'unknown model'}, {output.memory(item['memory_mib'])}"
    rows = [
        ("device", f"{item['id']}  {item['name']}"),
        ("board", f"{board}, revision {item['revision'] or 'unknown'}, serial {item['serial'] or 'unknown'}"),
        ("code", item["code"]),
        ("words", item["words"]),
        ("from", f"{item['source'] or 'unknown'}, {item['created']}"),
        *(("look at", sentence) for sentence in item["why"]),
        ("next", f"pi-fleet approve {item['id']}    (when the Pi shows the same code and words)"),
    ]
    return "".join(f"{name:<9}{output.plain(str(value))}\n" for name, value in rows)


def preauthorise(arguments: argparse.Namespace) -> int:
    """Send a list, or show what waits."""
    fleet = fleet_of(arguments, create=True)
    if arguments.file is None:
        answer = fleet.get("/preauthorisations")
        say(f"{count(answer['total'], 'line')} waiting for a board")
        lines = (
            f"{item['serial'] or item['key']}  {item['name']}  until {item['expires']}\n" for item in answer["items"]
        )
        return printed(arguments, answer, "".join(output.plain(line.rstrip()) + "\n" for line in lines))
    rows, ttl = _read(arguments.file), seconds(arguments.ttl)
    new, answer, progress = 0, {}, Progress("lines", len(rows))
    try:
        with progress:
            for start in range(0, len(rows), AT_ONCE):
                some = rows[start : start + AT_ONCE]
                answer = fleet.post("/preauthorisations", {"lines": some, "ttl": ttl})
                new += answer["new"]
                progress.add(len(some))
    except KeyboardInterrupt:
        say(f"interrupted: the first {count(progress.done, 'line')} are in force; the same command takes up the others")
        raise
    if not rows:
        raise UsageError("the list has no lines", hint="serial,key,name")
    say(f"{count(len(rows), 'line')}, {new} of them new; each is good for one board until {answer['expires']}")
    return printed(arguments, answer | {"lines": len(rows), "new": new}, "")


def _read(name: str) -> list[dict[str, str]]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {name}: {error}") from error
    return [{"serial": line.serial, "key": line.key, "name": line.name} for line in read_csv(text.splitlines())]
