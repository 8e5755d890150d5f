"""From a device's JSON form to what a page shows: words, and times that are relative and absolute at once."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pi_agent.catalogue import FIELDS
from pi_agent.fleet.output import COLUMNS, ago, memory, plain

# The headings of columns, where they are not those of the query language.
TITLES = {name: field.title for name, field in FIELDS.items()} | {
    "auth": "Last token",
    "seen": "Last seen",
    "refused": "Last refused",
}
FACTS = (
    ("Serial", "serial"),
    ("Revision code", "revision"),
    ("Circuit board", "pcb_revision"),
    ("SoC", "soc"),
    ("Made by", "maker"),
    ("Agent", "agent"),
    ("Key kept in", "key"),
    ("Scopes", "scope"),
)
SECONDS = ("expires", "signs_from")  # members of audit lines that are times
UTC_TEXT = "%Y-%m-%d %H:%M UTC"
KEPT_IN = {"file": "a file", "firmware-otp": "the firmware's one-time memory", "tpm": "a TPM"}


def row(device: Mapping[str, Any], now: int) -> dict[str, Any]:
    """A device with its text made plain, and what is said about it in words."""
    texts = {name: plain(value) for name, value in device.items() if isinstance(value, str)}
    return {
        **device,
        **texts,
        "memory": memory(device["memory_mib"]),
        "auth": moment(device["auth"], now),
        "seen": moment(device["seen"], now),
        "refused": moment(device["refused"], now),
        "created": moment(device["created"], now),
        "due_at": utc(device["due"]) if device["due"] else "",
    }


def cell(name: str, row: Mapping[str, Any], now: int) -> dict[str, Any]:
    """One cell of the list: what kind it is, which the template knows how to show, and its value."""
    title = TITLES[name]
    if name in ("status", "tag"):
        return {"kind": name, "title": title}
    if name in ("auth", "seen", "refused", "created"):
        return {"kind": "time", "title": title, "value": row[name]}
    if name == "memory":
        return {"kind": "text", "title": title, "value": row["memory"]}
    text = COLUMNS[name][1](row, now)
    kind = "code" if name in ("serial", "revision") else "late" if name == "late" else "text"
    return {"kind": kind, "title": title, "value": "unknown" if text == "-" and name in ("model", "serial") else text}


def until(seconds: int) -> str:
    """A time to come."""
    return datetime.fromtimestamp(seconds, UTC).strftime(UTC_TEXT)


def facts(device: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is known of a board, as title and text."""
    known = dict(device) | {"key": KEPT_IN[device["key"]]}
    return [(title, plain(str(known[name])) if known[name] else "unknown") for title, name in FACTS]


def moment(time: str | None, now: int) -> dict[str, str] | None:
    """A time as ``ago`` and ``utc``, or None for never."""
    return {"ago": ago(time, now), "utc": utc(time), "iso": time} if time else None


def utc(time: str) -> str:
    return datetime.fromisoformat(time).astimezone(UTC).strftime(UTC_TEXT)


def event(entry: Mapping[str, Any], now: int) -> dict[str, Any]:
    """An audit line for people."""
    detail = {name: value for name, value in entry["detail"].items() if value not in ("", None, [])}
    return {
        "at": moment(entry["at"], now),
        "action": _deed(entry["action"]),
        "refused": entry["result"] == "refused",
        "result": entry["result"],
        "actor": plain(entry["actor"]),
        "source": plain(entry["source"]),
        "detail": [(plain(name), plain(_words(_when(name, value)))) for name, value in detail.items()],
    }


def _deed(action: str) -> str:
    """``approve``, since a device is what most lines are about; ``webhook: add`` for those that are about something else."""
    what, _, verb = action.replace("-", " ").rpartition(".")
    return verb if what in ("", "device") or verb == "sign in" else f"{what}: {verb}"


def _when(name: str, value: object) -> object:
    """A member whose name says that it is a time as one that people read."""
    return until(value) if name in SECONDS and type(value) is int else value


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, list):
        return " and ".join(map(_words, value))
    return str(value)
