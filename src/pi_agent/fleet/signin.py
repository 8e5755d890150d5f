"""Sign-in links: how an operator gets a session. Printed locally, good once, and for minutes (requirement D-01)."""

from __future__ import annotations

import secrets

from pi_agent.fleet.access import ensure_operator
from pi_agent.fleet.models import SignInLink, secret_hash
from pi_agent.fleet.settings import Settings

LINK_SECONDS = 15 * 60


def make_link(operator: str, *, created_by: str, now: int, settings: Settings, role: str = "admin") -> str:
    """A link that opens one session for ``operator``, who becomes one with ``role`` if need be.

    It is shown here and never again.
    """
    token = secrets.token_urlsafe(24)
    ensure_operator(operator, role, by=created_by, now=now)
    SignInLink.objects.filter(expires_at__lt=now - 86400).delete()
    SignInLink.objects.create(
        token_hash=secret_hash(token),
        operator=operator,
        created_by=created_by,
        created_at=now,
        expires_at=now + LINK_SECONDS,
    )
    return f"{settings.issuer}/sign-in/{token}"


def spend_link(token: str, *, now: int) -> str | None:
    """The operator of an unused link, which is used now; None for any other text. One update decides."""
    link = SignInLink.objects.filter(token_hash=secret_hash(token), used_at=None, expires_at__gt=now)
    operator = link.values_list("operator", flat=True).first()
    return operator if operator is not None and link.update(used_at=now) == 1 else None
