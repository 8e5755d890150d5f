"""The authorization server's own things: signing keys, resource servers, access rules, and devices added by their key."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from django.db import IntegrityError, transaction
from django.http import HttpRequest
from ninja import Router
from pydantic import Field

from pi_agent import query as query_language
from pi_agent.errors import ConflictError, QueryError, UnknownDeviceError, UsageError
from pi_agent.fleet import adding, audit, signing
from pi_agent.fleet.audit import Event
from pi_agent.fleet.models import AccessRule, ResourceServer, secret_hash
from pi_agent.fleet.registry import rfc3339
from pi_agent.fleet.rest.common import Body, Printable, actor_of, keep_secret, needs, now
from pi_agent.fleet.settings import current
from pi_agent.fleet.signing import RingKey

router = Router(tags=["authority"])
Scopes = Annotated[str, Field(max_length=512, pattern=r"^[!#-\[\]-~]+( [!#-\[\]-~]+)*$")]
Audience = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[!-~]+$")]
Hex = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[0-9A-Fa-f]+$")]


class RotationRequest(Body):
    """A new signing key, which signs once every resource server knows it, or ``at_once``."""

    at_once: bool = False


class ResourceServerRequest(Body):
    """A service that devices call: ``scopes`` of its ``audience`` for the devices of ``query``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    audience: Audience
    scopes: Scopes = "device"
    query: str = Field("id:*", max_length=2000)


class RuleRequest(Body):
    """The devices of ``query`` may have ``scopes`` at ``audience`` (the fleet's own when empty)."""

    query: str = Field(min_length=1, max_length=2000)
    scopes: Scopes
    audience: Audience | None = None


class DeviceRequest(Body):
    """A device by its public key."""

    jwk: dict[str, Any]
    name: Printable = Field("", max_length=64)
    serial: Hex | None = None
    revision: Hex | None = None
    approve: bool = False


# Signing keys.


@router.get("/keys", **needs("reader"))
def list_keys(request: HttpRequest) -> dict[str, Any]:
    """The signing keys, their state, and when they sign."""
    at = now()
    ring = signing.load_ring(current(), now=at)
    return {
        "schema": "pi-fleet.keys/1",
        "sealed": bool(current().key_secret),
        "items": [_key(key, at) for key in ring.keys],
    }


@router.post("/keys", **needs("admin"))
def rotate_signing_key(request: HttpRequest, body: RotationRequest) -> dict[str, Any]:
    """A new signing key."""
    at = now()
    with transaction.atomic():
        row = signing.rotate(current(), now=at, at_once=body.at_once)
        detail = {"kid": row.kid, "signs_from": rfc3339(row.signs_from)}
        audit.record([Event("signing-key.rotate", detail=detail)], actor=actor_of(request), now=at)
    return {
        "schema": "pi-fleet.key/1",
        "kid": row.kid,
        "state": "signing" if row.signs_from <= at else "next",
        "signs_from": rfc3339(row.signs_from),
    }


@router.delete("/keys/{kid}", **needs("admin"))
def retire_key(request: HttpRequest, kid: str) -> dict[str, Any]:
    """Believe a key no more, nor any token that it signed. The private half is destroyed."""
    at = now()
    with transaction.atomic():
        signing.retire(kid, now=at)
        audit.record([Event("signing-key.retire", detail={"kid": kid})], actor=actor_of(request), now=at)
    return {
        "schema": "pi-fleet.key/1",
        "kid": kid,
        "state": "retired",
        "cached_until": rfc3339(at + signing.JWKS_SECONDS),
    }


def _key(key: RingKey, at: int) -> dict[str, Any]:
    over = key.signs_until < signing.FOREVER
    return {
        "kid": key.kid,
        "alg": "ES256",
        "state": key.state(at),
        "created": rfc3339(key.created_at),
        "signs_from": rfc3339(key.signs_from),
        "signs_until": rfc3339(key.signs_until) if over else None,
        "published_until": rfc3339(key.published_until) if over else None,
    }


# Resource servers and access rules.


@router.get("/resource-servers", **needs("reader"))
def list_resource_servers(request: HttpRequest) -> dict[str, Any]:
    """The services that may ask about tokens, without their secrets."""
    items = [
        {
            "name": row.name,
            "client_id": row.client_id,
            "audience": row.audience,
            "created": rfc3339(row.created_at),
            "created_by": row.created_by,
        }
        for row in ResourceServer.objects.order_by("name")[:1000]
    ]
    return {"schema": "pi-fleet.resource-servers/1", "items": items}


