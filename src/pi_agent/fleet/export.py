"""All devices of a query as rows of CSV or JSON lines, read a batch at a time, so that memory does not grow with them.

Columns are named as in the query language. Memory is MiB, times are RFC 3339 (UTC), tags are separated by commas in CSV.
A CSV cell that a spreadsheet would compute begins with an apostrophe instead (requirement D-07).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from pi_agent import query as query_language
from pi_agent.catalogue import FIELDS, columns_of
from pi_agent.errors import UsageError
from pi_agent.fleet.models import Device, DeviceTag
from pi_agent.fleet.output import csv_cell
from pi_agent.fleet.paging import Order, Place, order_of
from pi_agent.fleet.registry import rfc3339
from pi_agent.fleet.selection import COLUMNS, bounds, condition, opaque

BATCH = 2000
SHOWN = COLUMNS | {"name": "name", "model": "model"}  # what is shown; COLUMNS has the folded text beside it
TIMES = frozenset(name for name, field in FIELDS.items() if field.kind == "time")
FORMS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}


def lines(form: str, text: str, *, columns: str = "", sort: str = "created", now: int) -> Iterator[str]:
    """The text of an export, a batch at a time; ``columns`` are all there are when it is empty.

    What is wrong with the query is raised at once, not at the first line.
    """
    names, order = columns_of(columns) or tuple(FIELDS), order_of(sort)
    query = query_language.parse(text, now)
    if form not in FORMS:
        raise UsageError(f"there is no form {form!r}", hint=f"the forms are {', '.join(FORMS)}")
    return _lines(form, query, names, order)


def _lines(form: str, query: query_language.Query, names: tuple[str, ...], order: Order) -> Iterator[str]:
    write = {"csv": _csv, "jsonl": _jsonl}[form]
    if form == "csv":
        yield _csv(names, [names])
    for batch in _batches(query, names, order):
        yield write(names, batch)


def _batches(query: query_language.Query, names: Sequence[str], order: Order) -> Iterator[list[list[Any]]]:
    shown = [SHOWN[name] for name in names if name != "tag"]
    rows = Device.objects.filter(bounds(query, order.field), opaque(condition(query)))
    chosen: Any = rows.values_list("pk", order.column, *shown)
    place: Place | None = None
    while batch := order.page(chosen, place, BATCH):
        tags = _tags([row[0] for row in batch]) if "tag" in names else {}
        yield [_row(names, row, tags, query.now) for row in batch]
        place = Place(batch[-1][1], batch[-1][0], 0, 0)


def _tags(keys: list[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for key, tag in DeviceTag.objects.filter(device__in=keys).order_by("tag_key").values_list("device", "tag"):
        found.setdefault(key, []).append(tag)
    return found


def _row(names: Sequence[str], row: Sequence[Any], tags: dict[int, list[str]], now: int) -> list[Any]:
    values = list(row[2:])
    for place, name in enumerate(names):
        if name == "tag":
            values.insert(place, tags.get(row[0], []))
        elif name == "late":
            values[place] = None if values[place] is None else values[place] < now
        elif name in TIMES:
            values[place] = rfc3339(values[place])
    return values


def _csv(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([csv_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _jsonl(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
