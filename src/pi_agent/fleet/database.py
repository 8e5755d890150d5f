"""The two databases: SQLite in the data folder for one server, PostgreSQL for any number of them.

What they promise is the same: a transaction that was answered is on disk, a lock that cannot be had is an error within
seconds, and a schema is only ever changed forward, by one process at a time, in transactions.
"""

from __future__ import annotations

import logging
import os
import resource
import shlex
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.db import OperationalError, connection
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader

from pi_agent.errors import ConfigError, TransportError
from pi_agent.fleet import counters, folder
from pi_agent.fleet.executor import Executor
from pi_agent.fleet.settings import Settings

log = logging.getLogger("pi_agent.fleet")

POSTGRES_EXTRA = "pip install 'pi-identity-agent[fleet,postgres]'"
POOL_SIZE = 22  # of the 21 threads that may want a connection, none waits for another
SHARE = 4  # how much longer a chore waits than it works
CONNECT_SECONDS = 3
LOCK_MS, STATEMENT_MS, IDLE_MS = 4_000, 30_000, 60_000
APPLICATION = "pi-fleet"  # how PostgreSQL lists the sessions of our servers and commands

# FULL: a used assertion and a revocation must outlive a power cut, not only a crash of this process. A token's
# transaction waits for the disk together with all the others that are there by then (``clerk``). The write-ahead log
# is taken over into the database by the housekeeper, so that no request has to.
PRAGMAS = (
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-{kib}; PRAGMA wal_autocheckpoint={pages}"
)
CHECKPOINT_PAGES = 64_000  # never, while the housekeeper lives
CACHE_KIB = 4096
READING_KIB = 8192  # the index by which 100,000 devices are counted


def database_settings(settings: Settings) -> dict[str, Any]:
    """Django's settings for the database."""
    if settings.shares_database:
        return _postgres(settings)
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": settings.database,
        "CONN_MAX_AGE": None,  # a thread keeps its connection, and the pages of the database that it has read
        "OPTIONS": {
            "timeout": settings.busy_timeout,
            "transaction_mode": "IMMEDIATE",
            "init_command": PRAGMAS.format(kib=CACHE_KIB, pages=CHECKPOINT_PAGES),
        },
    }


def _postgres(settings: Settings) -> dict[str, Any]:
    try:
        import psycopg_pool  # noqa: F401  # Django would only miss it at the first request
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ModuleNotFoundError as error:
        raise ConfigError("PostgreSQL needs psycopg, which is not installed", hint=POSTGRES_EXTRA) from error
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # who waits for a connection is told, and tells
    try:
        found = conninfo_to_dict(settings.database_url)
    except ProgrammingError as error:
        why = str(error).partition(":")[0]  # behind it stands a value, which can be the password
        hint = "in a password, % is written %25, and @ is %40; the parameters are libpq's"
        raise ConfigError(f"database_url cannot be read: {why}", key="database_url", hint=hint) from None
    known = {name: found.pop(key, "") for name, key in DJANGO_NAMES.items()}
    limits = {
        "statement_timeout": STATEMENT_MS,
        "lock_timeout": LOCK_MS,
        "idle_in_transaction_session_timeout": IDLE_MS,
    }
    options: dict[str, Any] = {
        "application_name": APPLICATION,
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": CONNECT_SECONDS * 1000,
        "options": " ".join(f"-c {name}={value}" for name, value in limits.items()),
        "prepare_threshold": 3,
        "pool": {"min_size": 1, "max_size": POOL_SIZE, "timeout": CONNECT_SECONDS + 1, "reconnect_timeout": 60},
    }
    return {
        "ENGINE": "django.db.backends.postgresql",
        **known,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": options | found,
    }


DJANGO_NAMES = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def lock(purpose: str) -> None:
    """Until the end of this transaction, be the only one here, on any server. A transaction of SQLite is alone anyway."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_number(purpose)])


def give_up(error: Exception) -> None:
    """The database failed a request: say so, and let this thread begin anew with a fresh connection."""
    connection.close()
    counters.count("pi_fleet_database_errors_total", type(error).__name__)
    log.warning("the database failed: %s", reason(error))


def give_way(since: float, share: int = SHARE) -> None:
    """Between two small transactions of a long chore, the first begun at ``since`` (monotonic): let requests write.

    A writer that finds SQLite locked looks again only after a while, so the lock has to be free most of the time. Where
    somebody waits for the end of the chore, ``share`` says how much longer it waits than it works.
    """
    time.sleep(share * (time.monotonic() - since))


def read_much() -> None:
    """Let the connections that this thread opens keep more of SQLite's pages: it answers questions about many devices."""
    if connection.vendor == "sqlite":
        command = PRAGMAS.format(kib=READING_KIB, pages=CHECKPOINT_PAGES)
        options = connection.settings_dict["OPTIONS"] | {"init_command": command}
        connection.settings_dict = connection.settings_dict | {"OPTIONS": options}  # all threads share what was there


