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


def first_use(client_id: str, kid: str, *, source: str, now: int) -> None:
    """A key that was waiting has got its first token: it is the device's only key now. Inside the token's transaction."""
    keys = DeviceKey.objects.filter(device__client_id=client_id)
    keys.exclude(kid=kid).filter(retired_at=None).update(retired_at=now)
    keys.filter(kid=kid).update(pending_until=None)
    Device.objects.filter(client_id=client_id).update(rotation_at=None)
    event = audit.Event("device.key-rotated", client_id, detail={"kid": kid})
    audit.record([event], actor=audit.Actor(client_id, source), now=now)
