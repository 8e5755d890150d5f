"""``devices``, ``device``, ``export`` and ``suggest``: questions, and their answers in many forms."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from pi_agent.errors import ConfigError, TransportError, UnknownDeviceError, UsageError
from pi_agent.fleet import client, output
from pi_agent.fleet.commands.common import DEVICE_ID, QUERY, command, count, fleet_of, pages, printed, say
from pi_agent.fleet.progress import Progress

TYPE_CHECKING = False  # type checkers take it for true; the module would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Any

SHOWN = 100
BAR = 40


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    parser = command(commands, "devices", "list the devices of a query", devices)
    parser.add_argument("query", nargs="*", metavar="QUERY", help=f"{QUERY}; without one, all devices")
    parser.add_argument("-o", "--output", choices=output.FORMS, default="table", help="how to print them")
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.add_argument("--columns", metavar="FIELDS", help="such as name,model,auth")
    parser.add_argument("--sort", metavar="FIELD", help="such as auth, or -auth for the newest first (default name)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="stop after N devices (default 100; csv, jsonl, name: all)"
    )
    parser.add_argument("--all", action="store_true", help="show all of them")
    parser.add_argument("--count-by", metavar="FIELD", help="count them by a field instead")
    parser.add_argument("--watch", action="store_true", help="go on, with a line for every change")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="how often --watch looks (default 2)"
    )
    parser = command(commands, "device", "show one device and its history", device)
    parser.add_argument("id", metavar="DEVICE", help="its id, or a name or query that only it has")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser = command(commands, "export", "write the devices of a query to a file", export)
    parser.add_argument("file", type=Path, metavar="FILE", help="its name ends in .csv or .jsonl")
    parser.add_argument("query", nargs="*", metavar="QUERY", help=f"{QUERY}; without one, all devices")
    parser.add_argument("--columns", metavar="FIELDS", help="such as name,model,auth (default: all there are)")
    parser.add_argument("--sort", metavar="FIELD", help="such as auth (default: created)")
    parser = command(commands, "suggest", "what could come next in a query; for a shell's completion", suggest)
    parser.add_argument("words", nargs="*", metavar="WORD", help="the query so far")


def devices(arguments: argparse.Namespace) -> int:
    """The devices of a query."""
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError("--limit is at least 1")
    fleet, query = fleet_of(arguments), " ".join(arguments.query).lstrip()
    columns, sort = _columns(arguments.columns), arguments.sort
    if query.startswith("@"):
        view = fleet.get(f"/views/{client.segment(query[1:].partition(' ')[0])}")
        columns, sort = columns or tuple(view["columns"]), sort or view["sort"]
    sort = sort or "name"
    if arguments.count_by:
        return _count_by(arguments, fleet, query)
    if arguments.watch:
        return _watch(arguments, fleet, query, columns, sort)
    if arguments.output in output.STREAMED:
        return _stream(arguments, fleet, query, columns, sort)
    limit = None if arguments.all else arguments.limit or SHOWN
    answer = pages(fleet, "/devices", limit, "cursor", query=query, sort=sort)
    say(f"{count(answer['total'])}: {answer['meaning']}")
    sys.stdout.write(output.render(arguments.output, answer, int(time.time()), columns))
    if len(answer["items"]) < answer["total"]:
        say(f"{len(answer['items'])} of them are shown" + ("" if arguments.limit else "; --all shows all"))
    return 0


def _columns(text: str | None) -> tuple[str, ...]:
    if not text:
        return ()
    from pi_agent.catalogue import columns_of  # here, and not for every list

    return columns_of(text)


def _stream(arguments: argparse.Namespace, fleet: client.Fleet, query: str, columns: tuple[str, ...], sort: str) -> int:
    """All rows as they come; memory does not grow with them."""
    first = fleet.get("/devices", query=query, limit=1)
    say(f"{count(first['total'])}: {first['meaning']}")
    form = "csv" if arguments.output == "csv" else "jsonl"
    chosen = "id" if arguments.output == "name" else ",".join(columns) or None
    lines = _lines(fleet.stream(f"/devices.{form}", query=query, columns=chosen, sort=sort))
    most = None if arguments.limit is None else arguments.limit + (form == "csv")
    for number, line in enumerate(lines):
        if most is not None and number >= most:
            break
        sys.stdout.buffer.write(f"{json.loads(line)['id']}\n".encode() if arguments.output == "name" else line + b"\n")
    sys.stdout.buffer.flush()
    return 0


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _count_by(arguments: argparse.Namespace, fleet: client.Fleet, query: str) -> int:
    answer = fleet.get("/counts", query=query, by=arguments.count_by)
    total = sum(item["count"] for item in answer["items"])
    say(f"{answer['meaning']}, by {answer['by']}" if answer["by"] == "tag" else f"{count(total)}: {answer['meaning']}")
    sys.stdout.write(output.counts(arguments.output, answer, bar=BAR if sys.stdout.isatty() else 0))
    return 0


def _watch(arguments: argparse.Namespace, fleet: client.Fleet, query: str, columns: tuple[str, ...], sort: str) -> int:
    """A line for each device, and another one whenever something about it has changed; until it is interrupted."""
    known: dict[str, str] = {}
    heading = True
    while True:
        answer = pages(fleet, "/devices", None, "cursor", query=query, sort=sort)
        now = int(time.time())
        fresh = [device for device in answer["items"] if known.get(device["id"]) != _state(device)]
        known = {device["id"]: _state(device) for device in answer["items"]}
        if heading:
            say(f"{count(answer['total'])}: {answer['meaning']}; Ctrl-C ends it")
        if arguments.output == "jsonl":
            sys.stdout.write("".join(json.dumps(device) + "\n" for device in fresh))
        elif fresh:
            sys.stdout.write(output.table(fresh, now, columns or output.NARROW, heading=heading))
        sys.stdout.flush()
        heading = False
        time.sleep(arguments.interval)


def _state(device: dict[str, Any]) -> str:
    return json.dumps(device, sort_keys=True)


def device(arguments: argparse.Namespace) -> int:
    """One device, by its id, or by a name or query that only one device has."""
    fleet = fleet_of(arguments)
    found = fleet.get(f"/devices/{client.segment(_id(fleet, arguments.id))}")
    return printed(arguments, found, output.card(found, int(time.time())))


def _id(fleet: client.Fleet, text: str) -> str:
    if DEVICE_ID.fullmatch(text):
        return text
    if not text.strip() or "/" in text:
        raise UsageError(f"{text!r} is not the id of a device", hint="pi-fleet devices")
    found = fleet.get("/devices", query=text if ":" in text else f'name:"{text}"', limit=2)
    if found["total"] == 0:
        raise UnknownDeviceError(f"no device: {found['meaning']}", hint=f"pi-fleet devices {text}")
    if found["total"] > 1:
        raise UsageError(f"{found['total']} devices: {found['meaning']}", hint=f"pi-fleet devices {text}")
    return str(found["items"][0]["id"])


def export(arguments: argparse.Namespace) -> int:
    """All devices of a query into a file, which is whole or not there."""
    fleet, query = fleet_of(arguments), " ".join(arguments.query)
    path: Path = arguments.file
    form = path.suffix[1:] if path.suffix in (".csv", ".jsonl") else ""
    if not form:
        raise UsageError(f"what {path} should be is not clear", hint="end its name in .csv or .jsonl")
    total = fleet.get("/devices", query=query, limit=1)
    say(f"{count(total['total'])}: {total['meaning']}")
    chunks = fleet.stream(f"/devices.{form}", query=query, columns=arguments.columns, sort=arguments.sort)
    try:
        rows = _write(path, chunks, total["total"]) - (form == "csv")
    except KeyboardInterrupt:
        say(f"interrupted: {path} was not written")
        raise
    say(f"{count(rows)} written to {path}")
    return 0


def _write(path: Path, chunks: Iterator[bytes], total: int) -> int:
    """The number of lines written."""
    import tempfile  # here, and not for every list

    try:
        descriptor, draft = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}", path=str(path)) from error
    try:
        with os.fdopen(descriptor, "wb") as file, Progress("rows", total) as progress:
            for chunk in chunks:
                file.write(chunk)
                progress.add(chunk.count(b"\n"))
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return progress.done


def suggest(arguments: argparse.Namespace) -> int:
    """Words that could stand where a query is being typed, one a line; for a shell's completion."""
    text = " ".join(arguments.words)
    try:
        items = fleet_of(arguments, served=True).get("/suggestions", query=text, cursor=len(text))["items"]
    except (ConfigError, TransportError):
        from pi_agent.completing import complete  # here, and not for every list

        items = [{"start": one.start, "text": one.text} for one in complete(text, len(text))]
    start = text.rfind(" ") + 1
    sys.stdout.write("".join(f"{text[start : item['start']]}{item['text']}\n" for item in items))
    return 0
