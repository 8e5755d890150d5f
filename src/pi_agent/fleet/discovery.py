"""Service discovery for Prometheus (http_sd): the devices of a query as targets. The whole list each time, ``[]`` when empty.

A target is the name of a device, when it can be a host name, with ``suffix`` and ``port``; else its id. What a device
says of itself is in labels that begin with ``__meta_pi_``, so nothing of it becomes a metric unless somebody relabels it.
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.http import require_GET

from pi_agent.errors import PiAgentError, UsageError
from pi_agent.fleet import access, export, hosts, views
from pi_agent.fleet.rest.common import check_parameters
from pi_agent.fleet.rest.problems import refusal, stranger

PARAMETERS = {"query": "status:approved", "port": "9100", "suffix": ""}
COLUMNS = ("id", "name", "model", "memory", "serial", "soc", "status", "late", "key", "agent", "tag")
PORT = re.compile(r"[1-9][0-9]{0,4}", re.ASCII)
SUFFIX = re.compile(r"(\.[A-Za-z0-9-]{1,63}){0,8}", re.ASCII)


@require_GET
def prometheus(request: HttpRequest) -> HttpResponse:
    """``/sd/prometheus?query=QUERY&port=9100&suffix=.lan``, for an operator token of a reader (``authorization`` in http_sd_configs)."""
    now = int(time.time())
    if access.caller_of(request, now) is None:
        return stranger(request)
    try:
        check_parameters(request.GET, PARAMETERS)
        found = targets(**(PARAMETERS | request.GET.dict()), now=now)
    except PiAgentError as error:
        return refusal(error)
    return JsonResponse(found, safe=False)


prometheus.role = prometheus.change = "reader"  # type: ignore[attr-defined]  # read by the test of all routes


def targets(query: str, port: str, suffix: str, *, now: int) -> list[dict[str, Any]]:
    """The targets with their labels. Raises QueryError or UsageError."""
    if not PORT.fullmatch(port) or int(port) > 65535 or not SUFFIX.fullmatch(suffix):
        raise UsageError("a port is 1 to 65535, and a suffix is like .lan")
    text = "".join(export.lines("jsonl", views.expand(query), columns=",".join(COLUMNS), sort="name", now=now))
    devices = [json.loads(line) for line in text.splitlines()]
    leading = hosts.leading(device["name"] for device in devices)
    return [
        _target(device, device["name"] + suffix if device["name"] in leading else device["id"], port)
        for device in devices
    ]


def _target(device: dict[str, Any], host: str, port: str) -> dict[str, Any]:
    labels = {f"__meta_pi_{name}": _label(device[name]) for name in COLUMNS}
    return {"targets": [f"{host}:{port}"], "labels": labels}


def _label(value: Any) -> str:
    if isinstance(value, list):
        return f",{','.join(value)}," if value else ""  # commas around it, as Prometheus itself writes lists
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
