"""The audit log as operators read it: by query, newest first, and whether it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

from django.db.models import F, Q

from pi_agent import query as query_language
from pi_agent.catalogue import AUDIT_FIELDS, Between, Is
from pi_agent.errors import UsageError
from pi_agent.fleet import audit
from pi_agent.fleet.models import AuditEvent
from pi_agent.fleet.selection import EVERYTHING, NOTHING, AsciiLower, fits
from pi_agent.query import And, Node, Not, Or

MAX_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Page:
    """Events, newest first; ``before`` asks for the next page, None at the end."""

    meaning: str
    as_of: int
    events: Sequence[AuditEvent]
    before: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """``lines`` were looked at; ``broken`` is the id of the first that does not follow, None when all do.

    ``last`` is the digest of the newest line: kept elsewhere, it shows later whether lines were cut off at the end.
    """

    lines: int
    broken: int | None
    last: str


def find(text: str, *, now: int, limit: int = 100, before: int = 0) -> Page:
    """One page of the events that a query of the audit log asks for. Raises QueryError, or UsageError for a bad page."""
    if not 1 <= limit <= MAX_LIMIT:
        raise UsageError(f"the limit is {limit}", hint=f"it may be 1 to {MAX_LIMIT}")
    query = query_language.parse(text, now, AUDIT_FIELDS)
    rows = AuditEvent.objects.filter(_node(query.root)).order_by("-pk")
    if before:
        rows = rows.filter(pk__lt=min(before, 2**62))
    found = list(rows[: limit + 1])
    meaning = "all events" if query.root == query_language.ALL else query.meaning()
    return Page(meaning, now, found[:limit], found[limit - 1].pk if len(found) > limit else None)


def verify() -> Report:
    """Whether the chain of the audit log is whole."""
    last = AuditEvent.objects.order_by("-pk").values_list("digest", flat=True).first() or audit.FIRST
    return Report(AuditEvent.objects.count(), audit.verify(), last)


def _node(node: Node) -> Q:
    match node:
        case And(parts):
            return reduce(and_, map(_node, parts), EVERYTHING)
        case Or(parts):
            return reduce(or_, map(_node, parts), NOTHING)
        case Not(part):
            return ~_node(part)
        case Is("action" | "device" | "result", (text,)):  # written in small letters by ourselves, so an index serves
            return Q(**{node.field: text})
        case Is(field, parts):
            return Q(fits(AsciiLower(F(field)), parts))
        case Between(field, low, high):
            at_least = Q(**{f"{field}__gte": low}) if low is not None else EVERYTHING
            return at_least & (Q(**{f"{field}__lt": high}) if high is not None else EVERYTHING)
    raise AssertionError(f"the fields of the audit log have no {type(node).__name__}")
