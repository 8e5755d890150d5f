"""Lists of boards and keys as CSV, for ``pi-fleet preauthorise``. Pure, so that the command needs no database for it.

serial,key,name
00000000c0ffee01,,kitchen
,oTJ5k0x2...43 characters,garden
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pi_agent.catalogue import lower
from pi_agent.errors import UsageError

COLUMNS = ("serial", "key", "name")
MAX_NAME = 64
_SERIAL = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
_KID = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Line:
    """One board: by ``serial`` (lower-case hexadecimal) or by ``key`` (a thumbprint), never by both; "" is not given."""

    serial: str
    key: str
    name: str


def read_csv(lines: Iterable[str]) -> list[Line]:
    """The lines of a list whose first line names the columns. Raises UsageError, which names the line."""
    rows = csv.reader(lines, strict=True)
    try:
        header = [cell.strip().lower().removeprefix("\ufeff") for cell in next(rows, [])]
        if not {"serial", "key"} & set(header) or set(header) - set(COLUMNS):
            raise UsageError("the first line must name the columns", hint="serial,key,name (any of them, in any order)")
        return [
            make_line(dict(zip(header, (cell.strip() for cell in row), strict=False)), f"line {rows.line_num}")
            for row in rows
            if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise UsageError(f"line {rows.line_num} is not CSV: {error}") from error


def read_serial(text: str, where: str = "") -> str:
    """A serial as the registry keeps it. Raises UsageError, whose words begin with ``where``."""
    serial = lower(text)
    if not _SERIAL.fullmatch(serial):
        raise UsageError(f"{where}{serial[:64]!r} is no serial", hint="hexadecimal, as pi-agent board shows it")
    return serial


def make_line(members: dict[str, str], where: str) -> Line:
    """A line from its cells. Raises UsageError, which names ``where``."""
    serial, key, name = (members.get(column, "") for column in COLUMNS)
    if bool(serial) == bool(key):
        raise UsageError(f"{where} needs a serial or a key, and not both")
    serial = read_serial(serial, f"{where}: ") if serial else ""
    if key and not _KID.fullmatch(key):
        raise UsageError(f"{where}: {key[:64]!r} is no key thumbprint", hint="43 characters: pi-agent key show")
    if not name.isprintable() or len(name) > MAX_NAME:
        raise UsageError(f"{where}: a name has at most {MAX_NAME} printable characters")
    return Line(serial, key, name)
