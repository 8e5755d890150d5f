"""The devices page: a query, what it means, its devices, and their charts."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from django.http import HttpRequest, HttpResponse, HttpResponseBase, QueryDict
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from pi_agent.catalogue import FIELDS, STATUSES, quote, size_text
from pi_agent.errors import ConflictError, PiAgentError, QueryError
from pi_agent.fleet import changes, paging, registry, settings, suggestions, views
from pi_agent.fleet.actions import ACTIONS
from pi_agent.fleet.models import View
from pi_agent.fleet.output import COLUMNS
from pi_agent.fleet.output import memory as memory_words
from pi_agent.fleet.pages import charts, show
from pi_agent.fleet.pages.charts import Bar
from pi_agent.fleet.pages.guard import caller_of, page
from pi_agent.fleet.pages.once import said
from pi_agent.fleet.rest.devices import streamed

PAGE = 50
DEFAULT = ("status", "model", "memory", "serial", "auth", "key")
CHOICES = tuple(name for name in COLUMNS if name not in ("id", "name"))
CHART_DAYS, CHART_BARS = 14, 8


@require_GET
@page("reader")
def devices(request: HttpRequest) -> HttpResponseBase:
    """The devices of a query, with one tab for each status."""
    return listing(request, request.GET.get("query", ""), request.GET.get("status", ""))


def listing(request: HttpRequest, query: str, status: str, problem: PiAgentError | None = None) -> HttpResponse:
    now, given = int(time.time()), request.POST if request.method == "POST" else request.GET
    status = status if status in STATUSES else ""
    view = _view(query)
    usual = (view.sort if view else "") or "-created"
    sort = given.get("sort", "") or usual
    columns = _columns(given, view)
    kept = {
        "query": query,
        "status": status,
        "columns": ",".join(columns) if columns != DEFAULT else "",
        "sort": sort if sort != usual else "",
    }
    context: dict[str, Any] = {"query": query, "status": status, "sort": sort, "problem": problem}
    try:
        context |= _found(request, kept, sort, columns, now)
    except PiAgentError as error:
        context |= {"problem": error}
    context |= explain(context["problem"], query)
    context |= {
        "setup": settings.setup_command(settings.current().issuer),
        "empty_fleet": not query and not status,
        "caller": caller_of(request),
        "views": [{"name": one.slug, "query": f"@{one.slug}"} for one in View.objects.order_by("slug")[:30]],
        "column_choices": [(name, COLUMNS[name][0].capitalize(), name in columns) for name in CHOICES],
        "kept": kept,
        "said": said(request),
        "reason": request.POST.get("reason", ""),
    }
    code = 409 if isinstance(problem, ConflictError) else 400 if context["problem"] else 200
    return render(request, "devices.html", context, status=code)


def _found(request: HttpRequest, kept: dict[str, str], sort: str, columns: tuple[str, ...], now: int) -> dict[str, Any]:
    query, status, cursor = kept["query"], kept["status"], request.GET.get("cursor", "")
    asked = views.expand(query)
    counts = registry.count_by_status(asked, now=now)  # first, since what it says about the query fits what was typed
    total = counts[status] if status else sum(counts.values())
    within = changes.narrowed(asked, status, now)
    onward = within if status else query  # a view goes by its name where that says it all
    found = registry.find(
        within,
        now=now,
        limit=PAGE,
        sort=sort,
        cursor=cursor,
        total=None if cursor else total,
    )
    rows = [show.row(registry.describe(device, found.as_of), now) for device in found.devices]
    tabs = [("", "all", sum(counts.values())), *((name, name, count) for name, count in counts.items())]
    return {
        "rows": [row | {"cells": [show.cell(name, row, now) for name in columns]} for row in rows],
        "total": found.total,
        "meaning": found.meaning,
        "actions": [action for action in ACTIONS.values() if caller_of(request).may(action.role)],
        "tabs": [
            {"title": title, "count": count, "current": name == status, "link": link(**(kept | {"status": name}))}
            for name, title, count in tabs
        ],
        "headings": _headings(kept, sort, columns),
        "first": link(**kept) if cursor else "",
        "next": link(**kept, cursor=found.cursor) if found.cursor else "",
        "csv": link(
            "/devices.csv",
            query=onward,
            columns=kept["columns"] and f"name,id,{kept['columns']}",
            sort=sort,
        ),
        "charts": link("/devices/charts", query=onward),
    }


def _view(query: str) -> View | None:
    """The view that a query is, if it is one and nothing more."""
    return View.objects.filter(slug=query.strip()[1:]).first() if query.lstrip().startswith("@") else None


def _columns(given: QueryDict, view: View | None) -> tuple[str, ...]:
    """The columns asked for: as a list in a link, or by the boxes of the form; else those of the view, else the usual."""
    asked = ",".join(given.getlist("columns")) or (view.columns if view else "")
    chosen = tuple(dict.fromkeys(name for name in asked.split(",") if name in CHOICES))
    return chosen or DEFAULT


def _headings(kept: dict[str, str], sort: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The table's headings; those that sort lead to their order, or to its opposite when it is in force."""
    headings = []
    for field in ("name", *columns):
        title = "Device" if field == "name" else show.TITLES[field]
        wanted = f"-{field}" if sort == field else field
        direction = {field: "ascending", f"-{field}": "descending"}.get(sort, "")
        target = link(**(kept | {"sort": wanted})) if field in paging.SORTS else ""
        headings.append({"title": title, "link": target, "direction": direction})
    return headings


