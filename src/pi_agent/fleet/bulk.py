"""Very many rows straight into a table, where an object for each would cost more than the insert."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from django.db import connection

# psycopg sends all rows of one call without waiting, and a PostgreSQL that takes seconds to read them all looks dead to
# TCP_USER_TIMEOUT (``database``).
AT_ONCE = 500


def insert(table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Write rows into one of our own tables, whose name and columns come from no request."""
    marks = ", ".join(["%s"] * len(columns))
    statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608  # names of our own
    rest = iter(rows)
    with connection.cursor() as cursor:
        while some := list(islice(rest, AT_ONCE)):
            cursor.executemany(statement, some)
