"""``/metrics``: what this server has done and what it has, in Prometheus' text format.

Labels are words of this program and never of a request, so that their number does not grow (requirement G-06): no
device, no path, no text.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from django.db.models import Count
from django.http import HttpRequest, HttpResponse
from django.views.decorators.http import require_GET

from pi_agent.fleet import access, registry, webhooks
from pi_agent.fleet.counters import COUNTS, FAMILIES
from pi_agent.fleet.models import AuditEvent
from pi_agent.fleet.settings import LOOPBACK_ADDRESSES, Settings, current

TYPE = "text/plain; version=0.0.4; charset=utf-8"
ALARMS = {action: action.removeprefix("device.") for action, event in webhooks.EVENTS.items() if event == "clone"}


@require_GET
def show(request: HttpRequest) -> HttpResponse:
    """The metrics, for an operator (reader), the local socket, or this machine itself (requirement G-07)."""
    now = int(time.time())
    if not _is_here(request, current()) and access.caller_of(request, now) is None:
        headers = {"WWW-Authenticate": 'Bearer realm="pi-fleet"'}
        return HttpResponse("an operator token is wanted\n", status=401, content_type="text/plain", headers=headers)
    application = request.scope.get("application")  # type: ignore[attr-defined]  # an ASGIRequest has a scope
    return HttpResponse("".join(lines(application, now)), content_type=TYPE)


show.role = show.change = "reader"  # type: ignore[attr-defined]  # read by the test of all routes


def lines(application: Any, now: int) -> Iterator[str]:
    """Everything there is to tell."""
    for family, (what, label) in FAMILIES.items():
        values = {key: value for (name, key), value in sorted(COUNTS.items()) if name == family}
        yield from _family(family, "counter", what, label, (values or {"": 0}).items() if not label else values.items())
    devices = registry.count_by_status("", now=now)
    yield from _family("pi_fleet_devices", "gauge", "Devices, by status.", "status", devices.items())
    yield from _family(
        "pi_fleet_clone_alarms_total", "counter", "Signs of a copied card or key, by kind.", "kind", _alarms().items()
    )
    if application is not None:
        waiting = sum(application.clerk.waiting)
        yield from _family("pi_fleet_token_requests_waiting", "gauge", "Token requests that wait.", "", [("", waiting)])
        key = application.authority.ring.signing(now)
        age = now - key.created_at
        yield from _family("pi_fleet_signing_key_age_seconds", "gauge", "Age of the key that signs.", "", [("", age)])
        ahead = max(0, application.authority.watch.newest - now)
        yield from _family("pi_fleet_clock_behind_seconds", "gauge", "How far the clock is behind.", "", [("", ahead)])


def _alarms() -> dict[str, int]:
    """How many lines of the audit log tell of a copy, by kind: every server of a fleet says the same, after a restart too."""
    told = AuditEvent.objects.filter(action__in=ALARMS).order_by().values_list("action").annotate(count=Count("*"))
    found = dict(told)
    return {kind: found.get(action, 0) for action, kind in ALARMS.items()}


def _family(name: str, kind: str, what: str, label: str, values: Iterable[tuple[str, int]]) -> Iterator[str]:
    yield f"# HELP {name} {what}\n# TYPE {name} {kind}\n"
    for key, value in values:
        yield f"{name}{_labels(label, key)} {value}\n"


def _labels(label: str, key: str) -> str:
    if not label:
        return ""
    if label == "endpoint_outcome":
        endpoint, _, outcome = key.partition(" ")
        return f'{{endpoint="{endpoint}",outcome="{outcome}"}}'
    return f'{{{label}="{key}"}}'


def _is_here(request: HttpRequest, settings: Settings) -> bool:
    """Whether the peer is this machine and nobody behind a proxy on it."""
    host, _ = request.scope.get("client") or ("", 0)  # type: ignore[attr-defined]  # as above
    return host in LOOPBACK_ADDRESSES and not settings.behind_proxy