@router.post("/resource-servers", **needs("admin"))
def add_resource_server(request: HttpRequest, body: ResourceServerRequest) -> dict[str, Any]:
    """A new resource server and the rule for its tokens. Its secret is in this answer and nowhere else."""
    keep_secret(request)
    at, actor, secret = now(), actor_of(request), secrets.token_urlsafe(32)
    query_language.parse(body.query, at)
    client_id = "rs-" + secrets.token_hex(8)
    made = {"created_at": at, "created_by": actor.name}
    try:
        with transaction.atomic():
            ResourceServer.objects.create(
                client_id=client_id, name=body.name, audience=body.audience, secret_hash=secret_hash(secret), **made
            )
            AccessRule.objects.create(audience=body.audience, query=body.query, scopes=body.scopes, **made)
            detail = {"name": body.name, "audience": body.audience, "query": body.query, "scopes": body.scopes}
            audit.record([Event("resource-server.add", detail=detail)], actor=actor, now=at)
    except IntegrityError as error:
        hint = f"pi-fleet resource-server remove {body.name}"
        raise ConflictError(f"there is a resource server {body.name!r} already", hint=hint) from error
    return {
        "schema": "pi-fleet.resource-server/1",
        "name": body.name,
        "client_id": client_id,
        "client_secret": secret,
        "audience": body.audience,
        "scopes": body.scopes,
        "query": body.query,
        "introspection_endpoint": f"{current().issuer}/oauth/introspect",
        "issuer": current().issuer,
    }


@router.delete("/resource-servers/{name}", **needs("admin"))
def remove_resource_server(request: HttpRequest, name: str) -> dict[str, Any]:
    """Forget a resource server, and with the last one for its audience the rules for that audience."""
    with transaction.atomic():
        row = ResourceServer.objects.filter(name=name).first()
        if row is None:
            raise UnknownDeviceError(f"there is no resource server {name!r}", hint="pi-fleet resource-server list")
        row.delete()
        if not ResourceServer.objects.filter(audience=row.audience).exists():
            AccessRule.objects.filter(audience=row.audience).delete()
        detail = {"name": name, "audience": row.audience}
        audit.record([Event("resource-server.remove", detail=detail)], actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.resource-server/1", "name": name, "removed": True}


@router.get("/rules", **needs("reader"))
def list_rules(request: HttpRequest) -> dict[str, Any]:
    """Which devices may have which scopes, and at whom."""
    at = now()
    items = [_rule(row, at) for row in AccessRule.objects.order_by("pk")[:1000]]
    return {"schema": "pi-fleet.rules/1", "items": items}


@router.post("/rules", **needs("admin"))
def add_rule(request: HttpRequest, body: RuleRequest) -> dict[str, Any]:
    """Let the devices of a query have scopes."""
    at, actor = now(), actor_of(request)
    query_language.parse(body.query, at)
    audience = body.audience or current().token_audience
    with transaction.atomic():
        row = AccessRule.objects.create(
            audience=audience, query=body.query, scopes=body.scopes, created_at=at, created_by=actor.name
        )
        detail = {"rule": row.pk, "audience": audience, "query": body.query, "scopes": body.scopes}
        audit.record([Event("rule.add", detail=detail)], actor=actor, now=at)
    return {"schema": "pi-fleet.rule/1", **_rule(row, at)}


@router.delete("/rules/{rule_id}", **needs("admin"))
def remove_rule(request: HttpRequest, rule_id: int) -> dict[str, Any]:
    """Take a rule away. Tokens that it gave live on until they end."""
    with transaction.atomic():
        gone, _ = AccessRule.objects.filter(pk=min(rule_id, 2**62)).delete()
        if not gone:
            raise UnknownDeviceError(f"there is no rule {rule_id}", hint="pi-fleet rule list")
        audit.record([Event("rule.remove", detail={"rule": rule_id})], actor=actor_of(request), now=now())
    return {"schema": "pi-fleet.rule/1", "id": rule_id, "removed": True}


def _rule(row: AccessRule, at: int) -> dict[str, Any]:
    try:
        meaning = query_language.parse(row.query, at).meaning()
    except QueryError as error:  # it was saved by an older version; it is for no device, and can be removed
        meaning = f"no device: {error}"
    return {
        "id": row.pk,
        "audience": row.audience,
        "scopes": row.scopes,
        "query": row.query,
        "meaning": meaning,
        "created_by": row.created_by,
    }


# Devices.


@router.post("/devices/add", **needs("approver"))
def add_device(request: HttpRequest, body: DeviceRequest) -> dict[str, Any]:
    """Add a device by its public key; the same key again is the same device."""
    if not body.jwk:
        raise UsageError("jwk is empty")
    device, key = adding.add(
        body.jwk,
        name=body.name.strip(),
        serial=body.serial,
        revision=body.revision,
        scopes=current().scopes,
        approve=body.approve,
        actor=actor_of(request),
        now=now(),
    )
    return {
        "schema": "pi-fleet.added/1",
        "id": device.client_id,
        "kid": key.kid,
        "alg": key.alg,
        "status": device.status,
        "issuer": current().issuer,
        "token_endpoint": f"{current().issuer}/oauth/token",
    }
