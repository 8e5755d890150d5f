"""Who may open a page. Each view names the least role it needs; a view that names none is not in ``urls``, a test sees to it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect, render

from pi_agent.fleet import access, audit
from pi_agent.fleet.access import Caller
from pi_agent.fleet.audit import Event

View = Callable[..., HttpResponseBase]

FORMS = ("/devices/act", "/views")  # no pages of their own: the devices page has their forms
LISTED = ("query", "status", "sort", "columns")  # which devices page it was


def page(role: str, *, change: str = "") -> Callable[[View], View]:
    """Only for operators with at least ``role``; to POST they need ``change``, if that is another one."""

    def decorate(view: View) -> View:
        @functools.wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            caller = access.caller_of(request, int(time.time()))
            if caller is None:
                return redirect("/sign-in?" + urlencode({"next": _onward(request)}))
            needed = change if change and request.method == "POST" else role
            if not caller.may(needed):
                return _refuse(request, caller, needed)
            if any("\0" in text for _, texts in request.POST.lists() for text in texts):
                raise BadRequest("a NUL, which no text here has and PostgreSQL refuses")
            request.caller = caller  # type: ignore[attr-defined]  # read by the view and the templates
            return view(request, *args, **kwargs)

        guarded.role, guarded.change = role, change or role  # type: ignore[attr-defined]  # read by the test of all routes
        return guarded

    return decorate


def _onward(request: HttpRequest) -> str:
    """Where somebody goes on after signing in. What a form sent is gone with the session: back to the page that had it."""
    if request.method != "POST":
        return request.get_full_path()
    if request.path not in FORMS:
        return request.path
    kept = {name: request.POST[name] for name in LISTED if request.POST.get(name)}
    return f"/devices?{urlencode(kept)}" if kept else "/devices"


def caller_of(request: HttpRequest) -> Caller:
    """The caller of a guarded view."""
    found: Caller = request.caller  # type: ignore[attr-defined]  # ``page`` put it there
    return found


def _refuse(request: HttpRequest, caller: Caller, needed: str) -> HttpResponseBase:
    if request.method == "POST":
        detail = {"method": "POST", "path": request.path[:200], "role": caller.role, "needs": needed}
        audit.record([Event("access.refused", "", "refused", detail)], actor=caller.actor, now=int(time.time()))
    words = f"This needs the role {needed}; you are {caller.role}. An admin can change that."
    return render(request, "error.html", {"title": "You may not do that", "words": words}, status=403)
