"""A ``Query`` as a condition of the database: the same answer as ``query.matches``, in SQL with bound parameters only.

Two rules make it the same. What is unknown (NULL) matches no comparison, so inside NOT each one says ``IS NOT NULL``
beside it, and NOT has no third truth value to trip over; elsewhere that would only take time. And text is compared
folded: ``*_key`` columns are stored that way, others are folded here, and the letters A-Z are all that folding touches,
on every database.
"""

from __future__ import annotations

from functools import reduce
from operator import and_, or_
from typing import Any

from django.db.models import BooleanField, Exists, F, Func, OuterRef, Q, TextField, Value
from django.db.models.expressions import Combinable
from django.db.models.lookups import Exact

from pi_agent.catalogue import Between, Flag, Is, Unknown, Word
from pi_agent.fleet.models import DeviceTag
from pi_agent.query import And, Node, Not, Or, Query

COLUMNS = {
    "name": "name_key",
    "model": "model_key",
    "memory": "memory_mib",
    "serial": "serial",
    "revision": "revision",
    "rev": "pcb_revision",
    "soc": "soc",
    "maker": "maker",
    "status": "status",
    "auth": "auth_at",
    "seen": "seen_at",
    "refused": "refused_at",
    "created": "created_at",
    "late": "due_at",
    "key": "key_protection",
    "agent": "agent_version",
    "id": "client_id",
    "overvoltage": "overvoltage",
    "warranty": "warranty",
    "simulated": "simulated",
}
BOARD = ("model", "memory")  # the index device_board_auth has these, and then ``auth``
FOLDED_HERE = frozenset({"rev", "soc", "maker", "agent"})  # every other text column holds folded text

NOTHING = Q(pk__in=())
EVERYTHING = ~NOTHING


class AsciiLower(Func):
    """LOWER for A-Z alone: what SQLite does, and PostgreSQL in the C collation."""

    function = "LOWER"
    output_field = TextField()

    def as_postgresql(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template='LOWER(%(expressions)s COLLATE "C")', **context)


class Like(Func):
    """LIKE with a backslash as its escape."""

    arg_joiner = " LIKE "
    template = "%(expressions)s ESCAPE '\\'"
    output_field = BooleanField()


class Opaque(Func):
    """An expression that SQLite finds no index for, so that the other terms beside it choose one (unary plus does that)."""

    template = "(%(expressions)s)"

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="+(%(expressions)s)", **context)


def opaque(condition: Q) -> Q:
    """The same condition, but no index is chosen for it."""
    return Q(Opaque(condition, output_field=BooleanField()))


def condition(query: Query) -> Q:
    """The devices that a query asks for."""
    return _node(query.root, query.now)


def bounds(query: Query, field: str) -> Q:
    """What a query demands, in all cases, of the columns by which one index finds its devices in the order of a field."""
    parts = query.root.parts if isinstance(query.root, And) else (query.root,)
    tests = [part for part in parts if isinstance(part, Is | Between)]
    fixed = {test.field for test in tests if _is_one_value(test)}
    columns = {field, *BOARD} if field == "auth" and fixed.issuperset(BOARD) else {field}
    return reduce(and_, (_node(test, query.now) for test in tests if test.field in columns), EVERYTHING)


def _is_one_value(test: Is | Between) -> bool:
    return len(test.parts) == 1 if isinstance(test, Is) else test.low is not None and test.high == test.low + 1


def _node(node: Node, now: int, *, negated: bool = False) -> Q:
    match node:
        case And(parts):
            return reduce(and_, (_node(part, now, negated=negated) for part in parts), EVERYTHING)
        case Or(parts):
            return reduce(or_, (_node(part, now, negated=negated) for part in parts), NOTHING)
        case Word():
            return reduce(or_, (_node(test, now, negated=negated) for test in node.alternatives()), NOTHING)
        case Not(part):
            return ~_node(part, now, negated=True)
        case Is("tag", parts):
            return Q(pk__in=DeviceTag.objects.filter(fits(F("tag_key"), parts)).values("device"))  # from tag to device
        case Unknown("tag"):
            return ~Q(Exists(DeviceTag.objects.filter(device=OuterRef("pk"))))
        case Unknown(field):
            return ~_known(field)
        case _:
            return _known(node.field) & _compared(node, now) if negated else _compared(node, now)


def _compared(test: Is | Between | Flag, now: int) -> Q:
    match test:
        case Is(field, parts):
            column = F(COLUMNS[field])
            return fits(AsciiLower(column) if field in FOLDED_HERE else column, parts)
        case Between(field, low, high):
            return _between(COLUMNS[field], low, high)
        case Flag("late", value):
            return Q(due_at__lt=now) if value else Q(due_at__gte=now)
        case Flag(field, value):
            return Q(**{COLUMNS[field]: value})


def _known(field: str) -> Q:
    return Q(**{f"{COLUMNS[field]}__isnull": False})


def _between(column: str, low: int | None, high: int | None) -> Q:
    if low is not None and high == low + 1:
        return Q(**{column: low})
    at_least = Q(**{f"{column}__gte": low}) if low is not None else EVERYTHING
    return at_least & (Q(**{f"{column}__lt": high}) if high is not None else EVERYTHING)


def fits(column: Combinable, parts: tuple[str, ...]) -> Q:
    """Folded text in a column fits a pattern, whose pieces stand between its wildcards."""
    if len(parts) == 1:
        return Q(Exact(column, Value(parts[0])))
    pattern = "%".join(part.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") for part in parts)
    return Q(Like(column, Value(pattern)))
