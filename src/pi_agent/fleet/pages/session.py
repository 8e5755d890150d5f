"""Signing in and out. A sign-in link opens a page with a button, and the button spends it: whoever only previews a link
in a mail or a chat burns nothing.
"""

from __future__ import annotations

import time
from urllib.parse import urlencode

from django.conf import settings
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.utils.encoding import iri_to_uri
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from pi_agent.fleet import access, audit, database
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.limits import neighbourhood
from pi_agent.fleet.rates import Rate
from pi_agent.fleet.signin import LINK_SECONDS, spend_link
from pi_agent.fleet.sources import source_of
from pi_agent.fleet.web import MAX_ESCAPES

TRIES = Rate(limit=30, seconds=60)  # of one address; a link has 192 random bits, this only keeps the log small
BACKEND = "django.contrib.auth.backends.ModelBackend"
NEXT, PATH = "pi-fleet-next", "/sign-in"  # the cookie that keeps where somebody wanted to go
MAX_NEXT = 2000
ESCAPED = ",;"  # in a cookie
WRONG = "This link was used before, or is older than 15 minutes."


def sign_in(request: HttpRequest, token: str = "") -> HttpResponse:
    """The page that says how to get in; with a link, a button; and behind the button, a session."""
    token = token or request.POST.get("code", "").strip().rpartition("/")[2]
    if request.method != "POST":
        return _ask(request, token)
    onward = _inside(request.POST.get("next", ""))
    now, source = int(time.time()), source_of(request.scope)  # type: ignore[attr-defined]  # an ASGIRequest has a scope
    state = TRIES.count(neighbourhood(source), time.monotonic())
    if state.wait:
        words = f"Too many tries. Wait {state.wait} seconds."
        return render(request, "sign_in.html", {"problem": words, "next": onward}, status=429)
    operator = spend_link(token, now=now)
    if operator is None:
        audit.record([Event("operator.sign-in", "", "refused")], actor=Actor("somebody", source), now=now)
        return render(request, "sign_in.html", {"problem": WRONG, "next": onward}, status=400)
    user, _ = User.objects.get_or_create(username=operator)
    login(request, user, backend=BACKEND)
    audit.record([Event("operator.sign-in")], actor=Actor(operator, source), now=now)
    response = HttpResponseRedirect(onward or "/devices")
    response.delete_cookie(NEXT, path=PATH, samesite="Strict")
    return response


def _ask(request: HttpRequest, token: str) -> HttpResponse:
    """Whoever is signed in goes on; the others are asked for a link, or to press the button of theirs.

    A session's cookie does not come along a link in a mail or a chat, since it is SameSite=Strict. So whoever comes
    without one is sent here again, by this page, once: what a page of ours asks for has the cookie with it.
    """
    onward = _inside(request.GET.get("next", ""))
    if onward and access.caller_of(request, int(time.time())) is not None:
        return HttpResponseRedirect(onward)
    if onward and settings.SESSION_COOKIE_NAME not in request.COOKIES and "again" not in request.GET:
        again = f"{request.path}?{urlencode({'next': onward, 'again': 1})}"
        return render(request, "sign_in.html", {"again": again})
    kept = onward or _inside(request.COOKIES.get(NEXT, ""))
    response = render(request, "sign_in.html", {"token": token, "next": kept})
    is_short = len(onward) < MAX_NEXT and sum(map(onward.count, ESCAPED)) < MAX_ESCAPES / 2
    if onward and is_short:  # for the link, which is made on the server and knows nothing of it
        response.set_cookie(
            NEXT,
            iri_to_uri(onward),
            max_age=LINK_SECONDS,
            path=PATH,
            secure=settings.SESSION_COOKIE_SECURE,
            httponly=True,
            samesite="Strict",
        )
    return response


def _inside(wanted: str) -> str:
    """A place of this server to go on to, or nothing: a link to the sign-in page leads to no other."""
    inside = wanted.startswith("/") and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None)
    return wanted if inside else ""


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    now = int(time.time())
    caller = access.caller_of(request, now)
    logout(request)
    if caller:
        try:
            audit.record([Event("operator.sign-out")], actor=caller.actor, now=now)
        except DatabaseError as error:  # the log is busy; the session has ended all the same
            database.give_up(error)
    return redirect("/sign-in")
