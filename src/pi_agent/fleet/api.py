"""REST under ``/api/v1``: what the command line uses, and every script may.

Open to the owner of the data folder and root on the local socket, and to a signed-in operator (with a CSRF token for
changes). A device's token opens nothing here (requirement D-03). Errors are problem details (RFC 9457).
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any

from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from ninja import NinjaAPI, Schema
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.utils import check_csrf
from pydantic import Field

from pi_agent.errors import ConflictError, PiAgentError, QueryError, UnknownDeviceError, UsageError
from pi_agent.fleet import audit, folder, registry, signin
from pi_agent.fleet.asgi import source_of
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import EnrollmentToken
from pi_agent.fleet.pages.show import one_line
from pi_agent.fleet.settings import current

SAFE = ("GET", "HEAD", "OPTIONS")
MAX_TOKEN_LIFE = 366 * 86400
STATUSES: tuple[tuple[type[PiAgentError], int], ...] = (
    (QueryError, 400),
    (UsageError, 400),
    (UnknownDeviceError, 404),
    (ConflictError, 409),
)


def local_operator(request: HttpRequest) -> str | None:
    """The user at the other end of the local socket, if it is one who could read the database anyway."""
    host, uid = request.scope.get("client") or ("", 0)  # type: ignore[attr-defined]  # an ASGIRequest has a scope
    if host == "uid" and uid in (0, current().data.stat().st_uid):
        return folder.user_name(uid)
    return None


def session_operator(request: HttpRequest) -> str | None:
    """The operator of the session. A change needs the CSRF token too, since a browser sends the cookie by itself."""
    if not request.user.is_authenticated:
        return None
    if request.method not in SAFE and check_csrf(request) is not None:
        raise HttpError(403, "the CSRF token is missing or wrong")
    return request.user.get_username()


api = NinjaAPI(
    title="pi-fleet",
    version="1",
    docs_url=None,
    auth=[local_operator, session_operator],
    description="Which boards there are, which of them authenticated when, and what may become of them.",
)


class ChangeRequest(Schema):
    """Devices to change, at most ``max`` of them; with ``dry_run`` only say which."""

    query: str = Field(max_length=2000)
    reason: str = Field("", max_length=200)
    max: int = Field(1, ge=0, le=1_000_000)
    dry_run: bool = False


class TokenRequest(Schema):
    """An enrollment token for ``uses`` devices, good for ``ttl`` seconds, perhaps for one serial only."""

    uses: int = Field(1, ge=1, le=100_000)
    ttl: int = Field(86400, ge=1, le=MAX_TOKEN_LIFE)
    serial: str | None = Field(None, min_length=1, max_length=64)


class LinkRequest(Schema):
    operator: str = Field("operator", pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")


@api.get("/devices")
def list_devices(
    request: HttpRequest, query: str = "", limit: int = 100, sort: str = "id", cursor: str = ""
) -> dict[str, Any]:
    """The devices of a query, a page at a time."""
    page = registry.find(query, now=_now(), limit=limit, sort=sort, cursor=cursor)
    return {
        "schema": "pi-fleet.devices/1",
        "meaning": page.meaning,
        "as_of": registry.rfc3339(page.as_of),
        "items": [registry.describe(device) for device in page.devices],
        "next": page.cursor,
        "total": page.total,
    }


def _add_action(name: str) -> None:
    @api.post(f"/devices/{name}", operation_id=f"{name}_devices", summary=f"{name.capitalize()} the devices of a query")
    def change_devices(request: HttpRequest, body: ChangeRequest) -> dict[str, Any]:
        change = registry.act(
            name,
            body.query,
            most=body.max,
            reason=one_line(body.reason),
            actor=_actor(request),
            now=_now(),
            dry_run=body.dry_run,
        )
        return {
            "schema": "pi-fleet.change/1",
            "meaning": change.meaning,
            "matched": change.matched,
            "status": change.target,
            "dry_run": body.dry_run,
            "changed": [registry.describe(device) | {"status": change.target} for device in change.changed],
        }


for action in registry.ACTIONS:  # before the next route, whose device_id would match an action's name
    _add_action(action)


@api.get("/devices/{device_id}")
def show_device(request: HttpRequest, device_id: str) -> dict[str, Any]:
    """One device, with its newest audit lines."""
    device = registry.get(device_id)
    events = [registry.describe_event(event) for event in registry.history(device_id)]
    return {"schema": "pi-fleet.device/1", **registry.describe(device), "events": events}


@api.post("/enrollment-tokens")
def make_enrollment_token(request: HttpRequest, body: TokenRequest) -> dict[str, Any]:
    """A new enrollment token. It is in this answer and nowhere else."""
    now, actor, token = _now(), _actor(request), secrets.token_urlsafe(24)
    row = EnrollmentToken.objects.create(
        token_hash=hashlib.sha256(token.encode()).hexdigest(),
        uses_left=body.uses,
        serial=body.serial.lower() if body.serial else None,
        created_at=now,
        created_by=actor.name,
        expires_at=now + body.ttl,
    )
    detail = {"token": row.pk, "uses": body.uses, "serial": row.serial, "expires": registry.rfc3339(row.expires_at)}
    audit.record([Event("enrollment-token.create", detail=detail)], actor=actor, now=now)
    return {
        "schema": "pi-fleet.enrollment-token/1",
        "token": token,
        "uses": body.uses,
        "serial": row.serial,
        "expires": registry.rfc3339(row.expires_at),
        "issuer": current().issuer,
    }


@api.post("/sign-in-links")
def make_sign_in_link(request: HttpRequest, body: LinkRequest) -> dict[str, Any]:
    """A link that signs an operator in, once. It is in this answer and nowhere else."""
    now, actor = _now(), _actor(request)
    url = signin.make_link(body.operator, created_by=actor.name, now=now, settings=current())
    audit.record([Event("sign-in-link.create", detail={"operator": body.operator})], actor=actor, now=now)
    return {
        "schema": "pi-fleet.sign-in-link/1",
        "url": url,
        "operator": body.operator,
        "expires": registry.rfc3339(now + signin.LINK_SECONDS),
    }


def _now() -> int:
    return int(time.time())


def _actor(request: HttpRequest) -> Actor:
    return Actor(request.auth, source_of(request.scope))  # type: ignore[attr-defined]  # ninja and ASGI put them there


# Errors, as problem details.


def problem(status: int, detail: str, **more: object) -> HttpResponse:
    members = {"type": "about:blank", "status": status, "detail": detail} | more
    known = {name: value for name, value in members.items() if value is not None}
    return JsonResponse(known, status=status, content_type="application/problem+json")


@api.exception_handler(PiAgentError)
def _on_error(request: HttpRequest, error: PiAgentError) -> HttpResponse:
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    where = {"position": error.position, "suggestion": error.suggestion} if isinstance(error, QueryError) else {}
    return problem(status, str(error), hint=error.hint, **where)


@api.exception_handler(DatabaseError)
def _on_database(request: HttpRequest, error: DatabaseError) -> HttpResponse:
    return problem(503, "the registry cannot be used at the moment", hint="try again in a few seconds")


@api.exception_handler(AuthenticationError)
def _on_stranger(request: HttpRequest, error: AuthenticationError) -> HttpResponse:
    return problem(401, "sign in first", hint="pi-fleet sign-in-link, on the server")


@api.exception_handler(HttpError)
def _on_http_error(request: HttpRequest, error: HttpError) -> HttpResponse:
    return problem(error.status_code, str(error))


@api.exception_handler(ValidationError)
def _on_invalid(request: HttpRequest, error: ValidationError) -> HttpResponse:
    """Which member was wrong, and what it should be; never what was sent."""
    wrong = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors]
    return problem(400, "; ".join(wrong))
