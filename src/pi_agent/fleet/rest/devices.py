"""Devices: find, count, export, look at one, change many."""

from __future__ import annotations

import hashlib
import marshal
from typing import Annotated, Any

from django.http import HttpRequest, StreamingHttpResponse
from ninja import Router
from pydantic import Field

from pi_agent.catalogue import FIELDS, KINDS
from pi_agent.fleet import changes, export, paging, pending, registry, suggestions, views
from pi_agent.fleet.access import Caller
from pi_agent.fleet.actions import ACTIONS, Action
from pi_agent.fleet.changes import Change, Chosen
from pi_agent.fleet.output import one_line
from pi_agent.fleet.rest.common import Body, actor_of, needs, now

router = Router(tags=["devices"])
QueryText = Annotated[str, Field(max_length=2000)]
Limit = Annotated[int, Field(ge=1, le=registry.MAX_LIMIT)]
# What these may be is described here, and refused where it is read, with words that help.
Sort = Annotated[str, Field(json_schema_extra={"enum": [f"{way}{name}" for way in ("", "-") for name in paging.SORTS]})]
By = Annotated[str, Field(json_schema_extra={"enum": [*registry.COUNTED]})]
Reason = Annotated[str, Field(max_length=200)]
Tag = Annotated[str, Field(min_length=1, max_length=64)]


class ChangeRequest(Body):
    """Which devices to change: ``ids``, or those of ``query``.

    Of a query they are at most ``max`` (1 unless said), or exactly those that a preview named in its ``selection``.
    With ``dry_run`` nothing is changed, and the answer says what would be.
    """

    query: QueryText = ""
    ids: list[Annotated[str, Field(max_length=64)]] = Field(default_factory=list, max_length=changes.MAX_IDS)
    reason: Reason = ""
    max: int | None = Field(None, ge=0, le=1_000_000)
    selection: str = Field("", max_length=80)
    dry_run: bool = False


class TagRequest(ChangeRequest):
    """``add`` and ``remove`` are tags."""

    add: list[Tag] = Field(default_factory=list, max_length=20)
    remove: list[Tag] = Field(default_factory=list, max_length=20)


class RenameRequest(Body):
    """``name`` is what the one device of ``query`` is called from now on."""

    query: QueryText
    name: str = Field(min_length=1, max_length=changes.MAX_NAME)
    reason: Reason = ""


@router.get("/devices", **needs("reader"))
def list_devices(
    request: HttpRequest, query: QueryText = "", limit: Limit = 100, sort: Sort = "id", cursor: str = ""
) -> dict[str, Any]:
    """The devices of a query, a page at a time. ``next`` is the cursor of the next page, null at the end."""
    page = registry.find(views.expand(query), now=now(), limit=limit, sort=sort, cursor=cursor)
    items = [registry.describe(device, page.as_of) for device in page.devices]
    request.etag = _digest([items, page.total, page.cursor is None])  # type: ignore[attr-defined]  # not the time it was asked
    return {
        "schema": "pi-fleet.devices/1",
        "meaning": page.meaning,
        "as_of": registry.rfc3339(page.as_of),
        "items": items,
        "next": page.cursor,
        "total": page.total,
    }


@router.get("/counts", **needs("reader"))
def count_devices(request: HttpRequest, by: By, query: QueryText = "") -> dict[str, Any]:
    """How many devices of a query there are for each value of a field."""
    counts = registry.count_by(views.expand(query), by, now=now())
    items = [{"value": value, "count": count} for value, count in counts.counts]
    request.etag = _digest(items)  # type: ignore[attr-defined]  # as above
    return {
        "schema": "pi-fleet.counts/1",
        "meaning": counts.meaning,
        "as_of": registry.rfc3339(counts.as_of),
        "by": by,
        "items": items,
    }


@router.get("/devices.csv", **needs("reader"))
def export_csv(
    request: HttpRequest, query: QueryText = "", columns: str = "", sort: Sort = "created"
) -> StreamingHttpResponse:
    """All devices of a query as CSV."""
    return streamed("csv", query, columns, sort)


@router.get("/devices.jsonl", **needs("reader"))
def export_jsonl(
    request: HttpRequest, query: QueryText = "", columns: str = "", sort: Sort = "created"
) -> StreamingHttpResponse:
    """All devices of a query as JSON lines."""
    return streamed("jsonl", query, columns, sort)


def streamed(form: str, query: str, columns: str, sort: str) -> StreamingHttpResponse:
    """An export that is sent as it is read."""
    lines = export.lines(form, views.expand(query), columns=columns, sort=sort, now=now())
    name = f'attachment; filename="devices.{form}"'
    return StreamingHttpResponse(lines, content_type=export.FORMS[form], headers={"Content-Disposition": name})


@router.get("/fields", **needs("reader"))
def list_fields(request: HttpRequest) -> dict[str, Any]:
    """What a query can ask about."""
    items = [
        {
            "name": field.name,
            "title": field.title,
            "kind": field.kind,
            "form": KINDS[field.kind],
            "help": field.help,
            "values": field.values,
        }
        for field in FIELDS.values()
    ]
    return {"schema": "pi-fleet.fields/1", "items": items}


