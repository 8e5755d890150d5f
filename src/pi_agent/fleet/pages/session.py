"""Signing in and out. A sign-in link opens a page with a button, and the button spends it: whoever only previews a link
in a mail or a chat burns nothing.
"""

from __future__ import annotations

import time

from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.http import require_POST

from pi_agent.fleet import audit
from pi_agent.fleet.asgi import source_of
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.rates import Rate
from pi_agent.fleet.signin import spend_link

TRIES = Rate(limit=30, seconds=60)  # of one address; a link has 192 random bits, this only keeps the log small
BACKEND = "django.contrib.auth.backends.ModelBackend"
WRONG = "This link was used before, or is older than 15 minutes."


def sign_in(request: HttpRequest, token: str = "") -> HttpResponse:
    """The page that says how to get in; with a link, a button; and behind the button, a session."""
    token = token or request.POST.get("code", "").strip().rpartition("/")[2]
    if request.method != "POST":
        return render(request, "sign_in.html", {"token": token, "next": request.GET.get("next", "")})
    now, source = int(time.time()), source_of(request.scope)  # type: ignore[attr-defined]  # an ASGIRequest has a scope
    state = TRIES.count(source, time.monotonic())
    if state.wait:
        return render(request, "sign_in.html", {"problem": f"Too many tries. Wait {state.wait} seconds."}, status=429)
    onward = _onward(request.POST.get("next", ""))
    operator = spend_link(token, now=now)
    if operator is None:
        audit.record([Event("operator.sign-in", "", "refused")], actor=Actor("somebody", source), now=now)
        return render(request, "sign_in.html", {"problem": WRONG}, status=400)
    user, _ = User.objects.get_or_create(username=operator)
    login(request, user, backend=BACKEND)
    audit.record([Event("operator.sign-in")], actor=Actor(operator, source), now=now)
    return HttpResponseRedirect(onward)


def _onward(wanted: str) -> str:
    """Where somebody goes on who is signed in: to a place of this server, and never to another."""
    inside = wanted.startswith("/") and url_has_allowed_host_and_scheme(wanted, allowed_hosts=None)
    return wanted if inside else "/devices"


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("/sign-in")
