"""Copies of a device, and what gives them away (requirements F-08 to F-12).

Every assertion names the boot it was signed in. A boot never returns, so when a device that has moved on from boot A to
boot B speaks from A again, there are two of it: one key, two running boards. The rules that keep this from crying wolf:

* a message of A's that was only late proves nothing: it was signed before B was first heard of. Clocks may differ by
  SKEW, so A counts as returned when it signed more than SKEW after B's first word. A copy that goes on living cannot
  stay within that minute. B is the first boot after A's last word, whatever came after B: a copy that names a new boot
  every minute pushes nothing back;
* a boot is remembered for KEEP after its last word, since nothing returns from longer ago;
* a device that has named its boots goes on naming them: leaving the claim out is refused.

Many new boots in one hour are an event of their own, as is a retired key that still speaks. What an alarm does is
policy: ``alarm`` writes it down and marks the device, ``quarantine`` refuses both copies until an operator releases one.
A board that keeps to one boot costs nothing here: its row is read anyway, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db.models import F

from pi_agent.assertion import SKEW, VerifiedAssertion
from pi_agent.errors import OAuthError
from pi_agent.fleet import audit
from pi_agent.fleet.models import AuditEvent, Device, DeviceBoot, DeviceKey

KEEP = 90 * 86400
KEEP_BOOTS = 1000
STORM = 30
HOUR = 3600

CLONED = "this key answers from two running boards: a copy of the card, or of the key, is in use"
OTHER_BOARD = "this key was used by another board: a copy of the card is in use there"
RETIRED_KEY = "a retired key of this device is in use: an old copy of the card, or a stolen key"
UNNAMED = "the boot claim is missing; a device that has sent it goes on sending it"
RESULTS = {
    "device.quarantine": "done",
    "device.board-changed": "refused",
    "device.retired-key": "refused",
    "device.boot-unnamed": "refused",
}
HELD = "this device is in quarantine, because its key answers from two places; an operator can release it"


class Past(NamedTuple):
    """What the registry knows of a device's boots: the present one, its first word and source, and its last token."""

    boot: str | None
    first_at: int | None
    source: str
    auth_at: int | None


def watch(verified: VerifiedAssertion, past: Past, *, source: str, now: int, policy: str) -> OAuthError | None:
    """Compare an assertion of an approved device with its past, and note what is new. Inside the token's transaction.

    The refusal, where there is one: a missing claim, or a quarantine that begins here.
    """
    if verified.boot == past.boot and (verified.boot is None or source == past.source):
        return None
    if verified.boot is None:
        _report_unnamed(verified, source, now)
        return OAuthError("invalid_grant", UNNAMED)
    device = Device.objects.get(client_id=verified.issuer)
    if device.status != "approved":  # by another claim of this batch
        return OAuthError("invalid_grant", HELD)
    past = Past(device.boot, device.boot_first_at, device.boot_source, device.auth_at)  # the same
    if verified.boot == past.boot:
        _move_to(device, source=source)
        return None
    before = device.boots.filter(boot=verified.boot).first()
    if before is not None and verified.issued_at <= _left_at(device, before, past) + SKEW:
        return None  # signed before the boot after it was known to have begun: a late message, or clocks that differ
    if past.boot is not None:
        _remember(device, past, now)
    _move_to(device, boot=verified.boot, boot_first_at=now, source=source)
    if before is not None:
        here = _side(verified.boot, source, before.first_at, now)
        there = _side(str(past.boot), past.source, past.first_at, past.auth_at)
        return _alarm(
            device, "device.clone", CLONED, {"here": here, "there": there}, source=source, now=now, policy=policy
        )
    if device.boots.filter(first_at__gt=now - HOUR).count() == STORM:
        detail = {"boots": STORM, "seconds": HOUR}
        _record("device.many-boots", device.client_id, source, now, detail)
    return None


def other_board(client_id: str, changed: Mapping[str, Any], *, source: str, now: int, policy: str) -> None:
    """A key signed for another board than it enrolled with; the token was refused. ``changed`` is (enrolled, claimed)."""
    device = Device.objects.get(client_id=client_id)
    _alarm(device, "device.board-changed", OTHER_BOARD, {"board": dict(changed)}, source=source, now=now, policy=policy)


