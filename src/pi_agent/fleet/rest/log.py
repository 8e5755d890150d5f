"""The audit log and the views."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from django.http import HttpRequest
from ninja import Router
from pydantic import Field

from pi_agent.fleet import history, views
from pi_agent.fleet.models import View
from pi_agent.fleet.registry import describe_event, rfc3339
from pi_agent.fleet.rest.common import Body, actor_of, needs, now

router = Router(tags=["audit and views"])
Limit = Annotated[int, Field(ge=1, le=history.MAX_LIMIT)]
QueryText = Annotated[str, Field(max_length=2000)]


class ViewRequest(Body):
    """A query with a name, and how its answer is shown."""

    query: QueryText
    columns: str = Field("", max_length=256)
    sort: str = Field("", max_length=32)


@router.get("/audit", **needs("reader"))
def list_events(request: HttpRequest, query: QueryText = "", limit: Limit = 100, before: int = 0) -> dict[str, Any]:
    """The audit log, newest first. ``next`` is the ``before`` of the next page, null at the end."""
    page = history.find(query, now=now(), limit=limit, before=before)
    return {
        "schema": "pi-fleet.audit/1",
        "meaning": page.meaning,
        "as_of": rfc3339(page.as_of),
        "items": [describe_event(event) for event in page.events],
        "next": page.before,
    }


@router.get("/audit/verify", **needs("reader"))
def verify_events(request: HttpRequest) -> dict[str, Any]:
    """Whether each line of the audit log follows from the one before it, or where it breaks."""
    report = history.verify()
    return {"schema": "pi-fleet.audit-verify/1", "whole": report.broken is None} | asdict(report)


@router.get("/views", **needs("reader"))
def list_views(request: HttpRequest) -> dict[str, Any]:
    """All views."""
    return {"schema": "pi-fleet.views/1", "items": [_describe(view) for view in View.objects.order_by("slug")]}


@router.get("/views/{slug}", **needs("reader"))
def show_view(request: HttpRequest, slug: str) -> dict[str, Any]:
    """One view."""
    return {"schema": "pi-fleet.view/1", **_describe(views.get(slug))}


@router.put("/views/{slug}", **needs("approver"))
def save_view(request: HttpRequest, slug: str, body: ViewRequest) -> dict[str, Any]:
    """Save a view, in place of one of the same name."""
    view = views.save(slug, body.query, columns=body.columns, sort=body.sort, actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.view/1", **_describe(view)}


@router.delete("/views/{slug}", **needs("approver"))
def remove_view(request: HttpRequest, slug: str) -> dict[str, Any]:
    """Forget a view."""
    views.remove(slug, actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.done/1", "done": True}


def _describe(view: View) -> dict[str, Any]:
    shown = {"columns": view.columns.split(",") if view.columns else [], "sort": view.sort or None}
    return {"name": view.slug, "query": view.query, **shown, "saved": rfc3339(view.created_at), "by": view.created_by}
