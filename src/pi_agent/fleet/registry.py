"""The registry as operators read it: find devices by query, count them, look at one, take all of them away as rows.

Whatever is listed, counted, exported or (in ``changes``) changed is chosen by the same ``Query``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from time import gmtime
from typing import Any

from django.db import connection
from django.db.models import BigIntegerField, BooleanField, Case, Count, F, Func, Q, QuerySet, When

from pi_agent import query as query_language
from pi_agent.catalogue import FIELDS, MODELS, STATUSES, fold
from pi_agent.errors import UnknownDeviceError, UsageError
from pi_agent.fleet import paging
from pi_agent.fleet.access import RANK
from pi_agent.fleet.actions import ACTIONS
from pi_agent.fleet.aside import aside
from pi_agent.fleet.models import AuditEvent, Device, with_parts
from pi_agent.fleet.selection import COLUMNS, Opaque, bounds, condition, opaque

MAX_LIMIT = 1000
RECENT_EVENTS = 20
MANY = 4  # a quarter of all devices
USUAL = "approved"
OTHERS = tuple(status for status in STATUSES if status != USUAL)
COUNTED = tuple(name for name in FIELDS if name not in ("id", "name", "serial"))
SPELLINGS = {fold("model", model): model for model in MODELS}


@dataclass(frozen=True, slots=True)
class Page:
    """One page of devices. ``cursor`` asks for the next one, or is None at the end; ``total`` counts all pages."""

    meaning: str
    as_of: int
    devices: Sequence[Device]
    cursor: str | None
    total: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Values of a field (None: not known) and how many devices have each."""

    meaning: str
    as_of: int
    counts: list[tuple[Any, int]]


def find(
    text: str, *, now: int, limit: int = 100, sort: str = "id", cursor: str = "", total: int | None = None
) -> Page:
    """One page of the devices that a query text asks for; ``total`` is how many there are, if somebody has counted them.

    Raises QueryError, or UsageError for a bad page.
    """
    if not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"the limit is {limit}", hint=f"it may be 1 to {MAX_LIMIT}")
    place = paging.resume(cursor, text, sort) if cursor else None
    query = query_language.parse(text, place.as_of if place else now)
    order = paging.order_of(sort)
    known = place.total if place is not None else total
    matching = Device.objects.filter(condition(query))
    counted = aside(matching.count) if known is None else lambda: known
    many = isqrt(limit * _everyone()) + 1
    found = matching[:many].count() if known is None else known
    rows = with_parts(_page(query, order, place, limit + 1, few=found < many))
    total = found if found < many else counted()
    more = order.place(rows[limit - 1], query.now, total).text(text, sort) if len(rows) > limit else None
    return Page(query.meaning(), query.now, rows[:limit], more, total)


def _page(
    query: query_language.Query, order: paging.Order, place: paging.Place | None, limit: int, *, few: bool
) -> list[Any]:
    """The next rows, by the cheaper of two ways: along the order until enough rows match, or all that match, sorted.

    With ``total`` of ``everyone`` matching, the first looks at about ``limit * everyone / total`` rows, and the second
    at ``total``: they are ``few`` below the square root of ``limit * everyone``.
    """
    devices = Device.objects.all()
    if few:
        return order.page(devices.filter(condition(query)), place, limit, sort=True)
    if query.root == query_language.ALL:
        return order.page(devices, place, limit)
    return order.page(devices.filter(bounds(query, order.field), opaque(condition(query))), place, limit)


def get(client_id: str) -> Device:
    """The device with this id. Raises UnknownDeviceError."""
    device = Device.objects.filter(client_id=client_id).first()
    if device is None:
        raise UnknownDeviceError("there is no such device", hint="pi-fleet devices lists all there are")
    return device


def count_by_status(text: str, *, now: int) -> dict[str, int]:
    """How many devices of a query there are in each status, those without any included. Raises QueryError.

    Nearly all are approved, so it is quicker to count all and the others than to sort all by their status.
    """
    query = query_language.parse(text, now)
    matching = Device.objects.filter(condition(query)).order_by()
    other = Q(status__in=OTHERS) if query.root == query_language.ALL else opaque(~Q(status=USUAL))
    counted = aside(matching.count)
    found = dict(matching.filter(other).values_list("status").annotate(count=Count("*")))
    usual = max(0, counted() - sum(found.values()))  # somebody may have changed them in between
    return {status: found.get(status, 0) if status != USUAL else usual for status in STATUSES}