def wait_for_disk() -> None:
    """Wait until SQLite's file is on disk as far as it was written (fdatasync(2)).

    By a descriptor that SQLite has open: to open and close the file here would drop SQLite's locks on it, as POSIX has it
    (sqlite.org/howtocorrupt.html, section 2.2). It was opened early, so its number is low.
    """
    file = os.path.realpath(connection.settings_dict["NAME"])
    for number in range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]):
        if _opened(number) == file:
            os.fdatasync(number)
            return


def _opened(number: int) -> str:
    """What a descriptor of this process has open; nothing when it is none."""
    try:
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return ""


def release() -> None:
    """Give this thread's connection back to the pool, which looks at it before it is used again. SQLite keeps its own."""
    if connection.vendor == "postgresql":
        connection.close()


def migrate(settings: Settings) -> None:
    """Bring the database to this version of the program.

    Raises TransportError when it does not answer, and ConfigError when a newer program has been there.
    """
    try:
        with folder.locked(settings.data / "migrate.lock"), migrating():
            refuse_newer(settings.database_name, connection)
            Executor(connection).migrate_all()
    except OperationalError as error:
        connection.close()
        # No ConfigError: it may be there in a minute, and systemd starts no server again that a setting has ended.
        raise TransportError(
            f"cannot use the database {settings.database_name}: {_why(settings) or reason(error)}",
            reason="database",
            hint=reach_hint(settings) if settings.shares_database else "pi-fleet doctor",
        ) from error
    if settings.shares_database:  # sessions and forms of one server are good at the others
        from pi_agent.fleet.signing import shared_secret  # it needs the tables

        django_settings.SECRET_KEY = shared_secret(settings, "django").hex()


def reach_hint(settings: Settings) -> str:
    """How to see whether a PostgreSQL server is there."""
    return f"psql {shlex.quote(settings.database_name)}; and look at --database, or DATABASE_URL"


def _why(settings: Settings) -> str:
    """Why PostgreSQL cannot be reached, in the driver's words; the pool only knows that it took too long."""
    if not settings.shares_database:
        return ""
    import psycopg  # it is there where its database is

    try:
        psycopg.connect(settings.database_url, connect_timeout=CONNECT_SECONDS).close()
    except psycopg.Error as error:
        return reason(error)
    return ""


def refuse_newer(name: str, connection: BaseDatabaseWrapper) -> None:
    """Raise ConfigError when the database holds migrations that this version does not know (requirement RS-14)."""
    loader = MigrationLoader(connection)
    unknown = sorted(
        name for app, name in loader.applied_migrations if app == "fleet" and (app, name) not in loader.disk_migrations
    )
    if unknown:
        raise ConfigError(
            f"{name} was written by a newer pi-fleet ({unknown[-1]})",
            hint="install that version again, or restore a backup from before",
        )


def pending(settings: Settings) -> list[str]:
    """The migrations that wait to be applied. Raises ConfigError as ``refuse_newer`` does."""
    refuse_newer(settings.database_name, connection)
    executor = Executor(connection)
    return [migration.name for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]


@contextmanager
def migrating() -> Iterator[None]:
    """Servers that start together on one PostgreSQL migrate one after the other: the next waits here."""

    def lock_session(statement: str) -> None:
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute(statement, [_number("migrate")])

    lock_session("SET lock_timeout = 0; SELECT pg_advisory_lock(%s)")
    try:
        yield
    finally:
        lock_session("RESET lock_timeout; SELECT pg_advisory_unlock(%s)")


def _number(purpose: str) -> int:
    """A key of PostgreSQL's advisory locks; the upper half marks it as ours."""
    return 0x7069 << 32 | zlib.crc32(purpose.encode())


def reason(error: Exception) -> str:
    """What a database said: its first line, without the statement and the values that may follow."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
