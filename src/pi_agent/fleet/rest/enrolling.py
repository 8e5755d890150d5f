"""Devices on their way in: those that wait, and those that are approved before they come."""

from __future__ import annotations

from typing import Annotated, Any

from django.db import transaction
from django.http import HttpRequest
from ninja import Router
from pydantic import Field

from pi_agent.errors import UnknownDeviceError
from pi_agent.fleet import audit, lists, pending, preauthorise
from pi_agent.fleet.audit import Event
from pi_agent.fleet.models import Device, Preauthorisation
from pi_agent.fleet.registry import rfc3339
from pi_agent.fleet.rest.common import Body, actor_of, needs, now

router = Router(tags=["enrolling"])
MAX_LINES = 200
MAX_LIFE = 10 * 366 * 86400


class LineIn(Body):
    """One board: by its ``serial`` or by its key's thumbprint."""

    serial: str = Field("", max_length=64)
    key: str = Field("", max_length=64)
    name: str = Field("", max_length=64)


class ListIn(Body):
    """Boards that are approved when they come, for ``ttl`` seconds."""

    lines: Annotated[list[LineIn], Field(min_length=1, max_length=MAX_LINES)]
    ttl: int = Field(90 * 86400, ge=60, le=MAX_LIFE)


@router.get("/pending", **needs("reader"))
def list_pending(request: HttpRequest, code: str = "") -> dict[str, Any]:
    """Devices that wait for approval, with why; or the one device that shows a code."""
    found = [pending.find(code[:32])] if code else pending.waiting()
    total = len(found) if code else Device.objects.filter(status="pending").count()
    return {"schema": "pi-fleet.pending/1", "total": total, "items": [pending.describe(device) for device in found]}


@router.get("/preauthorisations", **needs("reader"))
def list_preauthorisations(request: HttpRequest) -> dict[str, Any]:
    """Boards and keys that are approved when they come."""
    rows = Preauthorisation.objects.filter(used_at=None, expires_at__gt=now()).order_by("pk")
    items = [
        {
            "id": row.pk,
            "serial": row.serial,
            "key": row.kid,
            "name": row.name,
            "expires": rfc3339(row.expires_at),
            "created_by": row.created_by,
        }
        for row in rows[:1000]
    ]
    return {"schema": "pi-fleet.preauthorisations/1", "total": rows.count(), "items": items}


@router.post("/preauthorisations", **needs("approver"))
def add_preauthorisations(request: HttpRequest, body: ListIn) -> dict[str, Any]:
    """Approve boards and keys before they come. A line that waits already is given the new end and name."""
    lines = [
        lists.make_line({"serial": line.serial, "key": line.key, "name": line.name}, f"line {number}")
        for number, line in enumerate(body.lines, 1)
    ]
    at = now()
    with transaction.atomic():
        new = preauthorise.add(lines, expires_at=at + body.ttl, actor=actor_of(request), now=at)
    return {"schema": "pi-fleet.preauthorised/1", "lines": len(lines), "new": new, "expires": rfc3339(at + body.ttl)}


@router.delete("/preauthorisations/{line_id}", **needs("approver"))
def end_preauthorisation(request: HttpRequest, line_id: int) -> dict[str, Any]:
    """Take a line back that nobody has used."""
    with transaction.atomic():
        ended, _ = Preauthorisation.objects.filter(pk=min(line_id, 2**62), used_at=None).delete()
        event = Event("preauthorisation.end", result="done" if ended else "refused", detail={"line": line_id})
        audit.record([event], actor=actor_of(request), now=now())
    if not ended:
        raise UnknownDeviceError("there is no such line waiting")
    return {"schema": "pi-fleet.done/1", "done": True}
