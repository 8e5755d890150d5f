"""Which keys speak for a device, as the token endpoint sees it (requirements F-04, F-05). How a key comes is ``rotation``."""

from __future__ import annotations

from typing import NamedTuple

from pi_agent.fleet import audit
from pi_agent.fleet.models import Device, DeviceKey

DAY = 86400


class KeyState(NamedTuple):
    """A key's age, the end of its waiting time (None: it is in use), and when an operator asked for another."""

    made_at: int
    pending_until: int | None
    rotation_at: int | None


def speaks(pending_until: int | None, now: int) -> bool:
    """Whether a key that is not retired may speak: in use, or still waiting for its first use."""
    return pending_until is None or pending_until > now


def is_due(key: KeyState, *, protection: str, max_days: int, now: int) -> bool:
    """Whether a device should be told to make a new key: an operator asked, or the key is ``max_days`` old (0: never).

    A key in the board's fuses is the only one that the board will ever have.
    """
    if protection == "firmware-otp":
        return False
    return key.rotation_at is not None or 0 < max_days * DAY <= now - key.made_at


def first_use(client_id: str, kid: str, *, source: str, now: int) -> bool:
    """A key that was waiting gets its first token: it is the device's only key now. False when it was retired meanwhile.

    Inside the token's transaction, which holds the device but may have read the key before it did: so one conditional
    update decides, and of two requests at two servers (or in one batch) one is the first.
    """
    keys = DeviceKey.objects.filter(device__client_id=client_id, retired_at=None)
    if not keys.filter(kid=kid).exclude(pending_until=None).update(pending_until=None):
        return keys.filter(kid=kid).exists()
    keys.exclude(kid=kid).update(retired_at=now)
    Device.objects.filter(client_id=client_id).update(rotation_at=None)
    event = audit.Event("device.key-rotated", client_id, detail={"kid": kid})
    audit.record([event], actor=audit.Actor(client_id, source), now=now)
    return True
