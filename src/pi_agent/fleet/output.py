"""How devices are printed: for people as a table, for programs as JSON, JSON lines, CSV or names.

Everything in a device came from the device, so nothing of it reaches a terminal or a spreadsheet as more than text
(requirement D-07): control and format characters are shown as ``?``, and a CSV cell never begins a formula.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Device = Mapping[str, Any]
Cell = Callable[[Device, int], str]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
AGES = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (120, 60, "m"), (0, 1, "s"))


def plain(text: str) -> str:
    """Text that a terminal only shows."""
    return "".join(character if character.isprintable() else "?" for character in text)


def memory(mib: int | None) -> str:
    """``1 GB`` for people; 1 GB is 1024 MiB, as memory is sold."""
    if mib is None:
        return "-"
    return f"{mib // 1024} GB" if mib % 1024 == 0 else f"{mib} MB"


def ago(time: str | None, now: int) -> str:
    """``3h ago`` for a time in RFC 3339."""
    if time is None:
        return "never"
    seconds = max(0, now - int(datetime.fromisoformat(time).timestamp()))
    unit, letter = next((unit, letter) for least, unit, letter in AGES if seconds >= least)
    return f"{seconds // unit}{letter} ago"


def _member(name: str) -> Cell:
    return lambda device, now: plain(str(device[name])) if device[name] not in (None, "") else "-"


def _time(name: str) -> Cell:
    return lambda device, now: ago(device[name], now)


COLUMNS: dict[str, tuple[str, Cell]] = {
    "id": ("ID", _member("id")),
    "name": ("NAME", _member("name")),
    "status": ("STATUS", lambda device, now: device["status"] + (" !" if device["flag"] else "")),
    "model": ("MODEL", _member("model")),
    "memory": ("MEMORY", lambda device, now: memory(device["memory_mib"])),
    "serial": ("SERIAL", _member("serial")),
    "auth": ("AUTHENTICATED", _time("auth")),
    "revision": ("REVISION", _member("revision")),
    "soc": ("SOC", _member("soc")),
    "maker": ("MAKER", _member("maker")),
    "key": ("KEY", _member("key")),
    "agent": ("AGENT", _member("agent")),
    "tags": ("TAGS", lambda device, now: plain(",".join(device["tags"])) or "-"),
    "seen": ("SEEN", _time("seen")),
    "refused": ("REFUSED", _time("refused")),
    "created": ("CREATED", _time("created")),
}
NARROW = ("id", "name", "status", "model", "memory", "serial", "auth")


def table(devices: Sequence[Device], now: int, columns: Iterable[str] = NARROW) -> str:
    """Columns as wide as their widest cell, two spaces apart, with a heading."""
    chosen = [COLUMNS[name] for name in columns]
    rows = [[title for title, _ in chosen], *([cell(device, now) for _, cell in chosen] for device in devices)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def csv_cell(value: object) -> str:
    """A value as a cell that no spreadsheet computes."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = plain(",".join(value) if isinstance(value, list) else str(value))
    return f"'{text}" if text.startswith(FORMULA) else text


def render(form: str, answer: Mapping[str, Any], now: int) -> str:
    """A list of devices (the REST answer) in one of FORMS."""
    devices = answer["items"]
    match form:
        case "json":
            return json.dumps(answer, indent=2) + "\n"
        case "jsonl":
            return "".join(json.dumps(device) + "\n" for device in devices)
        case "csv":
            return csv_text(devices)
        case "name":
            return "".join(f"{device['id']}\n" for device in devices)
    return table(devices, now, COLUMNS if form == "wide" else NARROW) if devices else ""


FORMS = ("table", "wide", "json", "jsonl", "csv", "name")


def card(device: Device, now: int) -> str:
    """One device, a member a line, then its newest audit lines."""
    lines = [(title.capitalize(), cell(device, now)) for title, cell in COLUMNS.values()]
    lines[lines.index(next(line for line in lines if line[0] == "Model"))] = ("Model", device["model_name"] or "-")
    lines += [("Flag", plain(device["flag"]))] if device["flag"] else []
    lines += [("Reason", plain(device["status_reason"]))] if device["status_reason"] else []
    lines += [("Refused for", plain(device["refused_reason"]))] if device["refused_reason"] else []
    lines += [("Public key", f"{key['kid']} ({key['alg']})") for key in device["keys"]]
    text = "".join(f"{name + ':':<15}{value}\n" for name, value in lines)
    events = "".join(f"  {_utc(event['at'])}  {_event(event)}\n" for event in device["events"])
    return f"{text}History:\n{events}"


def _event(event: Mapping[str, Any]) -> str:
    reason = event["detail"].get("reason")
    words = f"{event['action']} by {event['actor']} from {event['source']}"
    return plain(words + (f": {reason}" if reason else "") + (" (refused)" if event["result"] == "refused" else ""))


def _utc(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
