"""From SQLite to PostgreSQL: the rows of a backup, into a database that holds no fleet yet, all of them or none.

Each row keeps its number, so the audit log stays the chain that it is, and devices go on as if nothing had happened. The
rows are streamed (COPY), so a fleet of any size takes little memory. Left out are sign-in links, as in any restore, and
the secrets that servers share, of which SQLite has none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

from django.apps import apps
from django.core.management.color import no_style
from django.db import DataError, Error, IntegrityError, connection, models, transaction

from pi_agent.errors import ConflictError, TransportError
from pi_agent.fleet import database
from pi_agent.fleet.backup import BackupError
from pi_agent.fleet.models import AuditEvent, Device, SharedSecret, SignInLink
from pi_agent.fleet.settings import Settings

BATCH = 5_000
LEFT_OUT = (SharedSecret, SignInLink)
MEND = "put it right in the fleet, and make a new backup"
# One COPY takes minutes, and a PostgreSQL that takes seconds to read what it was sent looks dead to TCP_USER_TIMEOUT.
PATIENT = {"application_name": f"{database.APPLICATION} restore", "tcp_user_timeout": 0}
LIMITS = ("statement_timeout", "idle_in_transaction_session_timeout")
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"


@contextmanager
def empty_database(settings: Settings) -> Iterator[None]:
    """A transaction in which the tables are there and empty, and nobody else writes. A server that starts waits for its end.

    Raises ConflictError when there is a fleet or a server already, and TransportError when PostgreSQL fails.
    """
    connection.settings_dict["OPTIONS"] |= PATIENT
    database.migrate(settings)
    try:
        with database.migrating(), transaction.atomic():
            _refuse_servers(settings)
            _run(*(f"SET LOCAL {limit} = 0" for limit in LIMITS), f"LOCK TABLE {_tables()} IN SHARE ROW EXCLUSIVE MODE")
            _refuse_rows(settings)
            yield
    except Error as error:
        raise TransportError(
            f"{settings.database_name} failed, and nothing was restored: {database.reason(error)}",
            reason="database",
            hint=database.reach_hint(settings),
        ) from error


def fill(draft: Path, *, copied: Callable[[int, int], object]) -> None:
    """All rows of ``draft``, a SQLite database of this version. Raises BackupError.

    ``copied(rows, total)`` hears how far it has come; what it raises ends the work.
    """
    with closing(sqlite3.connect(draft)) as source:
        total = sum(source.execute(f"SELECT count(*) FROM {_table(model)}").fetchone()[0] for model in _models())  # noqa: S608  # names of our own
        for model in _models():
            _copy(source, model, lambda rows: copied(rows, total))
    _run(*connection.ops.sequence_reset_sql(no_style(), _models()))
    _run(f"ANALYZE {_tables()}")  # or it would be asked about a million devices, and take them for none


def _copy(source: sqlite3.Connection, model: type[models.Model], copied: Callable[[int], object]) -> None:
    """The rows of one table. SQLite's booleans are 0 and 1, which PostgreSQL reads as such."""
    columns = ", ".join(f'"{field.column}"' for field in model._meta.concrete_fields)
    rows = source.execute(f"SELECT {columns} FROM {_table(model)} ORDER BY id")  # noqa: S608  # the same
    last = 0
    into = f"COPY {_table(model)} ({columns}) FROM STDIN"
    try:
        with connection.wrap_database_errors, connection.cursor() as cursor, cursor.copy(into) as copy:
            while some := list(islice(rows, BATCH)):
                for row in some:
                    last = row[0]
                    copy.write_row(row)
                copied(len(some))
    except (DataError, IntegrityError) as error:
        where = _where(error) or f"row {last} of {_table(model)}"
        raise BackupError(f"PostgreSQL refuses {where}: {database.reason(error)}", hint=MEND) from error
    except sqlite3.Error as error:  # a text that is none: all of its batch is unread
        raise BackupError(f"{_table(model)} cannot be read after row {last}: {error}", hint=MEND) from error


def _where(error: Error) -> str:
    """The line and the column, without the value, as PostgreSQL says it of what it has read; nothing of what the driver refused."""
    said = getattr(getattr(error.__cause__, "diag", None), "context", None) or ""
    return str(said).partition(": ")[0].partition("\n")[0]


def _refuse_servers(settings: Settings) -> None:
    with connection.cursor() as cursor:
        cursor.execute(SESSIONS, [database.APPLICATION])
        if cursor.fetchone()[0]:
            raise ConflictError(f"another pi-fleet is at work on {settings.database_name}", hint="stop it first")


def _refuse_rows(settings: Settings) -> None:
    held = [model for model in _models() if model._default_manager.exists()]
    if held:
        raise ConflictError(
            f"{settings.database_name} is not empty: it holds {Device.objects.count():,} devices and "
            f"{AuditEvent.objects.count():,} lines of an audit log",
            hint="make another database for the fleet, and name that one: createdb NAME",
        )


def _models() -> list[type[models.Model]]:
    return [model for model in apps.get_app_config("fleet").get_models() if model not in LEFT_OUT]


def _table(model: type[models.Model]) -> str:
    return model._meta.db_table


def _tables() -> str:
    return ", ".join(map(_table, _models()))


def _run(*statements: str) -> None:
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
