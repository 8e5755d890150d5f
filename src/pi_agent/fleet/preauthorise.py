"""Boards and keys that an operator approves before they have ever been seen, from a list (CSV).

    serial,key,name
    00000000c0ffee01,,kitchen
    ,oTJ5k0x2...43 characters,garden

A key's thumbprint is the better line: only the holder of that key can use it. A serial is no secret, so a line with one
approves whoever comes first with that serial, once, until the line expires; a second claim to the same serial waits for
an operator as always.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import Q

from pi_agent.catalogue import lower
from pi_agent.errors import UsageError
from pi_agent.fleet import audit
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Preauthorisation

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
    rows = csv.reader(lines)
    header = [cell.strip().lower().removeprefix("\ufeff") for cell in next(rows, [])]
    if not {"serial", "key"} & set(header) or set(header) - set(COLUMNS):
        raise UsageError("the first line must name the columns", hint="serial,key,name (any of them, in any order)")
    return [
        make_line(dict(zip(header, (cell.strip() for cell in row), strict=False)), f"line {rows.line_num}")
        for row in rows
        if any(cell.strip() for cell in row)
    ]


def make_line(members: dict[str, str], where: str) -> Line:
    """A line from its cells. Raises UsageError, which names ``where``."""
    serial, key, name = (members.get(column, "") for column in COLUMNS)
    serial = lower(serial)
    if bool(serial) == bool(key):
        raise UsageError(f"{where} needs a serial or a key, and not both")
    if serial and not _SERIAL.fullmatch(serial):
        raise UsageError(f"{where}: {serial[:64]!r} is no serial", hint="hexadecimal, as pi-agent board shows it")
    if key and not _KID.fullmatch(key):
        raise UsageError(f"{where}: {key[:64]!r} is no key thumbprint", hint="43 characters: pi-agent key show")
    if not name.isprintable() or len(name) > MAX_NAME:
        raise UsageError(f"{where}: a name has at most {MAX_NAME} printable characters")
    return Line(serial, key, name)


def add(lines: Iterable[Line], *, expires_at: int, actor: Actor, now: int) -> int:
    """Approve each line beforehand; how many are new. A line that waits already is given the new end and name."""
    new = 0
    for line in lines:
        waiting = Preauthorisation.objects.filter(serial=line.serial or None, kid=line.key or None, used_at=None)
        if not waiting.update(name=line.name, expires_at=expires_at):
            new += 1
            Preauthorisation.objects.create(
                serial=line.serial or None,
                kid=line.key or None,
                name=line.name,
                created_at=now,
                created_by=actor.name[:128],
                expires_at=expires_at,
            )
    audit.record([Event("preauthorised", detail={"lines": new, "expires": expires_at})], actor=actor, now=now)
    return new


def spend(*, serial: str | None, kid: str, client_id: str, now: int) -> Preauthorisation | None:
    """Use up the line for this key, else the one for this serial; None when there is none. One update decides each."""
    for matches in (Q(kid=kid), Q(serial=serial) if serial else None):
        if matches is None:
            continue
        line = Preauthorisation.objects.filter(matches, used_at=None, expires_at__gt=now).first()
        unused = Preauthorisation.objects.filter(pk=line.pk, used_at=None) if line else None
        if unused is not None and unused.update(used_at=now, device=client_id) == 1:
            return line
    return None