def explain(problem: PiAgentError | None, query: str) -> dict[str, Any]:
    """Where in the query it went wrong, and the link to a query that would work."""
    if not isinstance(problem, QueryError) or problem.position > len(query):
        return {}
    parts = (query[: problem.position], query[problem.position :])
    return {"parts": parts, "try_link": link(query=problem.suggestion) if problem.suggestion else ""}


def link(path: str = "/devices", **parameters: str | None) -> str:
    given = {name: value for name, value in parameters.items() if value}
    return f"{path}?{urlencode(given)}" if given else path


@require_GET
@page("reader")
def suggest(request: HttpRequest) -> HttpResponseBase:
    """A list of what could come next, for the search box."""
    text, cursor = request.GET.get("query", "")[:2000], request.GET.get("cursor", "")
    at = int(cursor) if cursor.isascii() and cursor.isdigit() and len(cursor) < 6 else len(text)
    return render(request, "suggestions.html", {"suggestions": suggestions.suggest(text, at)})


@require_GET
@page("reader")
def csv(request: HttpRequest) -> HttpResponseBase:
    """Exactly this view, all of its pages, as CSV."""
    try:
        return streamed(
            "csv",
            request.GET.get("query", ""),
            request.GET.get("columns", ""),
            request.GET.get("sort", "") or "created",
        )
    except PiAgentError as error:
        return listing(request, request.GET.get("query", ""), "", error)


@require_GET
@page("reader")
def chart_page(request: HttpRequest) -> HttpResponseBase:
    """The charts of a query; for the devices page only a part of a page."""
    query, now = request.GET.get("query", ""), int(time.time())
    try:
        asked = views.expand(query)
        context: dict[str, Any] = {"figures": _figures(query, asked, now), "query": query}
    except PiAgentError as error:
        context = {"problem": error, "query": query} | explain(error, query)
    part = request.headers.get("hx-request") == "true"
    return render(request, "charts.html" if part else "charts_page.html", context | {"caller": caller_of(request)})


def _figures(query: str, asked: str, now: int) -> list[Any]:
    models = registry.count_by(asked, "model", now=now).counts
    top = [Bar(str(value or "unknown"), count, _also(query, "model", value)) for value, count in models[:CHART_BARS]]
    if rest := sum(count for _, count in models[CHART_BARS:]):
        top.append(Bar("others", rest, link(query=query)))
    memory = sorted(registry.count_by(asked, "memory", now=now).counts, key=lambda pair: pair[0] or 0)
    sizes = [
        Bar(memory_words(value), count, _also(query, "memory", size_text(value) if value else None))
        for value, count in memory
    ]
    late = dict(registry.count_by(asked, "late", now=now).counts)
    rhythm = [
        Bar("on time", late.get(False, 0), _also(query, "late", "false")),
        Bar("late", late.get(True, 0), _also(query, "late", "true")),
        Bar("no rhythm", late.get(None, 0), _also(query, "late", None)),
    ]
    seen = dict(registry.count_by(asked, "auth", now=now).counts)
    names = [
        datetime.fromtimestamp(now - back * 86400, UTC).strftime("%Y-%m-%d") for back in reversed(range(CHART_DAYS))
    ]
    last = [Bar(name, seen.get(name, 0), _also(query, "auth", name)) for name in names]
    return [
        charts.bars("By model", top),
        charts.bars("By memory", sizes),
        charts.days("Last token, by day", last),
        charts.bars("Late, by their own rhythm", rhythm),
    ]


def _also(query: str, field: str, value: str | None) -> str:
    """The devices page for those of a query that have a value, too."""
    term = f"{field}:{quote(str(value)) if value is not None else 'none' if FIELDS[field].kind != 'time' else 'never'}"
    return link(
        query=f"({query}) {term}" if query and not query.lstrip().startswith("@") else f"{query} {term}".strip()
    )


@require_POST
@page("approver")
def save_view(request: HttpRequest) -> HttpResponseBase:
    """Keep this query, its columns and its order under a name."""
    query, status, name = (request.POST.get(field, "").strip() for field in ("query", "status", "name"))
    name, now, actor = name.lower(), int(time.time()), caller_of(request).actor
    try:
        theirs = View.objects.filter(slug=name).exclude(created_by=actor.name).first()
        if theirs and not request.POST.get("replace"):
            hint = "choose another name, or save it again with the box ticked that says so"
            raise ConflictError(f"@{name} is a view that {theirs.created_by} saved", hint=hint)
        views.save(
            name,
            changes.narrowed(views.expand(query), status, now),
            columns=request.POST.get("columns", ""),
            sort=request.POST.get("sort", ""),
            actor=actor,
            now=now,
        )
    except PiAgentError as error:
        return listing(request, query, status, error)
    return redirect(link(query=f"@{name}"))