def retired_key(client_id: str, kid: str, *, source: str, now: int) -> OAuthError | None:
    """The refusal for a good signature of a key that was retired, noted; None when the key is not one.

    Never a quarantine: the device with the present key is well, and whoever holds an old one must not be able to stop it.
    """
    key = DeviceKey.objects.select_related("device").filter(kid=kid, device__client_id=client_id).first()
    if key is None or key.retired_at is None:
        return None
    detail = {"kid": kid, "retired": key.retired_at}
    _alarm(key.device, "device.retired-key", RETIRED_KEY, detail, source=source, now=now, policy="alarm")
    return OAuthError("invalid_grant", "this key was retired when the device was given a new one")


def _alarm(
    device: Device, action: str, words: str, detail: dict[str, object], *, source: str, now: int, policy: str
) -> OAuthError | None:
    """Mark the device, by policy hold it. An audit line of each kind an hour, and one more once somebody has looked:
    whoever has the key can set alarms off in turn, and must not fill the log."""
    sides = (
        f"{name} {side['source']} from {side.get('first', '?')} to {side.get('last', '?')}"
        for name, side in detail.items()
        if isinstance(side, dict) and "source" in side
    )
    detail = {"why": ", ".join((words, *sides)), **detail}
    holds = policy == "quarantine" and device.status == "approved"
    if holds or not device.flag or not _said_lately(device.client_id, action, now):
        _record(action, device.client_id, source, now, detail | {"policy": policy})
        Device.objects.filter(pk=device.pk).update(clone_at=now, flag=words)
    if holds:
        Device.objects.filter(pk=device.pk).update(status="quarantined", status_reason=words)
        _record("device.quarantine", device.client_id, source, now, {"by": "policy", "reason": words})
    return OAuthError("invalid_grant", HELD) if holds else None


def _left_at(device: Device, boot: DeviceBoot, past: Past) -> int:
    """When the device was first heard of in another boot, after the last word of ``boot``."""
    others = device.boots.exclude(pk=boot.pk).filter(first_at__gte=boot.last_at).order_by("first_at")
    first = others.values_list("first_at", flat=True).first()
    return past.first_at or 0 if first is None else first


def _side(boot: str, source: str, first: int | None, last: int | None) -> dict[str, str]:
    """One of two copies: where it is, and from when to when it was heard of (RFC 3339)."""
    times = {"first": first, "last": last}
    said = {name: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for name, at in times.items() if at}
    return {"boot": boot[:8], "source": source, **said}


def _move_to(device: Device, *, source: str, **more: object) -> None:
    Device.objects.filter(pk=device.pk).update(boot_source=source[:64], **more)


def _remember(device: Device, past: Past, now: int) -> None:
    first, last = past.first_at or now, past.auth_at or now
    DeviceBoot.objects.update_or_create(
        device=device,
        boot=past.boot,
        defaults={"last_at": last, "source": past.source},
        create_defaults={"first_at": first, "last_at": last, "source": past.source},
    )
    device.boots.filter(last_at__lt=now - KEEP).delete()
    # Those that lived longest stay: whoever makes boots up by the thousand has only his own forgotten.
    surplus = device.boots.order_by(F("first_at") - F("last_at"), "-last_at", "-pk").values_list("pk", flat=True)
    if doomed := list(surplus[KEEP_BOOTS:]):
        device.boots.filter(pk__in=doomed).delete()


def _report_unnamed(verified: VerifiedAssertion, source: str, now: int) -> None:
    """Once an hour: a device that keeps on is seen by its last refusal."""
    if not _said_lately(verified.issuer, "device.boot-unnamed", now):
        _record("device.boot-unnamed", verified.issuer, source, now, {"jti": verified.jti})


def _said_lately(client_id: str, action: str, now: int) -> bool:
    return AuditEvent.objects.filter(device=client_id, action=action, at__gt=now - HOUR).exists()


def _record(action: str, client_id: str, source: str, now: int, detail: Mapping[str, object]) -> None:
    event = audit.Event(action, client_id, RESULTS.get(action, "noticed"), detail)
    audit.record([event], actor=audit.Actor(client_id, source), now=now)
