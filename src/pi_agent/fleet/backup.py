"""Backup and restore of the SQLite database. A copy is whole or not there, and no revocation is lost without a word.

A backup is a consistent snapshot through SQLite's backup interface, also while a server writes. What became stricter
since a backup was taken (devices turned away, keys retired, tokens revoked, assertions used, ways in that were closed)
would be forgotten by restoring it; ``losses`` finds that, and ``_carry_over`` does it to the restored database, too.
Sessions and sign-in links are never restored.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from pi_agent.errors import ConfigError, PiAgentError, UsageError
from pi_agent.fleet import folder

PAGES = 1000
MAGIC = b"SQLite format 3\0"
STRICT = "('rejected', 'quarantined', 'revoked')"


@dataclass(frozen=True, slots=True)
class Entry:
    """A way into the fleet: the rows of a ``table``, each named by ``key``. One of the backup is still good now when
    it was ``open`` then (of ``old``), and its row of today (``now``) is the ``same``; ``left`` is what may have become less.
    """

    table: str
    key: str
    open: str = "true"
    same: str = "true"
    left: str = ""


ENTRIES = {
    "operator": Entry("fleet_operator", "name", same="now.role = old.role", left="role"),
    "operator token": Entry("fleet_operatortoken", "prefix", "old.revoked_at IS NULL", "now.revoked_at IS NULL"),
    "enrollment token": Entry(
        "fleet_enrollmenttoken", "id", "old.uses_left > 0", "now.uses_left >= old.uses_left", left="uses_left"
    ),
    "preauthorisation": Entry("fleet_preauthorisation", "id", "old.used_at IS NULL", "now.used_at IS NULL"),
    "resource server": Entry("fleet_resourceserver", "client_id"),
    "access rule": Entry(
        "fleet_accessrule",
        "id",
        same="(now.audience, now.query, now.scopes) = (old.audience, old.query, old.scopes)",
    ),
}


class BackupError(PiAgentError):
    """The file is no backup, or is damaged."""


@dataclass(frozen=True, slots=True)
class Losses:
    """What a restore would forget: devices with the status they have now, kids of device and signing keys, jtis, ways in."""

    devices: tuple[tuple[str, str], ...] = ()
    device_keys: tuple[str, ...] = ()
    signing_keys: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    entries: tuple[tuple[str, str], ...] = ()  # of ENTRIES: what, and which
    used: int = 0

    def __bool__(self) -> bool:
        return bool(self.devices or self.device_keys or self.signing_keys or self.tokens or self.entries)


def backup(
    database: Path, target: Path, *, copied: Callable[[int, int], object] = lambda pages, total: None
) -> dict[str, int]:
    """Copy the database to a new file, mode 0600. Answers what is in it. Raises UsageError when the file exists.

    ``copied(pages, total)`` hears how far it has come; what it raises ends the copy, of which nothing is left then.
    """
    if target.exists():
        raise UsageError(f"{target} exists already", hint="name a new file")
    draft = target.with_name(f".{target.name}-{secrets.token_hex(8)}")
    try:
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with _open(database) as source, closing(sqlite3.connect(draft)) as copy:
            source.execute("BEGIN")  # one snapshot, or SQLite would begin anew whenever somebody writes
            source.execute("SELECT 1 FROM sqlite_master").fetchone()
            source.backup(copy, pages=PAGES, progress=_told(copied))
            copy.execute("PRAGMA journal_mode=DELETE")
        found = check(draft)
        copied(0, 0)
        folder.sync(draft)
        target.hardlink_to(draft)  # unlike a rename it never replaces a file
        folder.sync(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cannot write the backup {target}: {_reason(error)}", path=str(target)) from error
    finally:
        draft.unlink(missing_ok=True)
    return found


def _told(copied: Callable[[int, int], object]) -> Callable[[int, int, int], object]:
    """What SQLite calls with the pages that are left, as what hears of those that were copied."""
    done = 0

    def progress(_: int, left: int, total: int) -> None:
        nonlocal done
        done, before = total - left, done
        copied(done - before, total)

    return progress


def is_sqlite(path: Path) -> bool:
    """Whether the file begins as SQLite's do. One that cannot be read may be one: ``check`` says what is wrong with it."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return True


