"""Devices that an operator adds by their public key, without the device: for scripts, and for clients that cannot enroll.

Whoever holds the key then gets tokens as any enrolled device does. Adding the same key again answers the same device.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from django.db import transaction

from pi_agent.board import board_claims, board_from_revision
from pi_agent.catalogue import fold
from pi_agent.errors import ConflictError, MalformedTokenError, UnreadableBoardError, UsageError
from pi_agent.fleet import audit
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Device, DeviceKey
from pi_agent.fleet.policy import normal_board
from pi_agent.jwk import PublicKey, load_jwk
from pi_agent.revision import Revision, decode_revision


def add(
    jwk: Mapping[str, Any],
    *,
    name: str,
    serial: str | None,
    revision: str | None,
    scopes: str,
    approve: bool,
    actor: Actor,
    now: int,
) -> tuple[Device, DeviceKey]:
    """The device of a public key, made when there is none yet. Raises UsageError, or ConflictError for a retired key."""
    key, alg = read_key(jwk)
    board = read_board(serial, revision)
    with transaction.atomic():
        known = DeviceKey.objects.select_related("device").filter(kid=key.kid).first()
        if known is not None and known.retired_at is not None:
            raise ConflictError(f"the key {key.kid} was retired", hint="make a new one")
        if known is not None:
            row, device = known, known.device
        else:
            device = _new(name, board, scopes, now)
            row = DeviceKey.objects.create(device=device, kid=key.kid, alg=alg, jwk=json.dumps(key.jwk), created_at=now)
            detail = {"kid": key.kid, "board": {k: v for k, v in board.items() if v is not None}}
            audit.record([Event("device.add", device.client_id, detail=detail)], actor=actor, now=now)
        if approve and device.status == "pending":
            device.status = "approved"
            device.save(update_fields=["status"])
            detail = {"from": "pending", "reason": "added by an operator"}
            audit.record([Event("device.approve", device.client_id, detail=detail)], actor=actor, now=now)
    return device, row


def read_key(jwk: Mapping[str, Any]) -> tuple[PublicKey, str]:
    """The key of a JWK, and the algorithm that it is pinned to. Raises UsageError."""
    try:
        key = load_jwk(jwk)
    except MalformedTokenError as error:
        hint = "give the public half only" if "private" in str(error) else None
        raise UsageError(f"this JWK cannot be used: {error}", hint=hint) from error
    return key, str(jwk.get("alg", key.algorithms[0]))


def read_board(serial: str | None, revision: str | None) -> dict[str, Any]:
    """What is known of a board by its serial and its revision code, as the registry keeps it. Raises UsageError."""
    claims: dict[str, Any] = {}
    if revision:
        claims = dict(board_claims(board_from_revision(_decoded(revision))))
    return normal_board(claims | {"serial": serial, "revision": revision})


def _decoded(code: str) -> Revision:
    try:
        return decode_revision(code)
    except (UnreadableBoardError, ValueError) as error:
        raise UsageError(f"{code!r} is not a revision code: {error}", hint="pi-agent board shows it") from error


def _new(name: str, board: dict[str, Any], scopes: str, now: int) -> Device:
    client_id = "pi-" + secrets.token_hex(8)
    return Device.objects.create(
        client_id=client_id,
        name=name or client_id,
        name_key=fold("name", name or client_id),
        scopes=scopes,
        model_key=fold("model", board["model"]) if board["model"] else None,
        maker=decode_revision(board["revision"]).manufacturer if board["revision"] else None,
        created_at=now,
        **board,
    )
