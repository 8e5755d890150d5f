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

TYPE_CHECKING = False  # type checkers take it for true; the module would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Any

    Device = Mapping[str, Any]
    Cell = Callable[[Device, int], str]

FORMULA = ("=", "+", "-", "@", "\t", "\r")
AGES = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (120, 60, "m"), (0, 1, "s"))


def plain(text: str) -> str:
    """Text that a terminal only shows."""
    return "".join(character if character.isprintable() else "?" for character in text)


def one_line(text: str) -> str:
    """Text of a form as one printable line."""
    return "".join(character if character.isprintable() else " " for character in text).strip()


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


def bound(until: str | None, now: int) -> str:
    """For how long a device that was turned away may still be believed by its last token (RFC 3339); "" when it has ended."""
    if until is None or datetime.fromisoformat(until).timestamp() <= now:
        return ""
    return f"tokens handed out before work until {utc(until)} at the latest, at services that do not ask the fleet about them"


FOR_NOW = {"revoked": "revoked for good", "quarantined": "quarantined until a release"}
FOR_A_TOKEN = {status: f"{status}, with a token that has not ended" for status in ("rejected", "revoked")}


def staying(stays: Mapping[str, int], target: str) -> str:
    """Why devices of these statuses do not become ``target``, such as "2 are approved already, 1 is revoked for good"."""
    why = FOR_A_TOKEN if target == "forgotten" else FOR_NOW
    ends = {status: f"{status} already" if status == target else why.get(status, status) for status in stays}
    return ", ".join(f"{number:,} {'is' if number == 1 else 'are'} {ends[status]}" for status, number in stays.items())


def _member(name: str) -> Cell:
    return lambda device, now: plain(str(device[name])) if device[name] not in (None, "") else "-"


def _time(name: str) -> Cell:
    return lambda device, now: ago(device[name], now)


def _flag(name: str) -> Cell:
    return lambda device, now: {True: "yes", False: "no", None: "-"}[device.get(name)]


# By the names of the query language, so that --columns takes what a query asks about.
COLUMNS: dict[str, tuple[str, Cell]] = {
    "id": ("ID", _member("id")),
    "name": ("NAME", _member("name")),
    "status": ("STATUS", lambda device, now: device["status"] + (" !" if device["flag"] else "")),
    "model": ("MODEL", _member("model")),
    "memory": ("MEMORY", lambda device, now: memory(device["memory_mib"])),
    "serial": ("SERIAL", _member("serial")),
    "auth": ("AUTHENTICATED", _time("auth")),
    "revision": ("REVISION", _member("revision")),
    "rev": ("PCB", _member("pcb_revision")),
    "soc": ("SOC", _member("soc")),
    "maker": ("MAKER", _member("maker")),
    "key": ("KEY", _member("key")),
    "agent": ("AGENT", _member("agent")),
    "tag": ("TAGS", lambda device, now: plain(",".join(device["tags"])) or "-"),
    "seen": ("SEEN", _time("seen")),
    "refused": ("REFUSED", _time("refused")),
    "created": ("CREATED", _time("created")),
    "late": ("LATE", _flag("late")),
    "overvoltage": ("OVERVOLTAGE", _flag("overvoltage")),
    "warranty": ("WARRANTY", _flag("warranty")),
    "simulated": ("SIMULATED", _flag("simulated")),
}
NARROW = ("id", "name", "status", "model", "memory", "serial", "auth")
WIDE = tuple(name for name in COLUMNS if name not in ("late", "overvoltage", "warranty", "simulated"))