def check(path: Path) -> dict[str, int]:
    """What is in a backup: ``devices``, ``audit_lines``, and ``newest`` (seconds since 1970). Raises BackupError."""
    try:
        with _open(path) as copy:
            if copy.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise BackupError(f"{path} is damaged")
            devices = copy.execute("SELECT count(*) FROM fleet_device").fetchone()[0]
            lines, newest = copy.execute("SELECT count(*), coalesce(max(at), 0) FROM fleet_auditevent").fetchone()
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{path} is no backup of a fleet: {_reason(error)}") from error
    return {"devices": devices, "audit_lines": lines, "newest": newest}


def losses(database: Path, copy: Path, *, now: int) -> Losses:
    """What restoring ``copy`` over ``database`` would forget."""
    if not database.exists():
        return Losses()
    with _open(database) as current:
        current.execute("ATTACH ? AS copy", (f"{copy.absolute().as_uri()}?mode=ro",))
        known = _tables(current, "copy") & _tables(current, "main")
        return Losses(
            devices=tuple(current.execute(_TURNED_AWAY)),
            device_keys=_column(current, _RETIRED.format(table="fleet_devicekey")),
            signing_keys=_column(current, _RETIRED.format(table="fleet_signingkey")),
            tokens=_column(current, _REVOKED, now) if "fleet_revokedtoken" in known else (),
            entries=tuple(
                (what, str(key))
                for what, entry in ENTRIES.items()
                if entry.table in known
                for key in _column(current, _CLOSED.format(entry=entry))
            ),
            used=current.execute(_USED, (now,)).fetchone()[0],
        )


_TURNED_AWAY = f"""
    SELECT now.client_id, now.status FROM main.fleet_device now JOIN copy.fleet_device old USING (client_id)
    WHERE now.status IN {STRICT} AND old.status <> now.status AND old.status <> 'revoked'
    UNION SELECT old.client_id, 'forgotten' FROM main.fleet_auditevent line JOIN copy.fleet_device old
    ON old.client_id = line.device WHERE line.action = 'device.forget' AND line.result = 'done' AND old.status <> 'revoked'
    ORDER BY 1"""  # noqa: S608  # constants
_RETIRED = """
    SELECT now.kid FROM {table} now JOIN copy.{table} old USING (kid)
    WHERE now.retired_at IS NOT NULL AND old.retired_at IS NULL ORDER BY now.kid"""
_REVOKED = """
    SELECT jti FROM main.fleet_revokedtoken WHERE expires_at > ? AND jti NOT IN
    (SELECT jti FROM copy.fleet_revokedtoken)"""
_CLOSED = """
    SELECT old.{entry.key} FROM copy.{entry.table} old WHERE {entry.open} AND NOT EXISTS
    (SELECT 1 FROM main.{entry.table} now WHERE now.{entry.key} = old.{entry.key} AND {entry.same})"""
_USED = "SELECT count(*) FROM main.fleet_usedassertion WHERE expires_at > ? - 60"


def restore(database: Path, copy: Path, *, keep: Losses | None) -> Path | None:
    """Put a backup in the place of the database, which is kept beside it. No server may run, and Django is set up.

    ``keep`` is carried over into what is restored. Answers where the database from before is now.
    """
    with draft(database, copy, keep=keep) as made:
        before = set_aside(database)
        made.replace(database)
        folder.sync(database.parent)
    return before


@contextmanager
def draft(database: Path, copy: Path, *, keep: Losses | None) -> Iterator[Path]:
    """What is to be restored: the backup in this version's form, less its sessions, and with what was used up in
    ``database`` since, and ``keep``.
    """
    made = database.with_name(f".{database.name}-{secrets.token_hex(8)}")
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with _open(copy) as source, closing(sqlite3.connect(made)) as target:
            source.backup(target)
            with target:
                for table in _tables(target, "main") & {"django_session", "fleet_signinlink"}:
                    target.execute(f"DELETE FROM {table}")  # noqa: S608  # constants
        if database.exists():
            with closing(sqlite3.connect(made, isolation_level=None, uri=True)) as target:
                _carry_over(target, database, keep or Losses())
        _bring_up(made)
        folder.sync(made)
        yield made
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cannot restore {copy}: {_reason(error)}", path=str(database)) from error
    finally:
        made.unlink(missing_ok=True)


