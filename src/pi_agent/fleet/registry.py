"""The registry as operators work with it: find devices by query, look at one, change many.

Whatever is listed, counted, exported or changed is chosen by the same ``Query``. A change is a conditional update from
the statuses it may start at, bounded by how many devices the operator expects, with one audit line for each device in
the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from django.db import transaction
from django.db.models import Count, Max, QuerySet

from pi_agent import query as query_language
from pi_agent.catalogue import MODELS, STATUSES
from pi_agent.errors import ConflictError, QueryError, UnknownDeviceError, UsageError
from pi_agent.fleet import audit, paging
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import AuditEvent, Device
from pi_agent.fleet.selection import bounds, condition, opaque

MAX_LIMIT = 1000
RECENT_EVENTS = 20
BATCH = 500


@dataclass(frozen=True, slots=True)
class Action:
    """Something an operator does to devices: from one of ``sources`` to ``target``. ``past`` is its word in the audit log."""

    name: str
    past: str
    sources: tuple[str, ...]
    target: str


ACTIONS = {
    action.name: action
    for action in (
        Action("approve", "approved", ("pending", "rejected"), "approved"),
        Action("reject", "rejected", ("pending",), "rejected"),
        Action("quarantine", "quarantined", ("approved",), "quarantined"),
        Action("release", "released", ("quarantined",), "approved"),
        Action("revoke", "revoked", ("pending", "approved", "quarantined", "rejected"), "revoked"),
    )
}


@dataclass(frozen=True, slots=True)
class Page:
    """One page of devices. ``cursor`` asks for the next one, or is None at the end; ``total`` counts all pages."""

    meaning: str
    as_of: int
    devices: Sequence[Device]
    cursor: str | None
    total: int


@dataclass(frozen=True, slots=True)
class Change:
    """What an action did, or with ``dry_run`` would do: ``changed`` of ``matched`` devices."""

    meaning: str
    target: str
    matched: int
    changed: Sequence[Device]


def find(text: str, *, now: int, limit: int = 100, sort: str = "id", cursor: str = "") -> Page:
    """One page of the devices that a query text asks for. Raises QueryError, or UsageError for a bad page."""
    if not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"the limit is {limit}", hint=f"it may be 1 to {MAX_LIMIT}")
    place = paging.resume(cursor, text, sort) if cursor else None
    query = query_language.parse(text, place.as_of if place else now)
    order = paging.order_of(sort)
    total = place.total if place else Device.objects.filter(condition(query)).count()
    rows = _page(query, order, place, limit + 1, total)
    more = order.place(rows[limit - 1], query.now, total).text(text, sort) if len(rows) > limit else None
    return Page(query.meaning(), query.now, rows[:limit], more, total)


def _page(
    query: query_language.Query, order: paging.Order, place: paging.Place | None, limit: int, total: int
) -> list[Any]:
    """The next rows, by the cheaper of two ways: along the order until enough rows match, or all that match, sorted.

    With ``total`` of ``everyone`` matching, the first looks at about ``limit * everyone / total`` rows.
    """
    everyone = Device.objects.aggregate(last=Max("pk"))["last"] or 0
    devices = Device.objects.prefetch_related("keys", "tags")
    if total * total < limit * everyone:
        return order.page(devices.filter(condition(query)), place, limit, sort=True)
    if query.root == query_language.ALL:
        return order.page(devices, place, limit)
    return order.page(devices.filter(bounds(query, order.field), opaque(condition(query))), place, limit)


def get(client_id: str) -> Device:
    """The device with this id. Raises UnknownDeviceError."""
    device = Device.objects.filter(client_id=client_id).prefetch_related("keys", "tags").first()
    if device is None:
        raise UnknownDeviceError("there is no such device", hint="pi-fleet devices lists all there are")
    return device


def count_by_status(text: str, *, now: int) -> dict[str, int]:
    """How many devices of a query there are in each status, those without any included. Raises QueryError."""
    matching = Device.objects.filter(condition(query_language.parse(text, now)))
    found = dict(matching.order_by().values_list("status").annotate(Count("pk")))
    return {status: found.get(status, 0) for status in STATUSES}


def narrowed(text: str, status: str) -> str:
    """The query text for those devices of ``text`` that have a status; all of them when it is empty."""
    if not status:
        return text
    return f"({text}) status:{status}" if text.strip() else f"status:{status}"


def history(client_id: str, limit: int = RECENT_EVENTS) -> list[AuditEvent]:
    """The newest audit lines of a device, newest first."""
    return list(AuditEvent.objects.filter(device=client_id).order_by("-id")[:limit])


def act(name: str, text: str, *, most: int, reason: str, actor: Actor, now: int, dry_run: bool = False) -> Change:
    """Do an action to all devices of a query, if they are at most ``most``.

    Raises UsageError for an unknown action or an empty query, QueryError, and ConflictError when more devices match;
    then nothing has changed. Devices that are already past the action stay as they are.
    """
    if name not in ACTIONS:
        raise UsageError(f"there is no action {name!r}", hint=f"the actions are {', '.join(ACTIONS)}")
    if not text.strip():
        raise QueryError("an action needs a query", hint="id:* is every device", suggestion="id:*")
    action = ACTIONS[name]
    query = query_language.parse(text, now)
    matching = Device.objects.filter(condition(query)).order_by("pk")
    if dry_run:
        willing = matching.filter(status__in=action.sources)
        return Change(query.meaning(), action.target, matching.count(), list(willing[:MAX_LIMIT]))
    try:
        return _change(action, query, matching, most=most, reason=reason, actor=actor)
    except ConflictError as error:
        detail = {"query": str(query), "max": most, "why": str(error)}
        audit.record([Event(f"device.{name}", "", "refused", detail)], actor=actor, now=now)
        raise


def _change(
    action: Action, query: query_language.Query, matching: QuerySet[Device], *, most: int, reason: str, actor: Actor
) -> Change:
    with transaction.atomic():
        rows = list(matching.select_for_update()[: most + 1])
        if len(rows) > most:
            raise ConflictError(
                f"{matching.count()} devices match, more than {most}", hint="look at them first, then raise --max"
            )
        changed = [row for row in rows if row.status in action.sources]
        for batch in _batches(changed):
            Device.objects.filter(pk__in=[row.pk for row in batch]).update(status=action.target, status_reason=reason)
        audit.record(
            (
                Event(f"device.{action.past}", row.client_id, detail={"from": row.status, "reason": reason})
                for row in changed
            ),
            actor=actor,
            now=query.now,
        )
    return Change(query.meaning(), action.target, len(rows), changed)


def _batches(rows: Iterable[Device]) -> Iterator[list[Device]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def describe(device: Device) -> dict[str, Any]:
    """A device as JSON members: memory in MiB, times in RFC 3339 (UTC), unknown as null."""
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
        "simulated": device.simulated,
        "agent": device.agent_version,
        "key": device.key_protection,
        "keys": [{"kid": key.kid, "alg": key.alg, "created": rfc3339(key.created_at)} for key in device.keys.all()],
        "tags": [tag.tag for tag in device.tags.all()],
        "scope": device.scopes,
        "created": rfc3339(device.created_at),
        "auth": rfc3339(device.auth_at),
        "seen": rfc3339(device.seen_at),
        "refused": rfc3339(device.refused_at),
        "refused_reason": device.refused_reason,
    }


def describe_event(event: AuditEvent) -> dict[str, Any]:
    return {
        "id": event.pk,
        "at": rfc3339(event.at),
        "actor": event.actor,
        "source": event.source,
        "action": event.action,
        "result": event.result,
        "detail": json.loads(event.detail),
    }


def rfc3339(seconds: int | None) -> str | None:
    """``2026-11-20T00:45:00Z``, or None for a time that is not known."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
