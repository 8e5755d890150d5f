"""Refusals as programs read them: problem details (RFC 9457), for everything below the addresses for PROGRAMS."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse, JsonResponse

from pi_agent.errors import ConflictError, PiAgentError, QueryError, UnknownDeviceError, UsageError
from pi_agent.fleet.access import ForbiddenError
from pi_agent.fleet.changes import StaleError

STATUSES: tuple[tuple[type[PiAgentError], int], ...] = (
    (QueryError, 400),
    (UsageError, 400),
    (ForbiddenError, 403),
    (UnknownDeviceError, 404),
    (StaleError, 412),
    (ConflictError, 409),
)


def problem(status: int, detail: str, **more: object) -> HttpResponse:
    """Problem details; what is None is left out."""
    members = {"type": "about:blank", "status": status, "detail": detail} | more
    known = {name: value for name, value in members.items() if value is not None}
    return JsonResponse(known, status=status, content_type="application/problem+json")


def refusal(error: PiAgentError) -> HttpResponse:
    """What an error of ours says, under the status that it means."""
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    where = {"position": error.position, "suggestion": error.suggestion} if isinstance(error, QueryError) else {}
    return problem(status, str(error), hint=error.hint, **where)


def stranger(request: HttpRequest) -> HttpResponse:
    """To somebody who is not known, or whose token is not."""
    if "Authorization" in request.headers:
        response = problem(
            401, "the operator token is not known, or is over", hint="on the server: pi-fleet token make NAME"
        )
    else:
        response = problem(401, "sign in first", hint="pi-fleet sign-in-link on the server, or an operator token")
    response["WWW-Authenticate"] = 'Bearer realm="pi-fleet"'
    return response
