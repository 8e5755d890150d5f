"""A query from text to tokens.

First each character inside quotes moves to the private use area, where it means nothing to the grammar, and the quotes
become MARK. Positions stay. No query brings such characters itself: they are not printable.
"""

from __future__ import annotations

from dataclasses import dataclass

from pi_agent.catalogue import joined, lower

MARK = "\ue0ff"
MASK = {code: 0xE000 + code for code in range(0x80)}
UNMASK = {0xE000 + code: code for code in range(0x80)} | {ord(MARK): None}


def masked_text(text: str) -> tuple[str, int | None]:
    """The masked text, and the position of a quote that is not closed. A backslash in quotes keeps ``"`` and itself."""
    out: list[str] = []
    opened: int | None = None
    while len(out) < len(text):
        at = len(out)
        if text[at] == '"':
            opened = at if opened is None else None
            out.append(MARK)
        elif opened is not None and text[at] == "\\" and text[at + 1 : at + 2] in ('"', "\\"):
            out += (MARK, text[at + 1].translate(MASK))
        else:
            out.append(text[at] if opened is None else text[at].translate(MASK))
    return "".join(out), opened


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of masked text and the position where it starts. ``str`` gives its text without quotes."""

    start: int
    masked: str

    def __str__(self) -> str:
        return self.masked.translate(UNMASK)

    def split(self, mark: str, most: int = -1) -> list[Span]:
        spans, start = [], self.start
        for piece in self.masked.split(mark, most):
            spans.append(Span(start, piece))
            start += len(piece) + 1
        return spans

    def parts(self) -> tuple[str, ...]:
        """The pieces between wildcards."""
        return joined(map(str, self.split("*")))


def tokens(masked: str) -> list[tuple[str, Span]]:
    """Kind and span of each token; a kind is one of ``( ) - or and not term end``."""
    found, at = [], 0
    while at < len(masked):
        stop = at + 1
        while masked[at] not in " ()-" and stop < len(masked) and masked[stop] not in " ()":
            stop += 1
        span = Span(at, masked[at:stop])
        if span.masked != " ":
            word = lower(span.masked)
            found.append((word if word in ("(", ")", "-", "or", "and", "not") else "term", span))
        at = stop
    return [*found, ("end", Span(len(masked), ""))]