def table(devices: Sequence[Device], now: int, columns: Iterable[str] = NARROW, *, heading: bool = True) -> str:
    """Columns as wide as their widest cell, two spaces apart, with a heading."""
    chosen = [COLUMNS[name] for name in columns]
    rows = [[cell(device, now) for _, cell in chosen] for device in devices]
    return aligned([[title for title, _ in chosen]] * heading + rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, each column as wide as its widest cell."""
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(_padded(cell, most) for cell, most in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "".join(f"{line}\n" for line in lines)


def width(text: str) -> int:
    """How many columns of a terminal a text takes: two for wide characters, none for marks above or below another."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width  # only such a text pays for this import

    wide = {"W": 2, "F": 2}
    return sum(0 if category(one) in ("Mn", "Me") else wide.get(east_asian_width(one), 1) for one in text)


def _padded(cell: str, most: int) -> str:
    return cell + " " * (most - width(cell))


def csv_cell(value: object) -> str:
    """A value as a cell that no spreadsheet computes."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = plain(",".join(value) if isinstance(value, list) else str(value))
    return f"'{text}" if text.startswith(FORMULA) else text


def as_json(answer: Mapping[str, Any]) -> str:
    return json.dumps(answer, indent=2) + "\n"


def as_yaml(answer: Mapping[str, Any]) -> str:
    from pi_agent.fleet import yaml  # here, and not for every list

    return yaml.dump(answer)


def render(form: str, answer: Mapping[str, Any], now: int, columns: Sequence[str] = ()) -> str:
    """A list of devices (the REST answer) in one of the forms that need it whole."""
    devices = answer["items"]
    if form == "json":
        return as_json(answer)
    if form == "yaml":
        return as_yaml(answer)
    return table(devices, now, columns or (WIDE if form == "wide" else NARROW)) if devices else ""


STREAMED = ("jsonl", "csv", "name")
FORMS = ("table", "wide", "json", "yaml", *STREAMED)


def counts(form: str, answer: Mapping[str, Any], *, bar: int = 0) -> str:
    """Counts by a field (the REST answer); ``bar`` is how long the longest bar may be."""
    items = [(plain(str(_counted(item["value"]))), item["count"]) for item in answer["items"]]
    if form == "json":
        return as_json(answer)
    if form == "yaml":
        return as_yaml(answer)
    if form == "jsonl":
        return "".join(json.dumps(item) + "\n" for item in answer["items"])
    if form == "csv":
        rows = [[answer["by"], "count"], *([item["value"], item["count"]] for item in answer["items"])]
        return "".join(f"{csv_text(row)}\n" for row in rows)
    if form == "name":
        return "".join(f"{name}\n" for name, _ in items)
    most = max((count for _, count in items), default=1)
    lines = [[name, f"{count:,}", "#" * max(1, bar * count // most) if bar else ""] for name, count in items]
    return aligned([[answer["by"].upper(), "DEVICES", ""], *lines])


def _counted(value: object) -> object:
    return {True: "true", False: "false", None: "-"}[value] if value is None or isinstance(value, bool) else value


def csv_text(cells: Sequence[object]) -> str:
    """One line of CSV (RFC 4180), without its end."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow([csv_cell(cell) for cell in cells])
    return out.getvalue()


def card(device: Device, now: int) -> str:
    """One device, a member a line, its newest audit lines, and what could be done next."""
    shown = [name for name in COLUMNS if name not in ("overvoltage", "warranty", "simulated")]
    lines = [
        (COLUMNS[name][0].capitalize().replace("Pcb", "PCB").replace("Soc", "SoC"), COLUMNS[name][1](device, now))
        for name in shown
    ]
    lines[lines.index(next(line for line in lines if line[0] == "Model"))] = ("Model", device["model_name"] or "-")
    lines += [("Flag", plain(device["flag"]))] if device["flag"] else []
    lines += [("Reason", plain(device["status_reason"]))] if device["status_reason"] else []
    lines += [("Refused for", plain(device["refused_reason"]))] if device["refused_reason"] else []
    if device["status"] != "approved" and (kept := bound(device["token_until"], now)):
        lines += [("Tokens", kept)]
    lines += [("Simulated", "yes")] if device["simulated"] else []
    lines += [("Public key", f"{key['kid']} ({key['alg']})") for key in device["keys"]]
    lines += [("Shown as", f"{device['code']}  {device['words']}")] if device.get("code") else []
    text = "".join(f"{name + ':':<15}{value}\n" for name, value in lines)
    events = "".join(f"  {utc(event['at'])}  {event_line(event)}\n" for event in device["events"])
    steps = "".join(f"  {plain(step)}\n" for step in device.get("next_steps", ()))
    return f"{text}History:\n{events}" + (f"What to do next:\n{steps}" if steps else "")


def event_line(event: Mapping[str, Any]) -> str:
    """An audit line for people, without its time."""
    reason = event["detail"].get("reason") or event["detail"].get("why")
    words = f"{event['action']} by {event['actor']} from {event['source']}"
    return plain(
        words + (f": {reason}" if reason else "") + ("" if event["result"] == "done" else f" ({event['result']})")
    )


def utc(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
