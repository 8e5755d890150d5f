"""The field catalogue: what a fleet can be asked about, and how each kind of value is written, compared and said.

One table, ``FIELDS``, feeds the query parser, completion, suggestions, columns, the CSV header, the API description and
the documentation, so that they cannot disagree. The rules it keeps:

* a comparison that exists is valid and typed: memory in MiB, times in epoch seconds (UTC), text as a wildcard pattern
  kept in pieces, so that whoever turns it into SQL binds values and never pastes them;
* text is compared after ``fold``: the letters A-Z without regard to case, and no others (the one rule that Python,
  SQLite and PostgreSQL can all keep), and models by their short name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pi_agent import protection
from pi_agent.errors import UsageError
from pi_agent.revision import MANUFACTURERS, MODELS_500, OLD_STYLE, PROCESSORS, TYPES

TYPE_CHECKING = False  # type checkers take it for true; the module typing would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Literal

    Kind = Literal["text", "hex", "known", "choice", "size", "time", "flag"]


@dataclass(frozen=True, slots=True)
class Field:
    """One thing that a device can be asked about.

    ``values`` are all values of a ``choice``, those known today of a ``known`` field, and examples for the other kinds.
    ``many``: a device has any number of values. ``optional``: a device may have none. ``phrase``: the verb of a time.
    """

    name: str
    title: str
    kind: Kind
    help: str
    values: tuple[str, ...] = ()
    indexed: bool = False
    many: bool = False
    optional: bool = True
    phrase: str = ""


@dataclass(frozen=True, slots=True)
class Is:
    """Text equals a pattern: the pieces of folded text between the wildcards, so ``*8f3a`` is ``("", "8f3a")``."""

    field: str
    parts: tuple[str, ...]

    def __str__(self) -> str:
        return pattern_text(self.parts)

    def holds(self, value: object) -> bool:
        values = (value,) if isinstance(value, str) else value
        return isinstance(values, Iterable) and any(glob(self.parts, fold(self.field, text)) for text in values)


@dataclass(frozen=True, slots=True)
class Between:
    """``low <= value < high`` in MiB or epoch seconds; None is an open end. ``text`` is how it was asked."""

    field: str
    low: int | None
    high: int | None
    text: str

    def __str__(self) -> str:
        return self.text

    def holds(self, value: object) -> bool:
        if not isinstance(value, int):
            return False
        return (self.low is None or self.low <= value) and (self.high is None or value < self.high)


@dataclass(frozen=True, slots=True)
class Flag:
    """A yes-or-no fact has this value."""

    field: str
    value: bool

    def __str__(self) -> str:
        return "true" if self.value else "false"

    def holds(self, value: object) -> bool:
        return value is self.value


@dataclass(frozen=True, slots=True)
class Unknown:
    """The device has no value there at all: ``none``, and ``never`` for times."""

    field: str

    def __str__(self) -> str:
        return "never" if EVERY_FIELD[self.field].kind == "time" else "none"

    def holds(self, value: object) -> bool:
        return value is None or (EVERY_FIELD[self.field].many and not value)


@dataclass(frozen=True, slots=True)
class Word:
    """A word without a field: a pattern for any of WORD_FIELDS. A plain word may stand anywhere: ``("", "lab", "")``."""

    parts: tuple[str, ...]
    field = ""

    @property
    def plain(self) -> bool:
        return len(self.parts) == 3 and self.parts[0] == self.parts[2] == ""

    def __str__(self) -> str:
        return quote(self.parts[1]) if self.plain else pattern_text(self.parts)

    def alternatives(self) -> tuple[Is, ...]:
        """The comparisons of which one has to hold."""
        found = (Is(name, tuple(fold(name, part) for part in self.parts)) for name in WORD_FIELDS)
        # A word such as "pi" is empty as a model, and would match every one of them.
        return tuple(test for test in found if any(test.parts) or not any(self.parts))


Comparison = Is | Between | Flag | Unknown
Leaf = Comparison | Word

MODELS = {**dict(TYPES.values()), **dict(MODELS_500.values())}
SOCS = tuple(PROCESSORS.values())
MAKERS = tuple(dict.fromkeys((*MANUFACTURERS.values(), *(maker for *_, maker in OLD_STYLE.values()))))
STATUSES = ("pending", "approved", "quarantined", "revoked", "rejected")
PROTECTIONS = tuple(protection.PROTECTIONS)
SIZES = ("256mb", "512mb", "1gb", "2gb", "4gb", "8gb", "16gb", ">=1gb", "512mb..2gb")
TIMES = ("1h", "1d", "7d", "30d", "older:1d", "older:30d", "never")
FLAGS = ("true", "false")

FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("name", "Name", "text", "the name an operator gave it", indexed=True),
        Field("model", "Model", "known", "the board, by its short or full name", tuple(MODELS), indexed=True),
        Field("memory", "Memory", "size", "memory fitted on the board", SIZES, indexed=True),
        Field("serial", "Serial", "hex", "the serial number of the board", indexed=True),
        Field("revision", "Revision", "hex", "the revision code without its flags", ("a01041",)),
        Field("rev", "PCB", "text", "the revision of the circuit board", ("1.0", "1.1", "1.2")),
        Field("soc", "SoC", "known", "the system on the chip", SOCS),
        Field("maker", "Maker", "known", "who made the board", MAKERS),
        Field("status", "Status", "choice", "where it stands in its life", STATUSES, indexed=True, optional=False),
        Field("auth", "Authenticated", "time", "its last successful token", TIMES, True, phrase="authenticated"),
        Field("seen", "Seen", "time", "its last contact of any kind", TIMES, True, phrase="seen"),
        Field("refused", "Refused", "time", "its last refused token", TIMES, True, phrase="refused"),
        Field("created", "Created", "time", "when it came here", TIMES[:-1], True, optional=False, phrase="created"),
        Field("late", "Late", "flag", "whether it is overdue, by its own rhythm", FLAGS),
        Field("key", "Key", "choice", "how its private key is protected", PROTECTIONS),
        Field("agent", "Agent", "text", "the version of its agent"),
        Field("tag", "Tags", "text", "a tag that an operator gave it", indexed=True, many=True),
        Field("id", "ID", "text", "its client_id", indexed=True, optional=False),
        Field("overvoltage", "Overvoltage", "flag", "whether the board allows overvoltage", FLAGS),
        Field("warranty", "Warranty", "flag", "whether a warranty bit is set", FLAGS),
        Field("simulated", "Simulated", "flag", "whether it is a simulated board", FLAGS, optional=False),
    )
}
RESULTS = ("done", "refused", "noticed")
AUDIT_FIELDS: dict[str, Field] = {  # what the audit log can be asked about
    field.name: field
    for field in (
        Field("at", "Time", "time", "when it happened", TIMES[:-1], True, optional=False, phrase="happened"),
        Field("actor", "Who", "text", "who did it: an operator, a device or the server", optional=False),
        Field("action", "Action", "text", "what was done", ("device.approve", "device.revoke"), True, optional=False),
        Field("device", "Device", "text", "the id of the device it was done to", indexed=True, optional=False),
        Field("result", "Result", "choice", "how it ended", RESULTS, optional=False),
        Field("source", "From", "text", "where the request came from", optional=False),
    )
}
EVERY_FIELD = FIELDS | AUDIT_FIELDS
WORD_FIELDS = ("name", "serial", "model")
SYNONYMS = {
    "board": "model", "cpu": "soc", "hostname": "name", "label": "tag", "lastseen": "seen", "last_seen": "seen",
    "login": "auth", "manufacturer": "maker", "mem": "memory", "processor": "soc", "protection": "key", "ram": "memory",
    "state": "status", "tags": "tag", "version": "agent",
}  # fmt: skip

KINDS: dict[Kind, str] = {
    "text": "any text; `*` stands for any part of it",
    "hex": "hexadecimal digits; `*` stands for any",
    "known": "one of those known today, or a pattern with `*`",
    "choice": "one of the list",
    "size": "`1gb`, `512mb`, `1024` (MiB); `>` `>=` `<` `<=`; `a..b` `a..` `..b`",
    "time": "`1d` (within), `older:1d` (before), a date; `a..b` `a..` `..b` of dates",
    "flag": "`true`, `false`",
}
SHORTCUTS: dict[str, dict[str, str]] = {
    "key": {"firmware": "firmware-otp", "otp": "firmware-otp"},
    "model": {
        "1a": "a",
        "1a+": "a+",
        "1b": "b",
        "1b+": "b+",
        "2": "2b",
        "4": "4b",
        "cm": "cm1",
        "computemodule": "cm1",
    },
    "soc": {soc[3:].lower(): soc.lower() for soc in SOCS},
    **{name: {"yes": "true", "no": "false"} for name, field in FIELDS.items() if field.kind == "flag"},
}
BRANDS = ("raspberry", "rpi", "pi")

MAX_WILDCARDS = 4  # each one more multiplies what a LIKE may cost on text that a device chose
MAX_MIB = 2**31 - 2  # one more still fits the integer column of every database
MAX_AGE = 100 * 366 * 86400
UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
MOMENTS = {10: (86400, "%Y-%m-%d"), 16: (60, "%Y-%m-%dT%H:%M"), 19: (1, "%Y-%m-%dT%H:%M:%S")}
YEARS = range(1970, 3000)
ORDER = (">=", "<=", ">", "<", "=")

_LOWER = str.maketrans("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")
_GAPS = str.maketrans("", "", " -_")
_UNQUOTED = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+_-/@#%")
_RESERVED = frozenset(("none", "never", "or", "and", "not"))


def lower(text: str) -> str:
    """Fold the letters A-Z, and no others."""
    return text.translate(_LOWER)


def model_key(text: str) -> str:
    """The normal form of a model, from its short type or its full name: ``Zero 2 W`` is ``zero2w``."""
    squeezed = lower(text).translate(_GAPS).replace("plus", "+")
    while brand := next((brand for brand in BRANDS if squeezed.startswith(brand)), ""):
        squeezed = squeezed.removeprefix(brand)
    return _LONG_MODELS.get(squeezed, squeezed)


_LONG_MODELS: dict[str, str] = {}
_LONG_MODELS.update({model_key(long): model_key(short) for short, long in MODELS.items()})


def fold(field: str, text: str) -> str:
    """The form in which text of a field is compared; a database keeps or computes the same beside the original."""
    return model_key(text) if field == "model" else lower(text)


def glob(parts: tuple[str, ...], text: str) -> bool:
    """Whether folded text fits a pattern: its first and last pieces at the ends, the others between them in order."""
    if len(parts) == 1:
        return text == parts[0]
    first, *middle, last = parts
    at, end = len(first), len(text) - len(last)
    if at > end or not (text.startswith(first) and text.endswith(last)):
        return False
    for part in middle:
        at = text.find(part, at, end) + len(part)
        if at < len(part):
            return False
    return True


def quote(text: str) -> str:
    """One piece of text, in quotes where the grammar would read it as something else."""
    plain = all(char in _UNQUOTED or (char > "\x7f" and char.isalnum()) for char in text)
    if plain and not text.startswith(("-", "@")) and lower(text) not in _RESERVED:
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def joined(pieces: Iterable[str]) -> tuple[str, ...]:
    """The pieces of a pattern, where ``**`` means no more than ``*``."""
    first, *rest = pieces
    return (first, *filter(None, rest[:-1]), *rest[-1:])


def pattern_text(parts: Iterable[str]) -> str:
    """A pattern as it is typed."""
    return "*".join(quote(part) if part else "" for part in parts)


def nearest(text: str, known: Iterable[str]) -> str | None:
    """The known word that was probably meant, or None."""
    from difflib import get_close_matches  # only a mistake pays for this import

    return next(iter(get_close_matches(lower(text)[:64], list(known), 1, 0.6)), None)


def columns_of(text: str) -> tuple[str, ...]:
    """The fields of ``name,model,auth``. Raises UsageError."""
    names = tuple(filter(None, text.replace(" ", "").split(",")))
    for name in names:
        if name not in FIELDS:
            near = nearest(name, FIELDS)
            hint = f"did you mean {near}?" if near else f"the columns are {', '.join(FIELDS)}"
            raise UsageError(f"there is no column {name[:40]!r}", hint=hint)
    return names


def shown(text: str) -> str:
    """Text of a query as an error repeats it: cut short."""
    return f"'{text if len(text) <= 40 else text[:37] + '...'}'"


def size_text(mib: int) -> str:
    """``1gb`` where that is exact, else ``1536mb``."""
    return f"{mib // 1024}gb" if mib and mib % 1024 == 0 else f"{mib}mb"


def moment(text: str) -> tuple[int, int, str] | None:
    """Start, end (exclusive) and the one spelling of a UTC day, minute or second; the times in epoch seconds."""
    spelling = text.upper().removesuffix("Z")
    span, form = MOMENTS.get(len(spelling), (0, ""))
    try:
        at = datetime.fromisoformat(spelling).replace(tzinfo=UTC)
    except ValueError:
        return None
    # fromisoformat also reads week dates and offsets; only what we would write ourselves counts.
    if at.year not in YEARS or at.strftime(form) != spelling:
        return None
    start = int(at.timestamp())
    return start, start + span, spelling
