"""What may stand where a query is being typed: fields, or after a colon values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pi_agent.catalogue import FIELDS, Field, fold, lower, quote
from pi_agent.lexing import Span, masked_text

MOST = 50


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Put ``text`` in place of the characters from ``start`` to ``end``; ``help`` says what it is."""

    start: int
    end: int
    text: str
    help: str


def complete(text: str, cursor: int, known: Mapping[str, Iterable[str]] | None = None) -> list[Suggestion]:
    """Fields, or after a colon values, that fit what stands before the cursor. Never raises.

    ``known`` adds values that the caller has seen, such as the tags in use.
    """
    masked, _ = masked_text(text[: max(cursor, 0)])
    start = max(masked.rfind(mark) for mark in " ()") + 1
    start = len(masked) - len(masked[start:].lstrip("-"))
    name, colon, value = masked[start:].partition(":")
    field = FIELDS.get(lower(name))
    if colon:
        start += len(name) + 1 + value.rfind(",") + 1
        offers = _offers(field, str(Span(start, masked[start:])), known or {}) if field else []
    else:
        offers = [(f"{field.name}:", field.help) for field in FIELDS.values() if field.name.startswith(lower(name))]
    return [Suggestion(start, len(masked), offer, what) for offer, what in offers[:MOST]]


def _offers(field: Field, typed: str, known: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """The values that begin as typed, in the spelling that the grammar takes, and what they are."""
    none = ("none",) if field.optional and field.kind != "time" and "none".startswith(lower(typed)) else ()
    values = (*field.values, *filter(str.isprintable, known.get(field.name, ())))
    begun = [value for value in dict.fromkeys(values) if fold(field.name, value).startswith(fold(field.name, typed))]
    if field.kind in ("text", "hex", "known"):
        begun = [quote(fold(field.name, value) if field.kind == "known" else value) for value in begun]
    return [(value, field.help) for value in (*begun, *none)]
