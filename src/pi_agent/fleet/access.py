"""Who calls, and what they may: operators, their roles and their tokens.

A caller is known by one of three things: the user at the other end of the local socket, a session of the pages, or an
operator token. Rules: what is not allowed is refused, and the least that a route can ask for is named beside the route;
a token can do at most what its operator can, and at most what it was made for; it is kept as its SHA-256, so it can be
shown once only; a device's token is another kind of thing and opens nothing here (requirement D-03).
"""

from __future__ import annotations

import re
import secrets
from contextlib import suppress
from dataclasses import dataclass

from django.contrib.auth.models import User
from django.db import DatabaseError, transaction
from django.http import HttpRequest

from pi_agent.errors import PiAgentError, UsageError
from pi_agent.fleet import audit, database, folder
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Operator, OperatorToken, SignInLink, secret_hash
from pi_agent.fleet.settings import current
from pi_agent.fleet.sources import source_of

ROLES = {
    "reader": "looks at everything and changes nothing",
    "approver": "decides about devices: approves, rejects, quarantines, releases, tags, hands out enrollment tokens",
    "admin": "does everything, also what cannot be taken back: revokes, and decides about operators",
}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)
FIRST = "operator"  # whom the first sign-in link is for
RANK = {role: rank for rank, role in enumerate(ROLES)}
TOKEN_MARK = "pfo_"  # noqa: S105  # what every operator token begins with, so that a leaked one is recognised
MAX_TOKEN_SECONDS = 366 * 86400
NOTE_EVERY = 60


class ForbiddenError(PiAgentError):
    """Known, and not allowed to do this."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. ``role`` is what they may do here and now; ``by_cookie`` means a browser may have been made to ask."""

    name: str
    role: str
    source: str
    by_cookie: bool = False

    @property
    def actor(self) -> Actor:
        return Actor(self.name, self.source)

    def may(self, role: str) -> bool:
        return RANK[self.role] >= RANK[role]

    def check(self, role: str) -> None:
        """Raise ForbiddenError unless the caller may do what ``role`` can."""
        if not self.may(role):
            raise ForbiddenError(f"this needs the role {role}, and {self.name} is {self.role}", hint="ask an admin")


def caller_of(request: HttpRequest, now: int) -> Caller | None:
    """Who makes a request, or None for a stranger. A wrong token is a stranger, whatever else the request has."""
    source = source_of(request.scope)  # type: ignore[attr-defined]  # an ASGIRequest has a scope
    authorization = request.headers.get("authorization")
    if authorization is not None:
        return _by_token(authorization, source, now)
    host, uid = request.scope.get("client") or ("", 0)  # type: ignore[attr-defined]  # as above
    if host == "uid" and uid in (0, current().data.stat().st_uid):  # those who could read the database anyway
        return Caller(folder.user_name(uid), "admin", source)
    if request.user.is_authenticated:
        role = role_of(request.user.get_username())
        return Caller(request.user.get_username(), role, source, by_cookie=True) if role else None
    return None


