"""Changes from the pages: shown first, with what they would do, and then done to exactly what was shown."""

from __future__ import annotations

import time
from typing import Any

from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_POST

from pi_agent.errors import ConflictError, PiAgentError, UnknownDeviceError
from pi_agent.fleet import changes, registry, views
from pi_agent.fleet import pending as pending_facts
from pi_agent.fleet.access import ForbiddenError
from pi_agent.fleet.actions import ACTIONS, FORGOTTEN
from pi_agent.fleet.changes import Chosen, StaleError
from pi_agent.fleet.models import Device
from pi_agent.fleet.output import bound, one_line, staying
from pi_agent.fleet.pages import show
from pi_agent.fleet.pages.guard import LISTED, caller_of, page
from pi_agent.fleet.pages.listing import link, listing
from pi_agent.fleet.pages.once import said, say
from pi_agent.fleet.pages.views import error_page

SHOWN = 50
PENDING = 50


@require_POST
@page("approver")
def act(request: HttpRequest) -> HttpResponseBase:
    """First what an action would do, then, once that was confirmed by typing how many, the action."""
    listed = {name: request.POST.get(name, "") for name in LISTED}
    ids = tuple(request.POST.getlist("id"))[: changes.MAX_IDS]
    name, shown, now = request.POST.get("action", ""), request.POST.get("selection", ""), int(time.time())
    problem: PiAgentError | None = None
    try:
        text = "" if ids else changes.narrowed(views.expand(listed["query"]), listed["status"], now)
        _allowed(request, name)
        if shown:
            problem = _confirm(request, name, Chosen(text, ids, selection=shown))
            if problem is None:
                return redirect(link(**listed))
        preview = changes.preview(name, Chosen(text, ids), now=now)
    except PiAgentError as error:
        return listing(request, listed["query"], listed["status"], problem or error)
    context = _preview(request, preview, action=name, ids=ids, listed=listed, back=link(**listed), problem=problem)
    return render(request, "preview.html", context, status=409 if problem else 200)


def _allowed(request: HttpRequest, name: str) -> None:
    if name in ACTIONS:
        try:
            caller_of(request).check(ACTIONS[name].role)
        except ForbiddenError as error:
            changes.refused(name, str(error), actor=caller_of(request).actor, now=int(time.time()))
            raise


def _preview(request: HttpRequest, preview: changes.Change, **asked: object) -> dict[str, Any]:
    """What the page of a preview shows; ``asked`` is what the form had, and will have again."""
    now = int(time.time())
    return {
        "caller": caller_of(request),
        "meaning": preview.meaning,
        "matched": preview.matched,
        "count": preview.count,
        "stays": staying(preview.stays, preview.target),
        "more": max(0, preview.count - SHOWN),
        "rows": [show.row(registry.describe(device), now) for device in preview.changed[:SHOWN]],
        "bound": bound(registry.rfc3339(preview.tokens_until), now),
        "selection": preview.selection,
        "reason": request.POST.get("reason", ""),
        "said": said(request),
        **asked,
    }


def _confirm(request: HttpRequest, name: str, chosen: Chosen) -> PiAgentError | None:
    """Do it, and have the next page say so; or what has to be put right before."""
    typed, shown = request.POST.get("count", "").strip().replace(",", ""), request.POST.get("expected", "")
    if typed != shown:
        return ConflictError("nothing has changed", hint=f"to go on, type {shown[:20]}: how many devices it is about")
    reason = one_line(request.POST.get("reason", ""))[:200]
    try:
        done = changes.act(name, chosen, reason=reason, actor=caller_of(request).actor, now=int(time.time()))
    except PiAgentError as error:
        return error
    say(request, f"{done.count} device{'' if done.count == 1 else 's'} {done.target}")
    return None


@page("reader", change="approver")
def device(request: HttpRequest, device_id: str) -> HttpResponseBase:
    """One device: who it is, what may be done to it, and what was."""
    problem: PiAgentError | None = None
    try:
        if request.method == "POST":
            return redirect(_act_on(request, registry.get(device_id).client_id))
    except UnknownDeviceError:
        return error_page(request, 404)
    except PiAgentError as error:
        problem = error
    try:
        found = registry.get(device_id)
    except UnknownDeviceError:
        return error_page(request, 404)
    now, caller = int(time.time()), caller_of(request)
    described = registry.describe(found, now)
    fitting = [action for action in ACTIONS.values() if action.fits(found, now)]
    context = {
        "caller": caller,
        "device": show.row(described, now),
        "facts": show.facts(described),
        "events": [show.event(registry.describe_event(event), now) for event in registry.history(device_id)],
        "actions": [action.name for action in fitting if caller.may(action.role)],
        "version": changes.version(found),
        **pending_facts.recognised_by(found),
        "bound": "" if found.status == "approved" else bound(described["token_until"], now),
        "why": pending_facts.why(found) if found.status == "pending" else [],
        "problem": problem,
        "reason": request.POST.get("reason", ""),
    }
    return render(request, "device.html", context, status=400 if problem else 200)


def _act_on(request: HttpRequest, client_id: str) -> str:
    """An action, new tags or a new name, if nobody has changed the device since the page was made; the page to go on to."""
    now, actor, action = int(time.time()), caller_of(request).actor, request.POST.get("action", "")
    version = request.POST.get("version", "")[:64]
    if not version:
        raise StaleError("the form does not say how it saw the device", hint="look at the device, and decide again")
    reason = one_line(request.POST.get("reason", ""))[:200]
    chosen = Chosen(f"id:{client_id}", version=version)
    if action == "tag":
        wanted = {one.strip() for one in request.POST.get("tags", "").split(",")} - {""}
        present = set(registry.get(client_id).tag_names)
        if wanted != present:
            changes.tag(chosen, add=wanted - present, remove=present - wanted, reason=reason, actor=actor, now=now)
        return request.path
    if action == "rename":
        changes.rename(chosen, request.POST.get("name", "").strip(), reason=reason, actor=actor, now=now)
        return request.path
    _allowed(request, action)
    done = changes.act(action, chosen, reason=reason, actor=actor, now=now)
    if done.count and done.target == FORGOTTEN:
        say(request, f"{done.changed[0].name} is forgotten")
        return link()
    return request.path


@require_GET
@page("reader")
def pending(request: HttpRequest) -> HttpResponseBase:
    """The devices that wait, the longest first, and why each of them has to."""
    now, caller, cursor = int(time.time()), caller_of(request), request.GET.get("cursor", "")
    try:
        found = registry.find("status:pending", now=now, limit=PENDING, sort="created", cursor=cursor)
    except PiAgentError as error:
        return render(request, "pending.html", {"caller": caller, "problem": error}, status=400)
    context = {
        "caller": caller,
        "rows": [_waiting(one, now) for one in found.devices],
        "total": found.total,
        "next": link("/pending", cursor=found.cursor) if found.cursor else "",
        "may": caller.may("approver"),
    }
    return render(request, "pending.html", context)


def _waiting(found: Device, now: int) -> dict[str, Any]:
    row = show.row(registry.describe(found), now) | pending_facts.recognised_by(found)
    return row | {"why": pending_facts.why(found), "version": changes.version(found)}
