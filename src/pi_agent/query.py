"""The query language: ``model:2b memory:1gb auth:1d -tag:lab`` as a value that everything else is made from.

One ``Query`` serves the command line, REST, the pages, CSV and bulk action, so what is changed is what was shown.

    query := and ("OR" and)*      and := not ("AND"? not)*      not := ("-" | "NOT") not | "(" query ")" | term
    term  := field ":" value ("," value)*  |  word ("," word)*

A space is AND, a comma is OR, a minus is NOT, ``*`` is any text; inside quotes all of these are plain text. The rules:

* a Query that exists is valid, typed and bounded (length, depth, terms, wildcards): a compiler needs no checks;
* ages are resolved when the text is parsed, against ``now``, which is an argument;
* ``parse(str(query), query.now) == query``, and ``matches`` is what every compiler must agree with;
* a device that has no value for a field matches none of its comparisons but ``none`` and ``never``; there is no third
  truth value, so ``-tag:lab`` holds for a device without tags;
* a text that means nothing is a QueryError with a position and, where there is one, a query that would work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby

from pi_agent import catalogue, values
from pi_agent.catalogue import EVERY_FIELD, FIELDS, Between, Field, Flag, Is, Leaf, Unknown, Word, fold, lower
from pi_agent.errors import QueryError
from pi_agent.lexing import MARK, Span, masked_text, tokens

MAX_LENGTH = 2000
MAX_DEPTH = 32
MAX_TERMS = 100  # SQLite refuses expressions more than 1000 deep, and a word is three comparisons


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold; without parts it is every device."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of two or more parts holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Node


Node = And | Or | Not | Leaf
ALL = And(())
NOTHING = "-()"  # the text of no device at all


@dataclass(frozen=True, slots=True)
class Query:
    """What was asked, as a tree. ``now`` (epoch seconds, UTC) is the time that its ages count from."""

    root: Node
    now: int

    def __str__(self) -> str:
        """The canonical text of the query."""
        return "" if self.root == ALL else _text(self.root)

    def meaning(self) -> str:
        """The query in plain words, with absolute times in UTC."""
        return "all devices" if self.root == ALL else _words(self.root, ", ")


def all_of(nodes: Iterable[Node]) -> Node:
    """AND, in the one form that a text has: nothing nested, nothing alone."""
    parts = tuple(part for node in nodes for part in (node.parts if isinstance(node, And) else (node,)))
    return parts[0] if len(parts) == 1 else And(parts)


def any_of(nodes: Iterable[Node]) -> Node:
    """OR, in the one form that a text has; of nothing it is no device at all."""
    parts = tuple(part for node in nodes for part in (node.parts if isinstance(node, Or) else (node,)))
    return parts[0] if len(parts) == 1 else Or(parts) if parts else Not(ALL)


def negate(node: Node) -> Node:
    """NOT, in the one form that a text has."""
    return node.part if isinstance(node, Not) else Not(node)


def parse(text: str, now: int, fields: Mapping[str, Field] = FIELDS) -> Query:
    """The query that a text asks of ``fields``, seen from ``now`` (epoch seconds, UTC). Raises QueryError.

    Only a query of devices may have words without a field.
    """
    try:
        return _parse(text, now, fields)
    except QueryError as error:
        error.suggestion = _working(error.suggestion, now, fields)
        error.hint = error.hint or (f"try {error.suggestion}" if error.suggestion else None)
        raise


def _working(suggestion: str | None, now: int, fields: Mapping[str, Field], tries: int = 4) -> str | None:
    """The suggestion with its own mistakes corrected too, or None if it would not work."""
    try:
        return suggestion if suggestion and _parse(suggestion, now, fields) else None
    except QueryError as error:
        return _working(error.suggestion, now, fields, tries - 1) if tries else None


def _parse(text: str, now: int, fields: Mapping[str, Field]) -> Query:
    if len(text) > MAX_LENGTH:
        raise QueryError(f"the query is longer than {MAX_LENGTH} characters", position=MAX_LENGTH)
    for at, char in enumerate(text):
        if not char.isprintable():
            raise QueryError(f"character U+{ord(char):04X} at character {at + 1} cannot be in a query", position=at)
    query = Query(_Parser(text, now, fields).whole(), now)
    if len(str(query)) > MAX_LENGTH:
        raise QueryError(f"written out, the query is longer than {MAX_LENGTH} characters")
    return query


class _Parser:
    """Recursive descent over the tokens of one text. ``depth`` counts open brackets and negations."""

    def __init__(self, text: str, now: int, fields: Mapping[str, Field]) -> None:
        masked, opened = masked_text(text)
        self.text, self.now, self.fields, self.tokens = text, now, fields, tokens(masked)
        self.index = self.depth = self.terms = 0
        if opened is not None:
            raise self.unclosed("quote", opened, '"')

    def whole(self) -> Node:
        self.check_operands()
        node = self.alternatives()
        if self.peek() == ")":
            raise self.error("a bracket is closed that was never opened", self.take()[1], "")
        return node

    def peek(self) -> str:
        return self.tokens[self.index][0]

    def take(self) -> tuple[str, Span]:
        self.index += 1
        return self.tokens[self.index - 1]

    def error(self, what: str, span: Span, better: str | None = None, hint: str | None = None) -> QueryError:
        """An error at a span; ``better`` is what would have worked in its place."""
        rest = self.text[span.start + len(span.masked) :]
        suggestion = None if better is None else (self.text[: span.start] + better + rest).strip()
        message = f"{what} at character {span.start + 1}" + (
            f"; did you mean '{better}'?" if better and not hint else ""
        )
        return QueryError(message, position=span.start, suggestion=suggestion, hint=hint)

    def unclosed(self, what: str, at: int, mark: str) -> QueryError:
        rest = self.text[at:]
        return self.error(f"a {what} is not closed", Span(at, rest), rest.rstrip() + mark, f"close it with {mark}")

    def apart(self, span: Span, length: int) -> QueryError:
        """The sign at the start of a span, which stands apart from the field before it: ``memory >= 1gb``, ``model :2b``."""
        before, after = self.text[: span.start].rstrip(), self.text[span.start + length :].lstrip()
        sign = span.masked[:length].lstrip("=:")
        whole = Span(len(before), self.text[len(before) : len(self.text) - len(after)])
        better = f":{sign}" if before and after else None
        return self.error(f"'{span.masked[:length]}' stands alone", whole, better, "write FIELD:VALUE, without spaces")

    def view(self, span: Span) -> QueryError:
        """A view in the middle. One that stands first was replaced by its query, where views can be asked at all."""
        hint = "write out its query, which pi-fleet view list shows"
        if ("term", span) == self.tokens[0]:
            return self.error(f"the view {catalogue.shown(str(span))} cannot be named here,", span, hint=hint)
        if ("term", span) in self.tokens and not self.depth and "or" not in [kind for kind, _ in self.tokens]:
            hint = (
                f"write {span} {self.text[: span.start]}{self.text[span.start + len(span.masked) :].lstrip()}".strip()
            )
        return self.error("a view stands first, alone or before more words, and not", span, hint=hint)

    def check_operands(self) -> None:
        """Every operator has something after it, and OR and AND something before."""
        before = "end"
        for (kind, span), (after, _) in zip(self.tokens, self.tokens[1:], strict=False):
            if kind in ("or", "and") and before not in ("term", ")"):
                raise self.error(f"nothing stands before '{span}'", span, "")
            if kind in ("or", "and", "not", "-") and after not in ("term", "(", "not", "-"):
                raise self.error(f"nothing stands after '{span}'", span, "")
            before = kind

    def alternatives(self) -> Node:
        nodes = [self.sequence()]
        while self.peek() == "or":
            self.take()
            nodes.append(self.sequence())
        return any_of(nodes)

    def sequence(self) -> Node:
        nodes: list[Node] = []
        while self.peek() not in ("end", ")", "or"):
            if self.peek() == "and":
                self.take()
            nodes.append(self.single())
        return all_of(nodes)

    def single(self) -> Node:
        kind, span = self.take()
        if kind == "term":
            return self.term(span)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} brackets and negations inside each other", span)
        node = self.bracket(span) if kind == "(" else negate(self.single())
        self.depth -= 1
        return node

    def bracket(self, span: Span) -> Node:
        kind, close = self.tokens[self.index]
        if kind == ")" and self.text != NOTHING:  # it would be every device, beside terms that ask for few
            empty = Span(span.start, self.text[span.start : close.start + 1])
            raise self.error("nothing stands in the brackets", empty, "", "leave them out")
        node = self.alternatives()
        if self.take()[0] != ")":
            raise self.unclosed("bracket", span.start, ")")
        return node

    def term(self, span: Span) -> Node:
        name, *value = span.split(":", 1)
        if value and not name.masked:
            raise self.apart(span, 1)
        alternatives = (value or [span])[0].split(",")
        self.terms += len(alternatives)
        if self.terms > MAX_TERMS:
            raise self.error(f"more than {MAX_TERMS} terms", span)
        if not value:
            return any_of(self.word(one) for one in alternatives)
        field = self.field(name)
        if not value[0].masked and (then := self.tokens[self.index])[0] == "term" and ":" not in then[1].masked:
            gap = Span(value[0].start, " " * (then[1].start - value[0].start))
            raise self.error(f"a space stands after '{name}:'", gap, "", "write FIELD:VALUE, without spaces")
        return any_of(self.value(field, one) for one in alternatives)

    def field(self, span: Span) -> Field:
        name = lower(str(span))
        if name in self.fields:
            return self.fields[name]
        synonym = catalogue.SYNONYMS.get(name)
        better = synonym if synonym in self.fields else catalogue.nearest(name, self.fields)
        hint = None if better else f"put it in quotes to search for it; the fields are {', '.join(self.fields)}"
        raise self.error(f"no field {catalogue.shown(str(span))}", span, better, hint)

    def value(self, field: Field, span: Span) -> Node:
        try:
            return values.read_value(field, span.parts(), quoted=MARK in span.masked, now=self.now)
        except QueryError as error:
            raise self.error(str(error), span, error.suggestion, error.hint) from None

    def word(self, span: Span) -> Word:
        parts = tuple(map(lower, span.parts()))
        if parts == ("",):
            raise self.error("there is no text to search for", span)
        if len(parts) > catalogue.MAX_WILDCARDS + 1:
            raise self.error(f"more than {catalogue.MAX_WILDCARDS} wildcards in one word", span)
        if not span.masked.strip("<>="):
            raise self.apart(span, len(span.masked))
        # memory>=1gb is a term that lacks its colon, not a word that no device has.
        name = lower(span.masked.replace(">", "<").replace("=", "<").partition("<")[0])
        if name in self.fields and len(name) < len(span.masked):
            raise self.error(f"a colon is missing after '{name}'", span, f"{name}:{str(span)[len(name) :].lstrip('=')}")
        if self.fields is not FIELDS:
            raise self.error("a word needs a field here", span, hint=f"the fields are {', '.join(self.fields)}")
        if span.masked.startswith("@"):
            raise self.view(span)
        return Word(("", *parts, "") if len(parts) == 1 else parts)


def _groups(parts: tuple[Node, ...]) -> list[list[Node]]:
    """Neighbours that a comma can join: leaves of one field, where a word has the field ''."""
    keyed = groupby(enumerate(parts), lambda item: item[1].field if isinstance(item[1], Leaf) else item[0])
    return [[node for _, node in group] for _, group in keyed]


def _text(node: Node, inside: str = "") -> str:
    """Canonical text; ``inside`` names the operator around it, and so whether it needs brackets."""
    match node:
        case And(parts):
            text = " ".join(_text(part, "and") for part in parts)
            return f"({text})" if inside == "not" or not parts else text
        case Or(parts):
            groups = _groups(parts)
            text = " OR ".join(",".join((_text(first, "or"), *map(str, rest))) for first, *rest in groups)
            return f"({text})" if inside in ("and", "not") and len(groups) > 1 else text
        case Not(part):
            return "-" + _text(part, "not")
        case _:
            return f"{node.field}:{node}".removeprefix(":")


def _words(node: Node, comma: str = "") -> str:
    """The node in words; ``comma`` joins the parts of the outermost AND."""
    match node:
        case And(parts):
            text = (comma or " and ").join(_words(part) for part in parts) or "any device"
            return text if comma or len(parts) < 2 else f"({text})"
        case Or(parts):
            groups = [_words(group[0]) if len(group) == 1 else _leaf_words(group) for group in _groups(parts)]
            return " or ".join(groups) if comma or len(groups) < 2 else f"({' or '.join(groups)})"
        case Not(Is(field, parts)):
            return f"{field} {'is not' if len(parts) == 1 else 'does not match'} {_pattern_words(field, parts)}"
        case Not(part):
            text = _words(part)
            return f"not {text}" if text.startswith("(") and text.endswith(")") else f"not ({text})"
        case _:
            return _leaf_words((node,))


def _leaf_words(leaves: Sequence[Node]) -> str:
    """Leaves of one field, of which one has to hold; what they share is said once."""
    said = [_predicate(leaf) for leaf in leaves if isinstance(leaf, Leaf)]
    verbs = [f"{verb} {' or '.join(what for *_, what in same)}" for verb, same in groupby(said, lambda one: one[1])]
    return f"{said[0][0]} {' or '.join(verbs)}".lstrip()


def _predicate(leaf: Leaf) -> tuple[str, str, str]:
    """Subject, verb and object of a leaf; what is said of a time needs no subject."""
    match leaf:
        case Word():
            return "name, serial or model", "contains" if leaf.plain else "matches", str(leaf)
        case Is(field, parts):
            return field, "is" if len(parts) == 1 else "matches", _pattern_words(field, parts)
        case Flag(field):
            return field, "is", str(leaf)
        case Unknown(field):
            phrase = EVERY_FIELD[field].phrase
            return ("", "never", phrase) if phrase else (field, "is", "not set")
        case Between(field, low, high):
            is_time = EVERY_FIELD[field].kind == "time"
            return ("", *_time_words(EVERY_FIELD[field], low, high)) if is_time else (field, *_size_words(low, high))


def _pattern_words(field: str, parts: tuple[str, ...]) -> str:
    text = catalogue.pattern_text(parts)
    return next((name for name in EVERY_FIELD[field].values if (fold(field, name),) == parts), text)


def _size_words(low: int | None, high: int | None) -> tuple[str, str]:
    texts = map(catalogue.size_text, (low or 0, 0 if high is None else high - 1))
    first, last = (text.replace("gb", " GiB").replace("mb", " MiB") for text in texts)
    if low is None or high is None:
        return ("is at least", first) if high is None else ("is at most", last)
    return "is", first if first == last else f"{first} to {last}"


def _time_words(field: Field, low: int | None, high: int | None) -> tuple[str, str]:
    last = f"last {field.phrase}" if field.optional else field.phrase
    if low is None or high is None:
        return (f"{field.phrase} after", _utc(low or 0)) if high is None else (f"{last} before", _utc(high))
    return f"{last} between", f"{_utc(low)} and {_utc(high)}"


def _utc(epoch: int) -> str:
    form = "%Y-%m-%d %H:%M:%S UTC" if epoch % 60 else "%Y-%m-%d %H:%M UTC"
    return datetime.fromtimestamp(epoch, tz=UTC).strftime(form)


def matches(query: Query | Node, row: Mapping[str, object]) -> bool:
    """Whether a device matches: the answer that every compiler must give.

    ``row`` maps field names to text, MiB, epoch seconds or truth, and ``tag`` to a collection; what is missing is None.
    """
    match query:
        case Query(root):
            return matches(root, row)
        case And(parts):
            return all(matches(part, row) for part in parts)
        case Or(parts):
            return any(matches(part, row) for part in parts)
        case Word():
            return any(matches(test, row) for test in query.alternatives())
        case Not(part):
            return not matches(part, row)
        case _:
            return query.holds(row.get(query.field))
