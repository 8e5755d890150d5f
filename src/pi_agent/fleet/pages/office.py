"""The pages beside the devices: the audit log, enrollment tokens, settings, and the description of the REST interface."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET

from pi_agent.catalogue import AUDIT_FIELDS
from pi_agent.errors import ConflictError, PiAgentError, QueryError, UsageError
from pi_agent.fleet import access, audit, database, enrolling, history, registry, settings, webhooks
from pi_agent.fleet.api import api
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Delivery, Operator, OperatorToken, Webhook
from pi_agent.fleet.output import one_line
from pi_agent.fleet.pages import show
from pi_agent.fleet.pages.guard import caller_of, page
from pi_agent.fleet.pages.listing import link
from pi_agent.fleet.pages.once import first_time

LINES = 50
TTLS = {"1 hour": 3600, "1 day": 86400, "7 days": 7 * 86400, "30 days": 30 * 86400}


@require_GET
@page("reader")
def audit_log(request: HttpRequest) -> HttpResponseBase:
    """What was done, by whom, newest first."""
    query, before, now = request.GET.get("query", ""), request.GET.get("before", ""), int(time.time())
    context: dict[str, Any] = {"caller": caller_of(request), "query": query, "fields": list(AUDIT_FIELDS.values())}
    try:
        at = int(before) if before.isascii() and before.isdigit() and len(before) < 18 else 0
        found = history.find(query, now=now, limit=LINES, before=at)
    except QueryError as error:
        parts = (query[: error.position], query[error.position :]) if error.position <= len(query) else None
        try_link = link("/audit", query=error.suggestion) if error.suggestion else ""
        return render(
            request, "audit.html", context | {"problem": error, "parts": parts, "try_link": try_link}, status=400
        )
    context |= {
        "meaning": found.meaning,
        "events": [
            show.event(registry.describe_event(event), now) | {"device": event.device, "id": event.pk}
            for event in found.events
        ],
        "next": link("/audit", query=query, before=str(found.before)) if found.before else "",
        "report": history.verify() if request.GET.get("verify") else None,
    }
    return render(request, "audit.html", context)


@page("reader", change="approver")
def enrollment(request: HttpRequest) -> HttpResponseBase:
    """Enrollment tokens: those that are good, and a new one, which is shown once."""
    context: dict[str, Any] = {"caller": caller_of(request), "ttls": TTLS}
    if request.method == "POST":
        try:
            context |= _enrollment(request)
            if "made" not in context:
                return redirect(request.path)
        except PiAgentError as error:
            context |= {"problem": error}
    now = int(time.time())
    context["tokens"] = [{"row": row, "expires": show.until(row.expires_at)} for row in enrolling.good(now)]
    context["setup"] = settings.setup_command(settings.current().issuer)
    return render(request, "enrollment.html", context, status=_status(context))


def _enrollment(request: HttpRequest) -> dict[str, Any]:
    actor, now = caller_of(request).actor, int(time.time())
    if number := request.POST.get("end", ""):
        enrolling.end(_number(number, 2**62), actor=actor, now=now)
        return {}
    uses = _number(request.POST.get("uses", ""), enrolling.MAX_USES)
    ttl = TTLS.get(request.POST.get("ttl", ""), 86400)
    serial = request.POST.get("serial", "").strip()[:64] or None
    with transaction.atomic():
        first_time(request)
        token, _ = enrolling.make(uses, ttl, serial, actor=actor, now=now)
    return {"made": token}


def _status(context: Mapping[str, Any]) -> int:
    problem = context.get("problem")
    return 409 if isinstance(problem, ConflictError) else 400 if problem else 200


def _number(text: str, most: int) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20 or not 1 <= int(text) <= most:
        raise UsageError(f"a number from 1 to {most} is wanted")
    return int(text)


@page("admin")
def office(request: HttpRequest) -> HttpResponseBase:
    """Operators, their tokens, webhooks, and how this server is set."""
    context: dict[str, Any] = {"caller": caller_of(request)}
    if request.method == "POST":
        try:
            context |= _settle(request)
            if not context.keys() & {"made", "secret"}:
                return redirect(request.path)
        except PiAgentError as error:
            context |= {"problem": error}
    now, chosen = int(time.time()), settings.current()
    tokens = OperatorToken.objects.select_related("operator").filter(revoked_at=None, expires_at__gt=now).order_by("pk")
    context |= {
        "roles": access.ROLES,
        "operators": Operator.objects.order_by("name"),
        "tokens": [
            {"row": row, "expires": show.until(row.expires_at), "used": show.moment(registry.rfc3339(row.used_at), now)}
            for row in tokens
        ],
        "webhooks": [
            {"row": row, "waiting": Delivery.objects.filter(webhook=row).exclude(next_at=None).count()}
            for row in Webhook.objects.order_by("pk")
        ],
        "events": webhooks.NAMES,
        "facts": (
            ("Issuer", chosen.issuer),
            ("Data folder", chosen.data),
            ("Access tokens live", f"{chosen.token_lifetime // 60} minutes"),
            ("Scopes of a new device", chosen.scopes),
        ),
    }
    return render(request, "settings.html", context, status=_status(context))


def _settle(request: HttpRequest) -> dict[str, Any]:
    actor, now, what = caller_of(request).actor, int(time.time()), request.POST.get("what", "")
    field = {name: request.POST.get(name, "").strip() for name in ("name", "role", "note", "prefix", "url")}
    role = field["role"] if field["role"] in access.ROLES else "reader"
    match what:
        case "add":
            _add(access.check_name(field["name"]), role, actor=actor, now=now)
        case "role":
            access.set_role(access.check_name(field["name"]), role, actor=actor, now=now)
        case "remove":
            access.set_role(field["name"], None, actor=actor, now=now)
        case "token":
            note = one_line(field["note"])[:64]
            with transaction.atomic():
                first_time(request)
                token, row = access.make_token(field["name"], role, seconds=90 * 86400, note=note, actor=actor, now=now)
            return {"made": token, "made_row": row}
        case "revoke":
            access.revoke_token(field["prefix"], actor=actor, now=now)
        case "webhook":
            with transaction.atomic():
                first_time(request)
                hook = webhooks.add(field["url"], request.POST.getlist("event"), by=actor.name, now=now)
                detail = {"url": hook.url, "events": hook.events}
                audit.record([Event("webhook.add", detail=detail)], actor=actor, now=now)
            return {"secret": hook.secret}
        case "forget":
            with transaction.atomic():
                if Webhook.objects.filter(url=field["url"]).delete()[0]:
                    audit.record([Event("webhook.remove", detail={"url": field["url"]})], actor=actor, now=now)
    return {}


def _add(name: str, role: str, *, actor: Actor, now: int) -> None:
    """Somebody new: who is an operator already would lose a role unseen."""
    with transaction.atomic():
        database.lock("operators")
        if known := access.role_of(name):
            hint = "to change the role, choose another one beside the name, and press Set"
            raise ConflictError(f"{name} is an operator already: {known}", hint=hint)
        access.set_role(name, role, actor=actor, now=now)


@require_GET
@page("reader")
def interface(request: HttpRequest) -> HttpResponse:
    """The REST interface, described by its own OpenAPI document."""
    paths = dict(api.get_openapi_schema())["paths"]
    routes = [
        {"method": method.upper(), "path": path, "summary": about.get("summary", ""), "words": about.get("description", ""),
         "role": about.get("x-role", "admin"), "parameters": [one for one in about["parameters"] if one["in"] != "header"]}
        for path, methods in paths.items()
        for method, about in methods.items()
    ]  # fmt: skip
    return render(request, "interface.html", {"routes": routes, "caller": caller_of(request)})
