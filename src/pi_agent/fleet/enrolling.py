"""Enrollment tokens as operators handle them: made, listed and taken back. The token itself is shown once."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from django.db import transaction

from pi_agent.errors import UnknownDeviceError
from pi_agent.fleet import audit
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.lists import read_serial
from pi_agent.fleet.models import EnrollmentToken, secret_hash

MAX_USES = 100_000
MAX_SECONDS = 366 * 86400
SHOWN = 1000


def make(uses: int, seconds: int, serial: str | None, *, actor: Actor, now: int) -> tuple[str, EnrollmentToken]:
    """A token for ``uses`` devices, good for ``seconds``, perhaps for one serial only; and its row. Raises UsageError."""
    token = secrets.token_urlsafe(24)
    with transaction.atomic():
        row = EnrollmentToken.objects.create(
            token_hash=secret_hash(token),
            uses_left=uses,
            serial=read_serial(serial) if serial else None,
            created_at=now,
            created_by=actor.name,
            expires_at=now + seconds,
        )
        detail = {"token": row.pk, "uses": uses, "serial": row.serial, "expires": row.expires_at}
        audit.record([Event("enrollment-token.create", detail=detail)], actor=actor, now=now)
    return token, row


def good(now: int) -> Sequence[EnrollmentToken]:
    """The tokens that still enroll somebody, the next to expire first."""
    return list(EnrollmentToken.objects.filter(uses_left__gt=0, expires_at__gt=now).order_by("expires_at")[:SHOWN])


def end(number: int, *, actor: Actor, now: int) -> None:
    """Take a token back. Raises UnknownDeviceError when there is none in force."""
    with transaction.atomic():
        ended = EnrollmentToken.objects.filter(pk=min(number, 2**62), uses_left__gt=0).update(uses_left=0)
        event = Event("enrollment-token.end", result="done" if ended else "refused", detail={"token": number})
        audit.record([event], actor=actor, now=now)
    if not ended:
        raise UnknownDeviceError("there is no such enrollment token in force")
