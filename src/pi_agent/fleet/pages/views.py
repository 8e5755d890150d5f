"""The pages: devices of a query, one device, and what may be done to them.

A view reads the request, asks the registry, and renders; it decides nothing that the REST interface would not. Every
change is a POST with a CSRF token. What is wrong with a query is shown beside it, with one that would work.
"""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlencode

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.views.decorators.http import require_GET, require_POST

from pi_agent.catalogue import STATUSES
from pi_agent.errors import ConflictError, PiAgentError, QueryError, UnknownDeviceError
from pi_agent.fleet import changes, registry, settings
from pi_agent.fleet.asgi import source_of
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.changes import Chosen
from pi_agent.fleet.pages import show

PAGE = 50
MAX_BULK = 100_000


@require_GET
@login_required
def devices(request: HttpRequest) -> HttpResponse:
    """The devices of a query, with one tab for each status."""
    return _devices(request, request.GET.get("query", ""), request.GET.get("status", ""))


def _devices(request: HttpRequest, query: str, status: str, problem: PiAgentError | None = None) -> HttpResponse:
    now = int(time.time())
    status = status if status in STATUSES else ""
    sort, cursor = request.GET.get("sort", "-created"), request.GET.get("cursor", "")
    context: dict[str, Any] = {"query": query, "status": status, "sort": sort, "problem": problem}
    code = 200
    try:
        tabs = _tabs(query, status, now)  # first, since what it says about the query fits what was typed
        page = registry.find(changes.narrowed(query, status), now=now, limit=PAGE, sort=sort, cursor=cursor)
        context |= _listing(page, now) | {"tabs": tabs, "headings": _headings(query, status, sort)}
        context |= {"first": _link(query=query, status=status, sort=sort) if cursor else ""}
        context |= {"next": _link(query=query, status=status, sort=sort, cursor=page.cursor) if page.cursor else ""}
    except PiAgentError as error:
        context, code = context | {"problem": error}, 400
    context |= _explain(context["problem"], query)
    context |= {"setup": settings.setup_command(settings.current().issuer), "empty_fleet": not query and not status}
    return render(request, "devices.html", context, status=409 if isinstance(problem, ConflictError) else code)


def _listing(page: registry.Page, now: int) -> dict[str, Any]:
    return {
        "rows": [show.row(registry.describe(device), now) for device in page.devices],
        "total": page.total,
        "meaning": page.meaning,
        "actions": changes.ACTIONS,
    }


def _tabs(query: str, status: str, now: int) -> list[dict[str, Any]]:
    counts = registry.count_by_status(query, now=now)
    tabs = [("", "all", sum(counts.values())), *((name, name, count) for name, count in counts.items())]
    return [
        {"title": title, "count": count, "current": name == status, "link": _link(query=query, status=name)}
        for name, title, count in tabs
    ]


def _headings(query: str, status: str, sort: str) -> list[dict[str, str]]:
    """The table's headings; those that sort lead to their order, or to its opposite when it is in force."""
    headings = []
    for title, field in show.HEADINGS:
        wanted = f"-{field}" if sort == field else field
        direction = {field: "ascending", f"-{field}": "descending"}.get(sort, "") if field else ""
        link = _link(query=query, status=status, sort=wanted) if field else ""
        headings.append({"title": title, "link": link, "direction": direction})
    return headings


def _explain(problem: PiAgentError | None, query: str) -> dict[str, Any]:
    """Where in the query it went wrong, and the link to a query that would work."""
    if not isinstance(problem, QueryError) or problem.position > len(query):
        return {}
    parts = (query[: problem.position], query[problem.position :])
    return {"parts": parts, "try_link": _link(query=problem.suggestion) if problem.suggestion else ""}


def _link(**parameters: str) -> str:
    return "/devices?" + urlencode({name: value for name, value in parameters.items() if value})


@require_POST
@login_required
def act(request: HttpRequest) -> HttpResponse:
    """An action on all devices of a query; the operator has typed how many they are."""
    query, status, action = (request.POST.get(name, "") for name in ("query", "status", "action"))
    try:
        _act(request, action, changes.narrowed(query, status), most=_count(request.POST.get("count", "")))
    except PiAgentError as error:
        return _devices(request, query, status, error)
    return redirect(_link(query=query, status=status))


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) > MAX_BULK:
        raise ConflictError("nothing has changed", hint="type how many devices it is about")
    return int(text[:9])


def _act(request: HttpRequest, action: str, query: str, *, most: int) -> None:
    reason = show.one_line(request.POST.get("reason", ""))[:200]
    actor = Actor(request.user.get_username(), source_of(request.scope))  # type: ignore[attr-defined]  # an ASGIRequest
    changes.act(action, Chosen(query, most=most), reason=reason, actor=actor, now=int(time.time()))


@login_required
def device(request: HttpRequest, device_id: str) -> HttpResponse:
    """One device: who it is, what may be done to it, and what was."""
    problem: PiAgentError | None = None
    if request.method == "POST":
        try:
            found = registry.get(device_id)
            _act(request, request.POST.get("action", ""), f"id:{found.client_id}", most=1)
            return redirect(request.path)
        except UnknownDeviceError:
            return error_page(request, 404)
        except PiAgentError as error:
            problem = error
    try:
        found = registry.get(device_id)
    except UnknownDeviceError:
        return error_page(request, 404)
    now = int(time.time())
    events = [registry.describe_event(event) for event in registry.history(device_id)]
    context = {
        "device": show.row(registry.describe(found), now),
        "facts": show.facts(registry.describe(found)),
        "events": [show.event(event, now) for event in events],
        "actions": [action.name for action in changes.ACTIONS.values() if found.status in action.sources],
        "problem": problem,
    }
    return render(request, "device.html", context, status=400 if problem else 200)


def home(request: HttpRequest) -> HttpResponse:
    return redirect("/devices")


ERRORS = {
    400: ("That request made no sense", "Go back and try again."),
    403: (
        "That was refused",
        "The form was too old, or came from another site. Go back, reload the page, and try again.",
    ),
    404: ("There is nothing here", "The device may have another id, or the address may be wrong."),
    500: ("Something went wrong", "It is our fault, and the server's log says more."),
}


def error_page(request: HttpRequest, status: int) -> HttpResponse:
    """Rendered without the request: Django makes these on a thread whose database connection nobody would close."""
    title, words = ERRORS[status]
    return HttpResponse(render_to_string("error.html", {"title": title, "words": words}), status=status)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 400)


def forbidden(request: HttpRequest, exception: Exception | None = None, reason: str = "") -> HttpResponse:
    return error_page(request, 403)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    return error_page(request, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    return error_page(request, 500)
