"""What an operator should know before approving a device: what it says it is, what is known against it, and how to make
sure that it is the board on the table and not somebody else's (``words``)."""

from __future__ import annotations

import base64
from typing import Any

from pi_agent import words
from pi_agent.catalogue import MODELS
from pi_agent.errors import UnknownDeviceError
from pi_agent.fleet.models import AuditEvent, Device, DeviceKey, with_parts
from pi_agent.fleet.registry import rfc3339
from pi_agent.protection import PROTECTIONS

MAX_SHOWN = 100
TWINS = 5


def waiting(limit: int = MAX_SHOWN) -> list[Device]:
    """Devices that wait for approval, the one that came first before the others."""
    rows = Device.objects.filter(status="pending").order_by("created_at", "pk")
    return with_parts(rows[: min(limit, MAX_SHOWN)])


def find(code: str) -> Device:
    """The device whose key has this code. Raises UsageError for what is no code, UnknownDeviceError unless there is exactly one."""
    wanted = words.read_code(code)
    keys = DeviceKey.objects.filter(kid__startswith=_beginning(wanted), retired_at=None).select_related("device")
    found = {key.device for key in keys if words.code(key.kid) == wanted}
    if len(found) != 1:
        what = "no device has" if not found else f"{len(found)} devices have"
        raise UnknownDeviceError(f"{what} the code {wanted}", hint="pi-fleet pending shows those that wait")
    return found.pop()


def _beginning(code: str) -> str:
    """The first characters of a thumbprint in base64url, from its code: the same bits in another alphabet."""
    digits = code.replace("-", "")
    number = int("".join(f"{words.DIGITS.index(digit):05b}" for digit in digits), 2)
    return base64.urlsafe_b64encode(number.to_bytes(5, "big")).decode("ascii")[:6]


def describe(device: Device) -> dict[str, Any]:
    """A device with its code, its words, and in ``why`` everything that speaks for a second look."""
    enrolled = AuditEvent.objects.filter(device=device.client_id, action="device.enrolled").order_by("id").first()
    return {
        "id": device.client_id,
        "name": device.name,
        "model": device.model,
        "model_name": MODELS.get(device.model or ""),
        "memory_mib": device.memory_mib,
        "revision": device.revision,
        "serial": device.serial,
        "key": device.key_protection,
        **recognised_by(device),
        "why": why(device),
        "source": enrolled.source if enrolled else None,
        "created": rfc3339(device.created_at),
    }


def recognised_by(device: Device) -> dict[str, Any]:
    """The thumbprint of the key in use, its code and its words; None without a key."""
    kid = next((kid for kid, _, _, waits in device.speaking_keys if not waits), None)
    return {
        "kid": kid,
        "code": words.code(kid) if kid else None,
        "words": " ".join(words.words(kid)) if kid else None,
    }


def why(device: Device) -> list[str]:
    """Sentences: what is known of this board and its key."""
    said = [*_seen_before(device)]
    if device.serial is None:
        said.append("it names no serial, so nothing ties the key to a board")
    if device.simulated:
        said.append("it says that it is a simulated board")
    said.append(f"its key is kept in {PROTECTIONS[device.key_protection]}")
    return said


def _seen_before(device: Device) -> list[str]:
    if device.serial is None:
        return []
    others = Device.objects.filter(serial=device.serial).exclude(pk=device.pk).order_by("pk")
    count = others.count()
    named = ", ".join(f"{other.client_id} ({other.status})" for other in others[:TWINS])
    more = f" and {count - TWINS} more" if count > TWINS else ""
    if not count:
        return ["its serial was never seen before"]
    return [f"the same serial is here with another key, as {named}{more}: a new card in that board, or a copy of it"]