def count_by(text: str, by: str, *, now: int) -> Counts:
    """How many devices of a query there are for each value of a field, the most frequent first; a time counts by UTC day.

    Raises QueryError, or UsageError for a field that cannot be counted by.
    """
    if by not in COUNTED:
        raise UsageError(f"cannot count by {by[:40]!r}", hint=f"by {', '.join(COUNTED)}")
    query = query_language.parse(text, now)
    matching = _counted(query) if by != "tag" else Device.objects.filter(condition(query)).order_by()
    column: Any = F("tags__tag_key" if by == "tag" else COLUMNS[by])
    if by == "late":
        column = Case(When(due_at__lt=now, then=True), When(due_at__gte=now, then=False), output_field=BooleanField())
    elif FIELDS[by].kind == "time":
        column = Func(column, template="%(expressions)s / 86400 * 86400", output_field=BigIntegerField())
    if query.root != query_language.ALL and by != "tag":
        column = Opaque(column, output_field=BooleanField() if by == "late" else None)  # the index is for what is asked
    each = Count("pk", distinct=True) if by == "tag" else Count("*")  # not every index knows the row
    found = matching.values_list(column).annotate(count=each)
    counts = [(_spoken(by, value), count) for value, count in found]
    return Counts(query.meaning(), now, sorted(counts, key=lambda pair: (-pair[1], str(pair[0]))))


def _counted(query: query_language.Query) -> QuerySet[Device]:
    """The devices of a query, by the cheaper of two ways: each through an index, or when they are many, all in one pass."""
    wanted = condition(query)
    found = Device.objects.filter(wanted).order_by()
    many = query.root != query_language.ALL and found.count() * MANY > _everyone()
    return Device.objects.filter(opaque(wanted)).order_by() if many else found


def _everyone() -> int:
    """About how many devices there are, which takes no time to find out."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT MAX(id) FROM fleet_device")
        return cursor.fetchone()[0] or 0


def _spoken(by: str, value: Any) -> Any:
    """A counted value as it is written elsewhere: a day, or the spelling of a model that its folded form stands for."""
    if value is None or by == "late":
        return value
    if FIELDS[by].kind == "time":
        return str(rfc3339(value))[:10]
    return SPELLINGS.get(value, value) if by == "model" else value


def history(client_id: str, limit: int = RECENT_EVENTS) -> list[AuditEvent]:
    """The newest audit lines of a device, newest first."""
    return list(AuditEvent.objects.filter(device=client_id).order_by("-id")[:limit])


def next_steps(device: Device, role: str, now: int) -> list[str]:
    """What could be done about a device now, as commands."""
    fitting = [action for action in ACTIONS.values() if action.fits(device, now) and RANK[role] >= RANK[action.role]]
    return [f"pi-fleet {action.name} {device.client_id} --reason '...'" for action in fitting]


def describe(device: Device, now: int | None = None) -> dict[str, Any]:
    """A device as JSON members: memory in MiB, times in RFC 3339 (UTC), unknown as null; ``late`` as of ``now``."""
    return {
        "id": device.client_id,
        "name": device.name,
        "status": device.status,
        "status_reason": device.status_reason,
        "flag": device.flag,
        "model": device.model,
        "model_name": MODELS.get(device.model or ""),
        "memory_mib": device.memory_mib,
        "serial": device.serial,
        "revision": device.revision,
        "pcb_revision": device.pcb_revision,
        "soc": device.soc,
        "maker": device.maker,
        "overvoltage": device.overvoltage,
        "warranty": device.warranty,
        "simulated": device.simulated,
        "agent": device.agent_version,
        "key": device.key_protection,
        "keys": [
            {"kid": kid, "alg": alg, "created": rfc3339(created)} for kid, alg, created, _ in device.speaking_keys
        ],
        "tags": device.tag_names,
        "scope": device.scopes,
        "created": rfc3339(device.created_at),
        "auth": rfc3339(device.auth_at),
        "seen": rfc3339(device.seen_at),
        "refused": rfc3339(device.refused_at),
        "refused_reason": device.refused_reason,
        "token_until": rfc3339(device.token_until),
        "due": rfc3339(device.due_at),
        "late": None if device.due_at is None or now is None else device.due_at < now,
    }


def describe_event(event: AuditEvent) -> dict[str, Any]:
    return {
        "id": event.pk,
        "at": rfc3339(event.at),
        "actor": event.actor,
        "source": event.source,
        "action": event.action,
        "device": event.device,
        "result": event.result,
        "detail": json.loads(event.detail),
    }


def rfc3339(seconds: int | None) -> str | None:
    """``2026-11-20T00:45:00Z``, or None for a time that is not known. A page of devices has 800 of them."""
    if seconds is None:
        return None
    day, rest = divmod(seconds, 86400)
    return f"{_date(day)}T{_MINUTES[rest // 60]}:{_MINUTES[rest % 60][3:]}Z"


_MINUTES = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in range(60)]


@lru_cache(maxsize=1000)
def _date(day: int) -> str:
    year, month, day_of_month, *_ = gmtime(day * 86400)
    return f"{year}-{month:02}-{day_of_month:02}"