@router.get("/suggestions", **needs("reader"))
def suggest(request: HttpRequest, query: QueryText = "", cursor: int = 2000) -> dict[str, Any]:
    """What could stand at the cursor of a query that is being typed."""
    found = suggestions.suggest(query, cursor)
    items = [{"start": one.start, "end": one.end, "text": one.text, "help": one.help} for one in found]
    return {"schema": "pi-fleet.suggestions/1", "items": items}


def _add_action(action: Action) -> None:
    name, title = action.name, f"{action.name.capitalize()} the devices of a query"

    @router.post(f"/devices/{name}", operation_id=f"{name}_devices", summary=title, **needs(action.role))
    def change_devices(request: HttpRequest, body: ChangeRequest) -> dict[str, Any]:
        chosen = _chosen(request, body)
        if body.dry_run:
            return _answer(chosen, changes.preview(name, chosen, now=now()), dry_run=True)
        reason = one_line(body.reason)
        return _answer(chosen, changes.act(name, chosen, reason=reason, actor=actor_of(request), now=now()))


for _action in ACTIONS.values():  # before the route of one device, whose id would match an action's name
    _add_action(_action)


@router.post("/devices/tag", **needs("approver"))
def tag_devices(request: HttpRequest, body: TagRequest) -> dict[str, Any]:
    """Give tags to the devices of a query, and take others away."""
    chosen = _chosen(request, body)
    if body.dry_run:
        preview = changes.preview_tag(chosen, add=body.add, remove=body.remove, now=now())
        return _answer(chosen, preview, dry_run=True)
    change = changes.tag(
        chosen, add=body.add, remove=body.remove, reason=one_line(body.reason), actor=actor_of(request), now=now()
    )
    return _answer(chosen, change)


@router.post("/devices/rename", **needs("approver"))
def rename_device(request: HttpRequest, body: RenameRequest) -> dict[str, Any]:
    """Call one device something else."""
    chosen, reason = Chosen(views.expand(body.query), version=_version(request)), one_line(body.reason)
    return _answer(chosen, changes.rename(chosen, body.name, reason=reason, actor=actor_of(request), now=now()))


@router.post("/devices/rotate-key", **needs("approver"))
def rotate_keys(request: HttpRequest, body: ChangeRequest) -> dict[str, Any]:
    """Ask the devices of a query for new keys. Each is told with its next token, and goes on with its old one until then."""
    chosen = _chosen(request, body)
    if body.dry_run:
        return _answer(chosen, changes.preview_rotation(chosen, now=now()), dry_run=True)
    change = changes.rotate_keys(chosen, reason=one_line(body.reason), actor=actor_of(request), now=now())
    return _answer(chosen, change)


@router.get("/devices/{device_id}", **needs("reader"))
def show_device(request: HttpRequest, device_id: str) -> dict[str, Any]:
    """One device, with its newest audit lines. The part of its ETag before the dot changes only when an operator changes it."""
    device = registry.get(device_id)
    events = [registry.describe_event(event) for event in registry.history(device_id)]
    shown = {name: value for name, value in pending.recognised_by(device).items() if name in ("code", "words")}
    answer = {"schema": "pi-fleet.device/1", **registry.describe(device, now()), **shown, "events": events}
    request.etag = f"{changes.version(device)}.{_digest(answer)}"  # type: ignore[attr-defined]  # as above
    caller: Caller = request.auth  # type: ignore[attr-defined]  # ninja puts the caller there
    return answer | {"version": changes.version(device), "next_steps": registry.next_steps(device, caller.role, now())}


def _chosen(request: HttpRequest, body: ChangeRequest) -> Chosen:
    return Chosen(views.expand(body.query), tuple(body.ids), body.max, body.selection, _version(request))


def _version(request: HttpRequest) -> str:
    """The version that If-Match asks for; one that no device has where it names none."""
    given = request.headers.get("if-match")
    return "" if given is None else given.strip().strip('"').partition(".")[0] or "none"


def _answer(chosen: Chosen, change: Change, *, dry_run: bool = False) -> dict[str, Any]:
    is_status = change.target not in (changes.TAGGED, changes.ROTATION, changes.NAMED)
    status = {"status": change.target} if is_status and not dry_run else {}
    known = {device.client_id for device in change.changed}  # until now, of those that are forgotten
    return {
        "schema": "pi-fleet.change/1",
        "meaning": change.meaning,
        "matched": change.matched,
        "unknown": [one for one in chosen.unknown() if one not in known],
        "status": change.target,
        "dry_run": dry_run,
        "count": change.count,
        "stays": change.stays,
        "changed": [registry.describe(device) | status for device in change.changed],
        "selection": change.selection or None,
        "tokens_until": registry.rfc3339(change.tokens_until),
    }


def _digest(value: Any) -> str:
    """Of JSON's kinds of values, which marshal writes sooner; in its version 2 equal values are equal bytes."""
    return hashlib.sha256(marshal.dumps(value, 2)).hexdigest()[:16]
