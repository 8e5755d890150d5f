"""What an operator can decide about devices, and about which of them. How it is done to many is ``changes``."""

from __future__ import annotations

from dataclasses import dataclass

from django.db.models import QuerySet

from pi_agent.fleet.models import Device

TURNED_AWAY = ("rejected", "quarantined", "revoked")
FORGOTTEN = "forgotten"  # of such a device only the audit log is left


@dataclass(frozen=True, slots=True)
class Action:
    """Something an operator does to devices: from one of ``sources`` to ``target``. ``role`` is who may.

    Nobody is forgotten as long as an access token of theirs may still work, which somebody may want to ask about.
    """

    name: str
    sources: tuple[str, ...]
    target: str
    role: str = "approver"

    def fits(self, device: Device, now: int) -> bool:
        return device.status in self.sources and not (self.target == FORGOTTEN and (device.token_until or 0) > now)

    def fitting(self, rows: QuerySet[Device], now: int) -> QuerySet[Device]:
        """Those of ``rows`` that it ``fits``."""
        rows = rows.filter(status__in=self.sources)
        return rows.exclude(token_until__gt=now) if self.target == FORGOTTEN else rows

    def detail(self, device: Device, reason: str) -> dict[str, object]:
        """What its audit line says; of a device that is forgotten also by what it can be known again."""
        said: dict[str, object] = {"from": device.status, "to": self.target, "reason": reason}
        if self.target == FORGOTTEN:
            kids = [kid for kid, *_ in device.speaking_keys]
            said |= {"name": device.name, "serial": device.serial, "kids": kids}
        return said


ACTIONS = {
    action.name: action
    for action in (
        Action("approve", ("pending", "rejected"), "approved"),
        Action("reject", ("pending",), "rejected"),
        Action("quarantine", ("approved",), "quarantined"),
        Action("release", ("quarantined",), "approved"),
        Action("revoke", ("pending", "approved", "quarantined", "rejected"), "revoked", "admin"),
        Action("forget", ("rejected", "revoked"), FORGOTTEN, "admin"),
    )
}
