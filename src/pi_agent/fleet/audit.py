"""The audit log: who did what to which device, from where, when, and how it ended.

Lines are only ever added. Each carries the digest of the line before it, so a line that is changed, taken out or put
in breaks the chain from there on; two lines cannot follow the same one, since ``previous`` is unique. Cutting lines off
at the end is seen by whoever has kept a digest from elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from django.db import transaction

from pi_agent.fleet.models import AuditEvent

FIRST = "0" * 64
COVERED = ("at", "actor", "source", "action", "device", "result", "detail", "previous")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, and from where: an operator's name, a device, or the server itself."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line to be written. ``result`` is ``done`` or ``refused``; ``detail`` is whatever explains it."""

    action: str
    device: str = ""
    result: str = "done"
    detail: Mapping[str, object] = field(default_factory=dict)


def record(events: Iterable[Event], *, actor: Actor, now: int) -> None:
    """Write lines in order. Inside the transaction that makes the change, so that neither exists without the other."""
    with transaction.atomic():
        last = AuditEvent.objects.order_by("-id").values_list("digest", flat=True).first() or FIRST
        rows = []
        for event in events:
            row = _row(event, actor, now, last)
            last = row.digest
            rows.append(row)
        AuditEvent.objects.bulk_create(rows, batch_size=100)


def verify() -> int | None:
    """The id of the first line that does not follow from the one before it, or None when the chain is whole."""
    last = FIRST
    for row in AuditEvent.objects.order_by("id").iterator():
        if row.previous != last or row.digest != _digest(row):
            return int(row.pk)
        last = row.digest
    return None


def _row(event: Event, actor: Actor, now: int, previous: str) -> AuditEvent:
    row = AuditEvent(
        at=now,
        actor=actor.name[:128],
        source=actor.source[:64],
        action=event.action,
        device=event.device,
        result=event.result,
        detail=json.dumps(event.detail, sort_keys=True),
        previous=previous,
    )
    row.digest = _digest(row)
    return row


def _digest(row: AuditEvent) -> str:
    text = json.dumps([getattr(row, name) for name in COVERED])
    return hashlib.sha256(text.encode()).hexdigest()
