"""Boards and keys that an operator approves before they have ever been seen, from a list (``lists``).

A key's thumbprint is the better line: only the holder of that key can use it. A serial is no secret, so a line with one
approves whoever comes first with that serial, once, until the line expires; a second claim to the same serial waits for
an operator as always.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Q

from pi_agent.fleet import audit
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.lists import Line
from pi_agent.fleet.models import Preauthorisation


def add(lines: Iterable[Line], *, expires_at: int, actor: Actor, now: int) -> int:
    """Approve each line beforehand; how many are new. A line that waits already is given the new end and name."""
    new = 0
    for line in lines:
        waiting = Preauthorisation.objects.filter(serial=line.serial or None, kid=line.key or None, used_at=None)
        if not waiting.update(name=line.name, expires_at=expires_at):
            new += 1
            Preauthorisation.objects.create(
                serial=line.serial or None,
                kid=line.key or None,
                name=line.name,
                created_at=now,
                created_by=actor.name[:128],
                expires_at=expires_at,
            )
    audit.record([Event("preauthorised", detail={"lines": new, "expires": expires_at})], actor=actor, now=now)
    return new


def spend(*, serial: str | None, kid: str, client_id: str, now: int) -> Preauthorisation | None:
    """Use up the line for this key, else the one for this serial; None when there is none. One update decides each."""
    for matches in (Q(kid=kid), Q(serial=serial) if serial else None):
        if matches is None:
            continue
        line = Preauthorisation.objects.filter(matches, used_at=None, expires_at__gt=now).first()
        unused = Preauthorisation.objects.filter(pk=line.pk, used_at=None) if line else None
        if unused is not None and unused.update(used_at=now, device=client_id) == 1:
            return line
    return None
