"""The values of a query, from text to typed comparisons; each knows what would have been right in its place.

``read_value`` makes of ``str(comparison)`` the same comparison again. A value that means nothing raises QueryError; here
its ``suggestion`` is a value that would work in that place.
"""

from __future__ import annotations

from collections.abc import Callable

from pi_agent.catalogue import (
    MAX_AGE,
    MAX_MIB,
    MAX_WILDCARDS,
    ORDER,
    SHORTCUTS,
    UNIT_SECONDS,
    Between,
    Comparison,
    Field,
    Flag,
    Is,
    Unknown,
    fold,
    joined,
    lower,
    moment,
    nearest,
    quote,
    shown,
    size_text,
)
from pi_agent.errors import QueryError


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
