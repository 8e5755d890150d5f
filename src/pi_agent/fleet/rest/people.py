"""Operators, their tokens and links, enrollment tokens and webhooks. A secret is in one answer and never in another."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from django.db import transaction
from django.http import HttpRequest
from ninja import Router
from pydantic import Field

from pi_agent.errors import UnknownDeviceError
from pi_agent.fleet import access, audit, enrolling, signin, webhooks
from pi_agent.fleet.audit import Event
from pi_agent.fleet.models import Delivery, Operator, OperatorToken, Webhook
from pi_agent.fleet.registry import rfc3339
from pi_agent.fleet.rest.common import Body, Printable, actor_of, keep_secret, needs, now
from pi_agent.fleet.settings import current

router = Router(tags=["operators"])
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Role = Literal["reader", "approver", "admin"]


class EnrollmentTokenRequest(Body):
    """An enrollment token for ``uses`` devices, good for ``ttl`` seconds, perhaps for one serial only."""

    uses: int = Field(1, ge=1, le=enrolling.MAX_USES)
    ttl: int = Field(86400, ge=1, le=enrolling.MAX_SECONDS)
    serial: str | None = Field(None, min_length=1, max_length=64)


class LinkRequest(Body):
    """A sign-in link; somebody who is no operator yet needs a ``role``."""

    operator: Name
    role: Role | None = None


class RoleRequest(Body):
    role: Role


class OperatorTokenRequest(Body):
    """A token for ``operator`` with at most their ``role``, good for ``ttl`` seconds."""

    operator: Name
    role: Role = "reader"
    ttl: int = Field(90 * 86400, ge=60, le=access.MAX_TOKEN_SECONDS)
    note: Printable = Field("", max_length=64)


class WebhookRequest(Body):
    """An address that is told of ``events``; of all when it names none."""

    url: str = Field(max_length=500)
    events: list[Annotated[str, Field(max_length=32)]] = Field(default_factory=list, max_length=10)


@router.get("/enrollment-tokens", **needs("reader"))
def list_enrollment_tokens(request: HttpRequest) -> dict[str, Any]:
    """Enrollment tokens that are still good, without the tokens themselves."""
    items = [
        {
            "id": row.pk,
            "uses_left": row.uses_left,
            "serial": row.serial,
            "created": rfc3339(row.created_at),
            "created_by": row.created_by,
            "expires": rfc3339(row.expires_at),
        }
        for row in enrolling.good(now())
    ]
    return {"schema": "pi-fleet.enrollment-tokens/1", "items": items}


@router.post("/enrollment-tokens", **needs("approver"))
def make_enrollment_token(request: HttpRequest, body: EnrollmentTokenRequest) -> dict[str, Any]:
    """A new enrollment token. It is in this answer and nowhere else."""
    keep_secret(request)
    token, row = enrolling.make(body.uses, body.ttl, body.serial, actor=actor_of(request), now=now())
    return {
        "schema": "pi-fleet.enrollment-token/1",
        "token": token,
        "id": row.pk,
        "uses": body.uses,
        "serial": row.serial,
        "expires": rfc3339(row.expires_at),
        "issuer": current().issuer,
    }


@router.delete("/enrollment-tokens/{token_id}", **needs("approver"))
def end_enrollment_token(request: HttpRequest, token_id: int) -> dict[str, Any]:
    """Take back an enrollment token that is still good."""
    enrolling.end(token_id, actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.done/1", "done": True}


@router.post("/sign-in-links", **needs("admin"))
def make_sign_in_link(request: HttpRequest, body: LinkRequest) -> dict[str, Any]:
    """A link that signs an operator in, once. It is in this answer and nowhere else."""
    keep_secret(request)
    actor, at = actor_of(request), now()
    role = access.role_for_link(body.operator, body.role)
    url = signin.make_link(body.operator, role=role, created_by=actor.name, now=at, settings=current())
    audit.record([Event("sign-in-link.create", detail={"operator": body.operator, "role": role})], actor=actor, now=at)
    expires = rfc3339(at + signin.LINK_SECONDS)
    return {
        "schema": "pi-fleet.sign-in-link/1",
        "url": url,
        "operator": body.operator,
        "role": role,
        "expires": expires,
    }


@router.get("/operators", **needs("admin"))
def list_operators(request: HttpRequest) -> dict[str, Any]:
    """Who may do what."""
    rows = Operator.objects.order_by("name")
    items = [
        {"name": row.name, "role": row.role, "since": rfc3339(row.created_at), "by": row.created_by} for row in rows
    ]
    return {"schema": "pi-fleet.operators/1", "roles": access.ROLES, "items": items}


@router.put("/operators/{name}", **needs("admin"))
def set_operator(request: HttpRequest, name: Name, body: RoleRequest) -> dict[str, Any]:
    """Make somebody an operator, or change their role; their sessions and tokens follow at once."""
    access.set_role(name, body.role, actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.operator/1", "name": name, "role": body.role}


@router.delete("/operators/{name}", **needs("admin"))
def remove_operator(request: HttpRequest, name: Name) -> dict[str, Any]:
    """Somebody is no operator any more: their sessions and tokens end at once."""
    if access.role_of(name) is None:
        raise UnknownDeviceError("there is no such operator", hint="pi-fleet operator list")
    access.set_role(name, None, actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.done/1", "done": True}


@router.get("/tokens", **needs("admin"))
def list_tokens(request: HttpRequest) -> dict[str, Any]:
    """Operator tokens by their first characters; the rest is kept nowhere."""
    items = [
        {
            "prefix": row.prefix,
            "operator": row.operator.name,
            "role": row.role,
            "note": row.note,
            "created": rfc3339(row.created_at),
            "expires": rfc3339(row.expires_at),
            "used": rfc3339(row.used_at),
            "revoked": rfc3339(row.revoked_at),
        }
        for row in OperatorToken.objects.select_related("operator").order_by("-created_at", "-pk")[:1000]
    ]
    return {"schema": "pi-fleet.tokens/1", "items": items}


@router.post("/tokens", **needs("admin"))
def make_token(request: HttpRequest, body: OperatorTokenRequest) -> dict[str, Any]:
    """A new operator token. It is in this answer and nowhere else."""
    keep_secret(request)
    token, row = access.make_token(
        body.operator, body.role, seconds=body.ttl, note=body.note, actor=actor_of(request), now=now()
    )
    return {
        "schema": "pi-fleet.token/1",
        "token": token,
        "prefix": row.prefix,
        "operator": body.operator,
        "role": body.role,
        "expires": rfc3339(row.expires_at),
    }


@router.delete("/tokens/{prefix}", **needs("admin"))
def revoke_token(request: HttpRequest, prefix: str) -> dict[str, Any]:
    """End an operator token at once."""
    if not access.revoke_token(prefix, actor=actor_of(request), now=now()):
        raise UnknownDeviceError("there is no such token in force", hint="pi-fleet token list")
    return {"schema": "pi-fleet.done/1", "done": True}


@router.get("/webhooks", **needs("admin"))
def list_webhooks(request: HttpRequest) -> dict[str, Any]:
    """Who is told of what, and how the newest delivery went."""
    items = []
    for row in Webhook.objects.order_by("pk"):
        last = Delivery.objects.filter(webhook=row).order_by("-pk").first()
        waiting = Delivery.objects.filter(webhook=row).exclude(next_at=None).count()
        state = {"waiting": waiting, "last_error": last.error if last else ""}
        items.append({"id": row.pk, "url": row.url, "events": row.events.split(), "by": row.created_by, **state})
    return {"schema": "pi-fleet.webhooks/1", "items": items}


@router.post("/webhooks", **needs("admin"))
def add_webhook(request: HttpRequest, body: WebhookRequest) -> dict[str, Any]:
    """A new webhook. The secret that signs what it is sent is in this answer and nowhere else."""
    keep_secret(request)
    actor, at = actor_of(request), now()
    with transaction.atomic():
        row = webhooks.add(body.url, body.events, by=actor.name, now=at)
        audit.record([Event("webhook.add", detail={"url": row.url, "events": row.events})], actor=actor, now=at)
    return {
        "schema": "pi-fleet.webhook/1",
        "id": row.pk,
        "url": row.url,
        "events": row.events.split(),
        "secret": row.secret,
    }


@router.delete("/webhooks/{webhook_id}", **needs("admin"))
def remove_webhook(request: HttpRequest, webhook_id: int) -> dict[str, Any]:
    """Tell this address nothing more."""
    row = Webhook.objects.filter(pk=min(webhook_id, 2**62)).first()
    if row is None:
        raise UnknownDeviceError("there is no such webhook", hint="pi-fleet webhook list")
    with transaction.atomic():
        row.delete()
        audit.record([Event("webhook.remove", detail={"url": row.url})], actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.done/1", "done": True}
