"""The field catalogue: what a fleet can be asked about, and how each kind of value is written, compared and said.

One table, ``FIELDS``, feeds the query parser, completion, suggestions, columns, the CSV header, the API description and
the documentation, so that they cannot disagree. The rules it keeps:

* a comparison that exists is valid and typed: memory in MiB, times in epoch seconds (UTC), text as a wildcard pattern
  kept in pieces, so that whoever turns it into SQL binds values and never pastes them;
* text is compared after ``fold``: the letters A-Z without regard to case, and no others (the one rule that Python,
  SQLite and PostgreSQL can all keep), and models by their short name;
* ``read_value`` makes of ``str(comparison)`` the same comparison again;
* a value that means nothing raises QueryError; here its ``suggestion`` is a value that would work in that place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from pi_agent.errors import QueryError
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
        return "never" if FIELDS[self.field].kind == "time" else "none"

    def holds(self, value: object) -> bool:
        return value is None or (FIELDS[self.field].many and not value)


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
PROTECTIONS = ("file", "firmware-otp", "tpm")
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
        Field("key", "Key", "choice", "how its private key is protected", PROTECTIONS),
        Field("agent", "Agent", "text", "the version of its agent"),
        Field("tag", "Tags", "text", "a tag that an operator gave it", indexed=True, many=True),
        Field("id", "ID", "text", "its client_id", indexed=True, optional=False),
        Field("overvoltage", "Overvoltage", "flag", "whether the board allows overvoltage", FLAGS),
        Field("warranty", "Warranty", "flag", "whether a warranty bit is set", FLAGS),
        Field("simulated", "Simulated", "flag", "whether it is a simulated board", FLAGS, optional=False),
    )
}
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
    "key": {"firmware": "firmware-otp"},
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
    if plain and not text.startswith("-") and lower(text) not in _RESERVED:
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


def shown(text: str) -> str:
    """Text of a query as an error repeats it: cut short."""
    return f"'{text if len(text) <= 40 else text[:37] + '...'}'"


def size_mib(text: str) -> int:
    """MiB of ``1gb``, ``512mb`` or ``1024``; 1 GB is 1024 MiB, as memory is sold. Raises QueryError."""
    number = text.rstrip("bgim")
    unit = text[len(number) :]
    if not _is_number(number) or unit not in ("", "m", "mb", "mib", "g", "gb", "gib"):
        raise QueryError(f"{shown(text)} is not a size", hint="write 1gb, 512mb, or a number of MiB such as 1024")
    mib = int(number) * (1024 if unit.startswith("g") else 1)
    if mib > MAX_MIB:
        raise QueryError(f"the size {shown(text)} is too large", hint=f"the largest is {MAX_MIB // 1024}gb")
    return mib


def size_text(mib: int) -> str:
    """``1gb`` where that is exact, else ``1536mb``."""
    return f"{mib // 1024}gb" if mib and mib % 1024 == 0 else f"{mib}mb"


def age_seconds(text: str) -> int:
    """Seconds of an age: a number and s, m (minutes), h, d or w. Raises QueryError."""
    if not _is_number(text[:-1]) or text[-1] not in UNIT_SECONDS:
        hint = "write an age such as 30m (minutes), 12h, 1d or 2w, a date such as 2026-11-01, or never"
        raise QueryError(f"{shown(text)} is neither an age nor a date", hint=hint)
    seconds = int(text[:-1]) * UNIT_SECONDS[text[-1]]
    if seconds > MAX_AGE:
        raise QueryError(f"the age {shown(text)} is longer than 100 years", hint="never is for what did not happen")
    return seconds


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10


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


def read_value(field: Field, parts: tuple[str, ...], *, quoted: bool, now: int) -> Comparison:
    """The comparison that a value asks for; ``parts`` are its pieces between unquoted wildcards. Raises QueryError."""
    text = lower("*".join(parts))
    if not text:
        raise QueryError(f"no value after '{field.name}:'", hint=example(field))
    if not quoted and text == ("never" if field.kind == "time" else "none"):
        if not field.optional:
            raise QueryError(f"every device has a value for '{field.name}'", hint=example(field))
        return Unknown(field.name)
    if field.kind == "time":
        return _read_time(field, text, now)
    if field.kind == "size":
        return _read_size(field, text)
    if field.kind == "flag":
        return Flag(field.name, _choice(field, text) == "true")
    if field.kind == "choice":
        return Is(field.name, (_choice(field, text),))
    return Is(field.name, _read_text(field, parts, quoted))


def example(field: Field) -> str:
    """A hint that shows a value of the field."""
    return f"for example {field.name}:{quote(field.values[0]) if field.values else '*a1*'}"


def _read_text(field: Field, parts: tuple[str, ...], quoted: bool) -> tuple[str, ...]:
    folded = joined(fold(field.name, part) for part in parts)
    if len(parts) > MAX_WILDCARDS + 1:
        raise QueryError(f"more than {MAX_WILDCARDS} wildcards in one value")
    if not quoted and parts[0].startswith("-"):
        raise QueryError("a minus stands before the field, not before its value", hint=f"write -{field.name}:VALUE")
    if not quoted and parts[0].startswith(ORDER):
        raise QueryError(f"'{field.name}' is text and cannot be greater or less", hint=example(field))
    if field.kind == "hex" and "".join(folded).strip("0123456789abcdef"):
        raise QueryError(f"{shown('*'.join(parts))} is not hexadecimal", hint="use 0-9, a-f, and * for any of them")
    return (_known(field, parts[0]),) if field.kind == "known" and len(folded) == 1 else folded


def _known(field: Field, text: str) -> str:
    """A value of a list that newer boards may extend: it must be on the list, unless it is written as a pattern."""
    keys = [fold(field.name, value) for value in field.values]
    key = fold(field.name, text)
    key = SHORTCUTS.get(field.name, {}).get(key, key)
    if key in keys:
        return key
    family = f"{quote(key)}*" if key and any(known.startswith(key) for known in keys) else None
    better = family or ((close := nearest(key, keys)) and quote(close))
    hint = (
        f"known are {', '.join(field.values)}; ask for a newer one with a wildcard, {field.name}:{key and quote(key)}*"
    )
    raise QueryError(f"no {field.name} {shown(text)} is known", suggestion=better, hint=None if better else hint)


def _choice(field: Field, text: str) -> str:
    value = SHORTCUTS.get(field.name, {}).get(text, text)
    if value not in field.values:
        message = f"'{field.name}' is one of {', '.join(field.values)}, not {shown(text)},"
        raise QueryError(message, suggestion=nearest(text, field.values))
    return value


def _read_size(field: Field, text: str) -> Between:
    sign = next((sign for sign in ORDER if text.startswith(sign)), "")
    if not sign and ".." in text:
        return _range(field, text, _size_end)
    mib = size_mib(text[len(sign) :])
    low = {">": mib + 1, "<": None, "<=": None}.get(sign, mib)
    high = {"<": mib, ">": None, ">=": None}.get(sign, mib + 1)
    return Between(field.name, low, high, sign.removeprefix("=") + size_text(mib))


def _size_end(text: str) -> tuple[int, int, str]:
    mib = size_mib(text)
    return mib, mib + 1, size_text(mib)


def _read_time(field: Field, text: str, now: int) -> Between:
    if sign := next((sign for sign in ORDER if text.startswith(sign)), ""):
        raise _unordered(field, sign, text.removeprefix(sign))
    if ".." in text:
        return _range(field, text, _time_end)
    older = text.removeprefix("older:")
    found = moment(older)
    low, high, spelling = found or (now - age_seconds(older), None, f"{int(older[:-1])}{older[-1]}")
    if older == text:
        return Between(field.name, low, high, spelling)
    return Between(field.name, None, low, f"older:{spelling}")


def _time_end(text: str) -> tuple[int, int, str]:
    if (found := moment(text)) is None:
        hint = "a range is of dates, such as 2026-11-01..2026-11-07; for ages write two terms, such as auth:30d auth:older:7d"
        raise QueryError(f"{shown(text)} is not a date", hint=hint)
    return found


def _unordered(field: Field, sign: str, text: str) -> QueryError:
    """Tools disagree whether ``<1d`` means younger or earlier, so it is refused with both readings at hand."""
    if (found := moment(text)) is not None:
        return QueryError(f"a date takes no '{sign}'", suggestion=f"..{found[2]}" if "<" in sign else f"{found[2]}..")
    age_seconds(text)
    within, before = f"{field.name}:{text}", f"{field.name}:older:{text}"
    hint = f"did you mean {within} (within the past {text}) or {before}?"
    return QueryError(f"an age takes no '{sign}'", suggestion=text, hint=hint)


def _range(field: Field, text: str, end: Callable[[str], tuple[int, int, str]]) -> Between:
    """``a..b`` with both ends included whole; either may be left out, not both."""
    first, _, last = text.partition("..")
    if not first and not last:
        raise QueryError("a range needs at least one end", hint=example(field))
    low, _, start = end(first) if first else (None, None, "")
    _, high, stop = end(last) if last else (None, None, "")
    if low is not None and high is not None and low >= high:
        raise QueryError("the range ends before it begins", suggestion=f"{stop}..{start}")
    return Between(field.name, low, high, f"{start}..{stop}")
