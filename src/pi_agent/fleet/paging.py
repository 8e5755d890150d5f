"""Keyset pages: page 1,000 costs what page 1 does, and a device that comes or goes shifts nobody else.

A page ends at a place: the sort value and the row id of its last device. The next page is everything after that place.
The cursor that names it is opaque to clients, and belongs to one query and one order: with any other it is refused.
Devices without a sort value come last, in both directions.

A page is read in up to three searches, each of which an index answers from its first row on: the rest of the devices
that share the last sort value, those beyond it, and those that have none.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from django.db.models import F, IntegerField, Q, QuerySet

from pi_agent.errors import MalformedTokenError, UsageError
from pi_agent.fleet.models import Device
from pi_agent.fleet.selection import COLUMNS, EVERYTHING, Opaque, opaque
from pi_agent.jws import b64url, b64url_decode, load_json_object

SORTS = ("id", "name", "model", "memory", "serial", "status", "auth", "seen", "refused", "created", "late")
MAX_CURSOR = 1024
MAX_TIME = 253_402_300_799  # the end of the year 9999, the last one that has a name


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended; and what holds for all pages: the time its ages count from, and how many devices there were."""

    value: str | int | None
    row: int
    as_of: int
    total: int

    def text(self, query: str, sort: str) -> str:
        members = {"v": self.value, "r": self.row, "t": self.as_of, "n": self.total, "q": _binding(query, sort)}
        return b64url(json.dumps(members, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class Order:
    """A field and a direction; the row id breaks ties."""

    field: str
    descending: bool

    @property
    def column(self) -> str:
        return COLUMNS[self.field]

    def page(self, rows: QuerySet[Device], place: Place | None, limit: int, *, sort: bool = False) -> list[Any]:
        """The next ``limit`` rows. ``sort``: find all rows first and sort them, which is cheaper when they are few."""
        key: Any = Opaque(F(self.column)) if sort else F(self.column)
        order = (key.desc(), "-pk") if self.descending else (key.asc(), "pk")
        found: list[Any] = []
        for phase in self._phases(place):
            if len(found) < limit:
                found += rows.filter(opaque(phase) if sort else phase).order_by(*order)[: limit - len(found)]
        return found

    def _phases(self, place: Place | None) -> list[Q]:
        unknown = Q(**{f"{self.column}__isnull": True})
        last = [unknown] if Device._meta.get_field(self.column).null else []
        if place is None:
            return [~unknown, *last] if last else [EVERYTHING]
        later = Q(pk__lt=place.row) if self.descending else Q(pk__gt=place.row)
        if place.value is None:
            return [unknown & later]
        beyond = Q(**{f"{self.column}__{'lt' if self.descending else 'gt'}": place.value})
        return [Q(**{self.column: place.value}) & later, beyond, *last]

    def may_hold(self, value: object) -> bool:
        """Whether a place in this order can have ``value``."""
        column = Device._meta.get_field(self.column)
        if value is None:
            return bool(column.null)
        if isinstance(column, IntegerField):
            return type(value) is int and abs(value) < 2**62
        return isinstance(value, str) and "\0" not in value

    def place(self, device: Device, as_of: int, total: int) -> Place:
        return Place(getattr(device, self.column), device.pk, as_of, total)


def order_of(sort: str) -> Order:
    """``auth``, or ``-auth`` for the newest first. Raises UsageError."""
    name = sort.removeprefix("-")
    if name not in SORTS:
        raise UsageError(
            f"cannot sort by {name!r}", hint=f"by {', '.join(SORTS)}; with a minus for the other direction"
        )
    return Order(name, sort.startswith("-"))


def resume(cursor: str, query: str, sort: str) -> Place:
    """The place that a cursor names. Raises UsageError for one that was not given for this query and order.

    A client can write a cursor of its own, so nothing of it is believed: each part could otherwise fail in the database.
    """
    order = order_of(sort)
    refusal = UsageError("the cursor does not belong to this query and order", hint="start again without a cursor")
    try:
        if len(cursor) > MAX_CURSOR:
            raise refusal
        members: dict[str, Any] = load_json_object(b64url_decode(cursor))
    except MalformedTokenError:
        raise refusal from None
    value, row, as_of, total = (members.get(name) for name in "vrtn")
    most = ((row, 2**62), (as_of, MAX_TIME), (total, 2**62))
    numbers = all(type(number) is int and 0 <= number <= limit for number, limit in most)
    if members.get("q") != _binding(query, sort) or not numbers or not order.may_hold(value):
        raise refusal
    return Place(value, row, as_of, total)  # type: ignore[arg-type]  # each was just seen to be an int


def _binding(query: str, sort: str) -> str:
    return hashlib.sha256(f"{sort} {query}".encode()).hexdigest()[:16]
