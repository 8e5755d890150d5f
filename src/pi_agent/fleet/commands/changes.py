"""``approve``, ``reject``, ``quarantine``, ``release``, ``revoke``, ``forget`` and ``tag``: shown first, confirmed, then done.

What is done is done to exactly the devices that were shown: the preview gives a selection, which the server holds the
change to. More than a thousand devices are changed in steps that name them, so that it can be watched and interrupted;
what was done by then stays done.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from typing import Any

from pi_agent.errors import ConflictError, PiAgentError, UsageError
from pi_agent.fleet import client, output
from pi_agent.fleet.commands.common import DEVICE_ID, command, confirmed, count, fleet_of, is_term, say
from pi_agent.fleet.progress import Progress

CODE = re.compile(r"[0-9A-Za-z]{4}-[0-9A-Za-z]{4}")
AT_ONCE = 1000
STEP = 500
SHOWN = 20
ACTIONS = {
    "approve": "let devices have tokens",
    "reject": "turn down devices that wait for approval",
    "quarantine": "refuse tokens for a while; release ends it",
    "release": "end a quarantine",
    "revoke": "refuse tokens for good",
    "forget": "take rejected and revoked devices off the list; the audit log keeps them",
}


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    for name, what in ACTIONS.items():
        _add_action(command(commands, name, what, act), name)
    _add_action(command(commands, "rotate-key", "ask devices for new keys", act), "rotate-key")
    _add_rename(command(commands, "rename", "call a device something else", rename))
    _add_tag(command(commands, "tag", "give tags to devices, and take them away", tag))


def _add_rename(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("device", metavar="DEVICE", help="the id of the device, or a query that only it answers to")
    parser.add_argument("name", metavar="NAME", help="what it is called from now on")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why; kept in the audit log")
    parser.add_argument("--json", action="store_true", help="print what changed as JSON")


def _add_action(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("query", nargs="+", metavar="QUERY", help="a query, or the id of a device")
    add_confirmation(parser)
    parser.set_defaults(action=name)


def _add_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "query", nargs="+", metavar="QUERY", help="a query, or the id of a device; then +TAG or -TAG ..."
    )
    parser.add_argument("--add", action="append", default=[], metavar="TAG", help="a tag to give")
    parser.add_argument("--remove", action="append", default=[], metavar="TAG", help="a tag to take away")
    add_confirmation(parser)
    parser.set_defaults(action="tag")


def add_confirmation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="why; kept in the audit log")
    parser.add_argument("--yes", action="store_true", help="do not ask; at most --max devices are changed")
    parser.add_argument(
        "--max", type=int, default=1, metavar="N", help="with --yes, refuse when more match (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print what changed as JSON")


def act(arguments: argparse.Namespace) -> int:
    """One of the actions."""
    return _change(arguments, arguments.action, " ".join(arguments.query), {})


def tag(arguments: argparse.Namespace) -> int:
    """Give tags and take tags away: ``+kiosk`` and ``-lab`` after the query, or ``--add`` and ``--remove``."""
    words = list(arguments.query)
    add, remove = list(arguments.add), list(arguments.remove)
    while words and (word := words[-1].strip())[:1] in ("+", "-") and (word[0] == "+" or not is_term(word)):
        (add if word[0] == "+" else remove).append(word[1:])
        words.pop()
    if not words:
        raise UsageError("which devices?", hint="pi-fleet tag model:2b +kiosk --reason '...'")
    return _change(arguments, "tag", " ".join(words), {"add": add, "remove": remove})


def rename(arguments: argparse.Namespace) -> int:
    """Call one device something else. It is named on the line, so nobody is asked to confirm."""
    fleet = fleet_of(arguments)
    request = {"query": _named(fleet, arguments.device), "name": arguments.name, "reason": arguments.reason}
    change = fleet.post("/devices/rename", request)
    if not change["matched"]:
        say(f"0 devices: {change['meaning']}")
        return 3
    if change["count"]:
        say(f"{change['changed'][0]['id']} is called {arguments.name}")
    else:
        say(f"nothing to do: {output.staying(change['stays'], change['status'])}")
    sys.stdout.write(json.dumps(change, indent=2) + "\n" if arguments.json else "")
    return 0


def _change(arguments: argparse.Namespace, action: str, query: str, more: dict[str, Any]) -> int:
    fleet = fleet_of(arguments)
    query = _named(fleet, query)
    path, request = f"/devices/{action}", {"query": query, "reason": arguments.reason, **more}
    preview = fleet.post(path, request | {"dry_run": True})
    _show(preview)
    if not preview["matched"]:
        return 3
    if not preview["count"]:
        say(f"nothing to do: {output.staying(preview['stays'], preview['status'])}")
        return 0 if set(preview["stays"]) <= {preview["status"]} else ConflictError.exit_code
    _confirm(arguments, action, preview)
    request["reason"] = arguments.reason  # it may have been typed just now
    if preview["matched"] > AT_ONCE:
        return _in_steps(arguments, fleet, path, request, preview)
    change = fleet.post(path, request | {"selection": preview["selection"]})
    say(f"{count(change['count'])} {change['status']}")
    names = "".join(f"{device['id']}\n" for device in change["changed"])
    sys.stdout.write(json.dumps(change, indent=2) + "\n" if arguments.json else names)
    return 0


def _named(fleet: client.Fleet, text: str) -> str:
    """The query for what may also be the id of a device, or the code that its key shows."""
    if CODE.fullmatch(text):
        text = fleet.get("/pending", code=text)["items"][0]["id"]
    return f"id:{text}" if DEVICE_ID.fullmatch(text) else text


def _show(preview: dict[str, Any]) -> None:
    ready, number, stays = preview["changed"], preview["count"], preview["stays"]
    say(f"{count(preview['matched'])}: {preview['meaning']}")
    if stays and ready:
        say(f"as they are will stay: {output.staying(stays, preview['status'])}")
    for line in output.table(ready[:SHOWN], int(time.time())).splitlines() if ready else ():
        say(line)
    if number > SHOWN:
        say(f"and {number - SHOWN:,} more")
    if kept := output.bound(preview["tokens_until"], int(time.time())):
        say(kept)


def _confirm(arguments: argparse.Namespace, action: str, preview: dict[str, Any]) -> None:
    """Raise unless the operator expects this many devices: by typing the number, or by ``--yes`` and ``--max``."""
    matched = preview["matched"]
    if arguments.yes:
        if matched > arguments.max:
            raise ConflictError(
                f"{matched} devices match, more than {arguments.max}", hint="look at them first, then raise --max"
            )
        if not arguments.reason:
            raise UsageError("an action needs a reason", hint="--reason 'why'; it is kept in the audit log")
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm", hint=f"add --yes --max {matched} --reason '...'")
    if not confirmed(f"{action} {count(preview['count'])}", preview["count"]):
        raise ConflictError("not confirmed; nothing has changed")
    if not arguments.reason:
        sys.stderr.write("reason: ")
        sys.stderr.flush()
        arguments.reason = sys.stdin.readline().strip()
        if not arguments.reason:
            raise UsageError("an action needs a reason; nothing has changed")


def _in_steps(
    arguments: argparse.Namespace, fleet: client.Fleet, path: str, request: dict[str, Any], preview: dict[str, Any]
) -> int:
    from pi_agent.fleet.shown import fingerprint  # here, and not for every command

    chunks = fleet.stream("/devices.jsonl", query=request["query"], columns="id,status", sort="id")
    found = [json.loads(line) for line in b"".join(chunks).splitlines()]
    ids = [device["id"] for device in found]
    shown = preview["selection"].partition("-")[2]
    if fingerprint((device["id"], device["status"]) for device in found) != shown:
        raise ConflictError(
            "the devices are not the ones that were shown", hint="look at them again; nothing has changed"
        )
    members = {name: value for name, value in request.items() if name != "query"}
    done, unknown = 0, set()
    try:
        with Progress(arguments.action, len(ids)) as progress:
            for start in range(0, len(ids), STEP):
                step = ids[start : start + STEP]
                change = fleet.post(path, members | {"ids": step})
                done += change["count"]
                unknown |= set(change["unknown"])
                progress.add(len(step))
    except (KeyboardInterrupt, PiAgentError):
        say(f"interrupted: {count(done)} {preview['status']}, the others are as they were")
        raise
    say(f"{count(done)} {preview['status']}")
    if unknown:
        say(f"{count(len(unknown))} not there any more: {' '.join(sorted(unknown)[:SHOWN])}")
    summary = {"schema": "pi-fleet.change/1", "matched": len(ids) - len(unknown), "unknown": sorted(unknown)}
    summary |= {"status": preview["status"], "count": done}
    left = [one for one in ids if one not in unknown]
    sys.stdout.write(json.dumps(summary, indent=2) + "\n" if arguments.json else "".join(f"{one}\n" for one in left))
    return 0
