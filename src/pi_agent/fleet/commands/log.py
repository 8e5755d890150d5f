"""``audit`` and ``view``: what was done, and queries with names."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pi_agent.errors import PiAgentError
from pi_agent.fleet import client, output
from pi_agent.fleet.commands.common import AS_JSON, command, fleet_of, group, pages, printed, say


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    parser = command(commands, "audit", "what was done, by whom; 'audit verify' proves that no line was changed", audit)
    parser.add_argument(
        "query", nargs="*", metavar="EVENTS", help="such as actor:ann action:device.revoke at:1d, or verify"
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json", "jsonl", "yaml", "csv"), default="table", help="how to print it"
    )
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="the newest N lines (default 50)")
    parser.add_argument("--all", action="store_true", help="all lines")
    views = group(commands, "view", "queries with names")
    parser = command(views, "save", "save a query under a name", view_save)
    parser.add_argument("name", metavar="NAME", help="such as late-in-berlin")
    parser.add_argument("query", nargs="+", metavar="QUERY", help="what it asks")
    parser.add_argument("--columns", metavar="FIELDS", help="the columns it shows")
    parser.add_argument("--sort", metavar="FIELD", help="how it is sorted")
    command(views, "list", "all views", view_list).add_argument("--json", **AS_JSON)
    command(views, "remove", "forget a view", view_remove).add_argument("name", metavar="NAME", help="which one")


def audit(arguments: argparse.Namespace) -> int:
    """The audit log, newest first; ``audit verify`` proves that it is whole."""
    if arguments.query == ["verify"]:
        return _verify(arguments)
    fleet, query = fleet_of(arguments), " ".join(arguments.query)
    limit = None if arguments.all else arguments.limit
    answer = pages(fleet, "/audit", limit, "before", query=query)
    say(answer["meaning"] + (f"; the newest {limit} are shown, --all shows all" if answer["next"] else ""))
    if arguments.output == "jsonl":
        sys.stdout.write("".join(json.dumps(item) + "\n" for item in answer["items"]))
        return 0
    if arguments.output == "csv":
        names = ("at", "action", "result", "device", "actor", "source", "detail")
        rows = [[*(item[name] for name in names[:-1]), json.dumps(item["detail"])] for item in answer["items"]]
        sys.stdout.write("".join(f"{output.csv_text(row)}\n" for row in [list(names), *rows]))
        return 0
    return printed(arguments, answer, "".join(map(_line, answer["items"])))


def _line(item: dict[str, Any]) -> str:
    return f"{output.utc(item['at'])}  {item['device'] or '-':<19}  {output.event_line(item)}\n"


def _verify(arguments: argparse.Namespace) -> int:
    report = fleet_of(arguments).get("/audit/verify")
    if report["whole"]:
        text = f"whole: {report['lines']:,} lines, the newest with digest {report['last']}\n"
        return printed(arguments, report, text)
    printed(arguments, report, "")
    raise PiAgentError(
        f"the audit log is broken at line {report['broken']}: it does not follow from the line before it",
        hint="compare it with a backup; somebody has changed the database by other means than pi-fleet",
    )


def view_save(arguments: argparse.Namespace) -> int:
    """Save a query under a name."""
    request = {"query": " ".join(arguments.query), "columns": arguments.columns or "", "sort": arguments.sort or ""}
    saved = fleet_of(arguments).put(f"/views/{client.segment(arguments.name)}", request)
    say(f"saved; ask it with: pi-fleet devices @{saved['name']}")
    return printed(arguments, saved, "")


def view_list(arguments: argparse.Namespace) -> int:
    """All views."""
    answer = fleet_of(arguments).get("/views")
    rows = [[f"@{item['name']}", output.plain(item["query"]) or "-", item["by"]] for item in answer["items"]]
    return printed(arguments, answer, output.aligned([["VIEW", "QUERY", "BY"], *rows]) if rows else "")


def view_remove(arguments: argparse.Namespace) -> int:
    """Forget a view."""
    answer = fleet_of(arguments).delete(f"/views/{client.segment(arguments.name)}")
    say(f"@{arguments.name} is forgotten")
    return printed(arguments, answer, "")
