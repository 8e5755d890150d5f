"""Charts as inline SVG: no script, good on paper and for a screen reader, and text that a test can read.

A chart is made of counts. Its colours come from the style sheet; each bar is a link to the query that it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

WIDTH, ROW, LABEL, FIGURE = 340, 24, 92, 64
DAY_WIDTH, DAY_HEIGHT = 340, 110


@dataclass(frozen=True, slots=True)
class Bar:
    """``name`` and how many; ``link`` leads to those devices, or is empty."""

    name: str
    count: int
    link: str = ""


def bars(title: str, items: Sequence[Bar]) -> SafeString:
    """Horizontal bars, one below the other."""
    most = max((item.count for item in items), default=0) or 1
    room = WIDTH - LABEL - FIGURE
    rows = format_html_join(
        "",
        '<a href="{}"><g><text class="name" x="{}" y="{}">{}</text><rect x="{}" y="{}" width="{}" height="14" rx="3"/>'
        '<text class="count" x="{}" y="{}">{}</text></g></a>',
        (
            (
                item.link,
                LABEL - 8,
                place * ROW + 16,
                item.name[:14],
                LABEL,
                place * ROW + 5,
                max(2, room * item.count // most),
                LABEL + max(2, room * item.count // most) + 6,
                place * ROW + 16,
                f"{item.count:,}",
            )
            for place, item in enumerate(items)
        ),
    )
    return _figure(title, _words(items), WIDTH, max(1, len(items)) * ROW + 4, rows)


def days(title: str, items: Sequence[Bar]) -> SafeString:
    """Upright bars, one a day, the first and the last day named."""
    most = max((item.count for item in items), default=0) or 1
    step = DAY_WIDTH / max(1, len(items))
    columns = format_html_join(
        "",
        '<a href="{}"><rect x="{}" y="{}" width="{}" height="{}" rx="2"><title>{}: {}</title></rect></a>',
        (
            (
                item.link,
                f"{place * step + 1:.1f}",
                DAY_HEIGHT - (height := max(1, 84 * item.count // most)) - 18,
                f"{step - 2:.1f}",
                height,
                item.name,
                f"{item.count:,}",
            )
            for place, item in enumerate(items)
        ),
    )
    ends = format_html(
        '<text class="day" x="0" y="{}">{}</text><text class="day end" x="{}" y="{}">{}</text>',
        DAY_HEIGHT - 3,
        items[0].name if items else "",
        DAY_WIDTH,
        DAY_HEIGHT - 3,
        items[-1].name if items else "",
    )
    return _figure(title, _words(items), DAY_WIDTH, DAY_HEIGHT, columns + ends)


def _figure(title: str, words: str, width: int, height: int, inside: SafeString) -> SafeString:
    return format_html(
        '<figure class="chart"><figcaption>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg></figure>',
        title,
        width,
        height,
        f"{title}: {words}",
        inside,
    )


def _words(items: Sequence[Bar]) -> str:
    return ", ".join(f"{item.name} {item.count}" for item in items) or "none"