def check_name(name: str) -> str:
    """A name that an operator can have. Raises UsageError."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:40]!r} cannot name an operator", hint="use letters, digits and ._@-")
    return name


def role_of(name: str) -> str | None:
    """The role of an operator, or None for somebody who is none (any more)."""
    return Operator.objects.filter(name=name).values_list("role", flat=True).first()


def has_admin() -> bool:
    """Whether anybody can decide about operators."""
    return Operator.objects.filter(role="admin").exists()


def role_for_link(name: str, wanted: str | None) -> str:
    """The role of whom a sign-in link is for. Raises UsageError for somebody new without one, and for another than theirs.

    FIRST is an admin from the beginning.
    """
    known = role_of(name)
    if known and wanted not in (None, known):
        raise UsageError(f"{name} is {known}", hint=f"pi-fleet operator set {name} {wanted}")
    if known is None and wanted is None and name != FIRST:
        hint = f"pi-fleet sign-in-link --operator {name} --role reader, for somebody new"
        raise UsageError(f"there is no operator {name!r}", hint=hint)
    return known or wanted or "admin"


def ensure_operator(name: str, role: str, *, by: str, now: int) -> Operator:
    """The operator of this name, who becomes one if need be; somebody who is one already keeps their role."""
    return Operator.objects.get_or_create(name=name, defaults={"role": role, "created_at": now, "created_by": by})[0]


def set_role(name: str, role: str | None, *, actor: Actor, now: int) -> None:
    """Make somebody an operator with this role, or with None no operator any more. The last admin stays one."""
    with transaction.atomic():
        database.lock("operators")  # else two admins could end each other's role at the same moment
        before = Operator.objects.filter(name=name).first()
        others = Operator.objects.filter(role="admin").exclude(name=name)
        if before and before.role == "admin" and role != "admin" and not others.exists():
            raise UsageError(f"{name} is the last admin", hint="make somebody else an admin first")
        if role is None:
            Operator.objects.filter(name=name).delete()
            User.objects.filter(username=name).delete()  # and the sessions, also should there be one of that name again
            SignInLink.objects.filter(operator=name).delete()  # that nobody has opened yet
        else:
            ensure_operator(name, role, by=actor.name, now=now)
            Operator.objects.filter(name=name).update(role=role)
        detail = {"operator": name, "before": before.role if before else None, "after": role}
        audit.record([Event("operator.role", detail=detail)], actor=actor, now=now)


# Tokens.


def make_token(
    operator: str, role: str, *, seconds: int, note: str, actor: Actor, now: int
) -> tuple[str, OperatorToken]:
    """A new token of an operator, and its row. The token itself is shown here and never again. Raises UsageError."""
    owner = Operator.objects.filter(name=operator).first()
    if owner is None:
        raise UsageError(f"there is no operator {operator!r}", hint=f"pi-fleet operator set {operator} reader")
    if RANK[role] > RANK[owner.role]:
        raise UsageError(f"{operator} is {owner.role}, and a token cannot do more", hint=f"--role {owner.role}")
    prefix, secret = TOKEN_MARK + secrets.token_hex(4), secrets.token_urlsafe(32)
    with transaction.atomic():
        row = OperatorToken.objects.create(
            prefix=prefix,
            token_hash=secret_hash(f"{prefix}_{secret}"),
            operator=owner,
            role=role,
            note=note,
            created_at=now,
            expires_at=now + min(seconds, MAX_TOKEN_SECONDS),
        )
        detail = {"token": prefix, "operator": operator, "role": role, "expires": row.expires_at, "note": note}
        audit.record([Event("operator-token.create", detail=detail)], actor=actor, now=now)
    return f"{prefix}_{secret}", row


def revoke_token(prefix: str, *, actor: Actor, now: int) -> bool:
    """End a token at once; False when there is no such token in force."""
    with transaction.atomic():
        ended = OperatorToken.objects.filter(prefix=prefix, revoked_at=None).update(revoked_at=now) == 1
        result = "done" if ended else "refused"
        audit.record(
            [Event("operator-token.revoke", result=result, detail={"token": prefix[:64]})], actor=actor, now=now
        )
    return ended


def _by_token(authorization: str, source: str, now: int) -> Caller | None:
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.startswith(TOKEN_MARK):
        return None
    found = OperatorToken.objects.filter(token_hash=secret_hash(token), revoked_at=None, expires_at__gt=now)
    row = found.select_related("operator").first()
    if row is None:
        return None
    if row.used_at is None or row.used_at < now - NOTE_EVERY:  # to the minute: a script that polls must not write
        with suppress(DatabaseError), transaction.atomic():  # a database that is locked can still be asked
            OperatorToken.objects.filter(pk=row.pk).update(used_at=now)
    role = min(row.role, row.operator.role, key=RANK.__getitem__)
    return Caller(row.operator.name, role, f"{source} {row.prefix}")
