"""The audit log: who did what to which device, from where, when, and how it ended.

Lines are only ever added. Each carries the digest of the line before it, so a line that is changed, taken out or put
in breaks the chain from there on; two lines cannot follow the same one, since ``previous`` is unique. Who writes holds
the log until the end of the transaction, so it is the last thing that a transaction takes. Cutting lines off at the end
is seen by whoever has kept a digest from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from django.db import transaction

from pi_agent.fleet import bulk, database, webhooks
from pi_agent.fleet.models import AuditEvent

FIRST = "0" * 64
COVERED = ("at", "actor", "source", "action", "device", "result", "detail", "previous")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from where: an operator's name, a device, or the server itself; and by which request, if by one."""

    name: str
    source: str
    request: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """One line to be written. ``result`` is ``done`` or ``refused``; ``detail`` is whatever explains it."""

    action: str
    device: str = ""
    result: str = "done"
    detail: Mapping[str, object] = field(default_factory=dict)


def record(events: Iterable[Event], *, actor: Actor, now: int) -> None:
    """Write lines in order. Inside the transaction that makes the change, so that neither exists without the other."""
    events = list(events)
    with transaction.atomic():
        append([(now, event) for event in events], actor=actor)
        webhooks.queue(events, actor=actor.name, now=now)


def append(lines: Iterable[tuple[int, Event]], *, actor: Actor) -> None:
    """Lines with a time each, in order, of which nobody else is told."""
    with transaction.atomic():
        last, rows = _last(), []
        for at, event in lines:
            values = (*_values(event, actor, at), last)
            last = _digest(values)
            rows.append((*values, last))
        bulk.insert("fleet_auditevent", (*COVERED, "digest"), rows)


def _last() -> str:
    """The digest of the last line, which stays the last until this transaction ends."""
    database.lock("audit")
    return AuditEvent.objects.order_by("-id").values_list("digest", flat=True).first() or FIRST


def verify() -> int | None:
    """The id of the first line that does not follow from the one before it, or None when the chain is whole."""
    last = FIRST
    for pk, digest, *values in AuditEvent.objects.order_by("id").values_list("pk", "digest", *COVERED).iterator(5000):
        if values[-1] != last or digest != _digest(values):
            return int(pk)
        last = digest
    return None


def _values(event: Event, actor: Actor, now: int) -> tuple[int | str, ...]:
    """What a line says, in the order of COVERED, but for the line before it."""
    request = {"request": actor.request} if actor.request else {}
    detail = json.dumps({**event.detail, **request}, sort_keys=True)
    return now, actor.name[:128], actor.source[:64], event.action, event.device, event.result, detail


def _digest(values: Sequence[int | str]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()