def _bring_up(made: Path) -> None:
    """Bring a draft to the tables of this version. Raises ConfigError when a newer one has been there, and BackupError."""
    from django.db import Error, connections  # all else here works without Django

    from pi_agent.fleet.database import reason, refuse_newer
    from pi_agent.fleet.executor import Executor

    sqlite = {"ENGINE": "django.db.backends.sqlite3", "NAME": made, "CONN_HEALTH_CHECKS": False, "OPTIONS": {}}
    connections.settings["draft"] = connections.settings["default"] | sqlite
    try:
        refuse_newer("the backup", connections["draft"])
        Executor(connections["draft"]).migrate_all()
    except Error as error:
        raise BackupError(f"the backup cannot be brought to this version: {reason(error)}") from error
    finally:
        connections["draft"].close()
        del connections["draft"]  # the next draft is another file


def set_aside(database: Path) -> Path | None:
    """Give the database another name, so that no server takes it for the fleet's. Answers that name."""
    if not database.exists():
        return None
    before = _unused(database.with_name(f"{database.name}.before-restore"))
    try:
        _close_log(database)
        database.replace(before)
        folder.sync(database.parent)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"cannot rename {database} to {before.name}: {_reason(error)}", path=str(database)) from error
    return before


def _unused(path: Path) -> Path:
    """This name, or the first of it with a number behind it, that no file has."""
    names = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(name for name in chain([path], names) if not name.exists())


def _carry_over(target: sqlite3.Connection, database: Path, keep: Losses) -> None:
    """Do to ``target`` what was done to ``database`` since. Used assertions always: nothing may be used twice."""
    target.execute("ATTACH ? AS lost", (f"{database.absolute().as_uri()}?mode=ro",))
    target.execute("BEGIN IMMEDIATE")
    target.execute("""
        INSERT INTO fleet_usedassertion (issuer, jti, expires_at)
        SELECT issuer, jti, expires_at FROM lost.fleet_usedassertion WHERE true ON CONFLICT DO NOTHING""")
    reason = "carried over by a restore"
    target.executemany(
        "UPDATE fleet_device SET status = ?, status_reason = ? WHERE client_id = ?",
        [("revoked" if status == "forgotten" else status, reason, client_id) for client_id, status in keep.devices],
    )
    for table, kids in (("fleet_devicekey", keep.device_keys), ("fleet_signingkey", keep.signing_keys)):
        target.executemany(
            f"UPDATE {table} SET retired_at = (SELECT retired_at FROM lost.{table} WHERE kid = ?) WHERE kid = ?",  # noqa: S608  # constants
            [(kid, kid) for kid in kids],
        )
    columns = "jti, device, revoked_at, expires_at"
    target.executemany(
        f"INSERT INTO fleet_revokedtoken ({columns}) SELECT {columns} FROM lost.fleet_revokedtoken WHERE jti = ?",  # noqa: S608  # the same
        [(jti,) for jti in keep.tokens],
    )
    for what, key in keep.entries:
        _close(target, ENTRIES[what], key)
    target.execute("COMMIT")
    target.execute("DETACH lost")


def _close(target: sqlite3.Connection, entry: Entry, key: str) -> None:
    """Leave of a way in what ``lost`` has left of it."""
    table, named = entry.table, f"WHERE {entry.key} = ?"
    there = target.execute(f"SELECT 1 FROM lost.{table} {named}", (key,)).fetchone()  # noqa: S608  # constants
    if there and entry.left:
        newer = f"(SELECT {entry.left} FROM lost.{table} {named})"  # noqa: S608  # the same
        target.execute(f"UPDATE main.{table} SET {entry.left} = {newer} {named}", (key, key))  # noqa: S608  # the same
    else:
        target.execute(f"DELETE FROM main.{table} {named}", (key,))  # noqa: S608  # the same


def _close_log(database: Path) -> None:
    """Take the write-ahead log over into the database, so that the one file is all of it."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode=DELETE")


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to read from; it must exist. The log beside it is read as well."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=10)) as connection:
        yield connection


def _tables(connection: sqlite3.Connection, schema: str) -> set[str]:
    """A database of another version has other tables."""
    return set(_column(connection, f"SELECT name FROM {schema}.sqlite_master WHERE type = 'table'"))  # noqa: S608  # a constant


def _column(connection: sqlite3.Connection, statement: str, *values: object) -> tuple[str, ...]:
    return tuple(row[0] for row in connection.execute(statement, values))


def _reason(error: Exception) -> str:
    return (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
