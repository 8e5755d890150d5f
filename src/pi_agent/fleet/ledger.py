"""What the token path reads and writes, in plain SQL: the one place where objects and query builders cost too much.

A ``Ledger`` belongs to one transaction (``entry``) and takes many requests at once, since what a transaction costs is
the wait for the disk at its end. The order of its steps is the order of locks, on every server of a fleet: used
assertions, then devices, each sorted, then the audit log; so no two servers can wait for each other. A device is held
for a retired key too, since that is an alarm, which is written to the device and to the log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from django.db import connection, transaction

from pi_agent.assertion import BOARD_CLAIMS, MAX_LIFETIME, VerifiedAssertion
from pi_agent.fleet.clones import Past
from pi_agent.fleet.devicekeys import KeyState

KEEP_USED = MAX_LIFETIME + 600  # longer than an assertion can live, also when this clock is set back a little
UNUSABLE_SECONDS = 60
PURGE_ROWS = 500

_DEVICE = f"""
    SELECT d.client_id, k.kid, d.status, d.scopes, {", ".join("d." + name for name in BOARD_CLAIMS)},
    d.boot, d.boot_first_at, d.boot_source, d.auth_at, k.created_at, k.pending_until, d.rotation_at, k.retired_at
    FROM fleet_device d JOIN fleet_devicekey k ON k.device_id = d.id"""  # noqa: S608  # constants
_ISSUED = "auth_at = {}, seen_at = {}, token_until = {}, agent_version = {}, key_protection = {}, overvoltage = {}, warranty = {}"

READ_KEYS = """
    SELECT d.client_id, k.kid, k.alg, k.jwk, k.retired_at
    FROM fleet_devicekey k JOIN fleet_device d ON d.id = k.device_id WHERE d.client_id = %s"""
SPEND = "INSERT INTO fleet_usedassertion (issuer, jti, expires_at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"
UNSPEND = "DELETE FROM fleet_usedassertion WHERE issuer = %s AND jti = %s"
READ = _DEVICE + " WHERE d.client_id = %s AND k.kid = %s"
NOTE_ISSUED = f"UPDATE fleet_device SET {_ISSUED.replace('{}', '%s')} WHERE client_id = %s"  # noqa: S608  # the same
NOTE_REFUSED = "UPDATE fleet_device SET seen_at = %s, refused_at = %s, refused_reason = %s WHERE client_id = %s"
NOTE_SEEN = "UPDATE fleet_device SET seen_at = %s WHERE client_id = %s"
NOTE_UNUSABLE = """
    UPDATE fleet_device SET refused_at = %s, refused_reason = %s
    WHERE client_id = %s AND (refused_at IS NULL OR refused_at < %s)"""
PURGE = """
    DELETE FROM fleet_usedassertion WHERE id IN
    (SELECT id FROM fleet_usedassertion WHERE expires_at < %s ORDER BY expires_at LIMIT %s)"""

# PostgreSQL is given all rows of a step in one statement: a round trip costs more than the row.
SPEND_ALL = """
    INSERT INTO fleet_usedassertion (issuer, jti, expires_at)
    SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[]) AS new (issuer, jti, expires_at) ORDER BY issuer, jti
    ON CONFLICT DO NOTHING RETURNING issuer, jti"""
READ_ALL_KEYS = READ_KEYS.replace("= %s", "= ANY(%s::text[])")
READ_ALL = f"""{_DEVICE}
    WHERE (d.client_id, k.kid) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
    ORDER BY d.client_id FOR NO KEY UPDATE OF d"""  # noqa: S608  # constants
_ISSUED_COLUMNS = "at, seen, until, version, protection, overvoltage, warranty"
NOTE_ALL_ISSUED = f"""
    UPDATE fleet_device d SET {_ISSUED.format(*("new." + name for name in _ISSUED_COLUMNS.split(", ")))}
    FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::boolean[], %s::boolean[], %s::text[])
    AS new ({_ISSUED_COLUMNS}, client_id) WHERE d.client_id = new.client_id"""  # noqa: S608  # constants

NOTE_UNUSABLE_UNLESS_LOCKED = """
    UPDATE fleet_device SET refused_at = %s, refused_reason = %s WHERE id IN
    (SELECT id FROM fleet_device WHERE client_id = %s AND (refused_at IS NULL OR refused_at < %s)
    FOR NO KEY UPDATE SKIP LOCKED)"""


READ_RULES = "SELECT audience, query, scopes FROM fleet_accessrule ORDER BY id"


class DeviceRow(NamedTuple):
    """A device as the token endpoint needs it: status, allowed scopes (separated by spaces), enrolled board, boots, key."""

    status: str
    scopes: str
    board: dict[str, Any]
    past: Past
    key: KeyState


class KeyRow(NamedTuple):
    """A key of a device; ``jwk`` is JSON."""

    client_id: str
    kid: str
    alg: str
    jwk: str
    retired_at: int | None


class Rule(NamedTuple):
    """An access rule: the devices of ``query`` may have ``scopes`` at ``audience``."""

    audience: str
    query: str
    scopes: str


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that a device gets at ``at``, and that ends at ``until``."""

    verified: VerifiedAssertion
    at: int
    until: int

    def values(self) -> tuple[Any, ...]:
        agent = self.verified.agent
        facts = (agent["version"] or None, agent["key"], *self.verified.board_state)
        return self.at, self.at, self.until, *facts, self.verified.issuer


@contextmanager
def entry() -> Iterator[Ledger]:
    """A ledger in a transaction of its own. What goes wrong is Django's DatabaseError, and then nothing is written."""
    with transaction.atomic(), connection.wrap_database_errors:
        yield _ledger()


def look_up_keys(client_ids: Collection[str]) -> list[KeyRow]:
    """All keys of these devices, outside of a transaction. What goes wrong is Django's DatabaseError."""
    connection.ensure_connection()
    with connection.wrap_database_errors:
        return _ledger().read_keys(client_ids)


def _ledger() -> Ledger:
    return PostgresLedger() if connection.vendor == "postgresql" else Ledger()


class Ledger:
    """The steps, one statement for each row: what SQLite likes best."""

    def __init__(self) -> None:
        # Django's cursor would look at every statement again; the driver's own has what it needs.
        self.cursor: Any = connection.connection.cursor()

    def run(self, statement: str, values: Sequence[Any]) -> Any:
        return self.cursor.execute(_lite(statement), values)

    def spend(self, assertions: Sequence[VerifiedAssertion]) -> list[bool]:
        """Use assertions up; False for one that was used before (RFC 7523 section 3 item 7). One insert decides, also in a race."""
        return [self.run(SPEND, (each.issuer, each.jti, each.expires_at)).rowcount == 1 for each in assertions]

    def unspend(self, assertion: VerifiedAssertion) -> None:
        """Undo ``spend`` for an assertion that may be sent once more."""
        self.run(UNSPEND, (assertion.issuer, assertion.jti))

    def read(self, assertions: Sequence[VerifiedAssertion]) -> list[DeviceRow | None]:
        """The device of each assertion, if the key that signed it still speaks for one."""
        rows = (self.run(READ, (each.issuer, each.kid)).fetchone() for each in assertions)
        return [_device(row) if row and row[-1] is None else None for row in rows]

    def read_keys(self, client_ids: Collection[str]) -> list[KeyRow]:
        """The keys of these devices, retired ones too."""
        return [KeyRow(*row) for each in client_ids for row in self.run(READ_KEYS, (each,)).fetchall()]

    def rules(self) -> list[Rule]:
        """The access rules as they are at this moment."""
        return [Rule(*row) for row in self.run(READ_RULES, ()).fetchall()]

    def note_issued(self, issued: Sequence[Issued]) -> None:
        for each in issued:
            self.run(NOTE_ISSUED, each.values())

    def note_refused(self, client_id: str, reason: str, now: int) -> None:
        self.run(NOTE_REFUSED, (now, now, reason, client_id))

    def note_seen(self, client_id: str, now: int) -> None:
        self.run(NOTE_SEEN, (now, client_id))

    def note_unusable(self, client_id: str, reason: str, now: int) -> None:
        """The device signed something that cannot be used, such as by a clock that is wrong.

        Written at most once a minute: an old assertion can be sent again by anybody, and must not keep the disk busy.
        """
        self.run(NOTE_UNUSABLE, (now, reason, client_id, now - UNUSABLE_SECONDS))


class PostgresLedger(Ledger):
    """The steps that every token takes, one statement for all rows."""

    def __init__(self) -> None:
        from psycopg import Cursor  # the driver is there where its database is

        # Not the cursor of Django, which binds on this side: this one lets the server keep the statements prepared.
        self.cursor = Cursor(connection.connection)

    def run(self, statement: str, values: Sequence[Any]) -> Any:
        return self.cursor.execute(statement, values)

    def spend(self, assertions: Sequence[VerifiedAssertion]) -> list[bool]:
        columns = [[each.issuer for each in assertions], [each.jti for each in assertions]]
        fresh = set(self.run(SPEND_ALL, (*columns, [each.expires_at for each in assertions])).fetchall())
        first = []
        for pair in zip(*columns, strict=True):
            first.append(pair in fresh)
            fresh.discard(pair)
        return first

    def read(self, assertions: Sequence[VerifiedAssertion]) -> list[DeviceRow | None]:
        asked = ([each.issuer for each in assertions], [each.kid for each in assertions])
        found = {row[:2]: _device(row) for row in self.run(READ_ALL, asked).fetchall() if row[-1] is None}
        return [found.get((each.issuer, each.kid)) for each in assertions]

    def read_keys(self, client_ids: Collection[str]) -> list[KeyRow]:
        return [KeyRow(*row) for row in self.run(READ_ALL_KEYS, (list(client_ids),)).fetchall()]

    def note_issued(self, issued: Sequence[Issued]) -> None:
        if issued:
            columns = zip(*(each.values() for each in issued), strict=True)
            self.run(NOTE_ALL_ISSUED, [list(column) for column in columns])

    def note_unusable(self, client_id: str, reason: str, now: int) -> None:
        self.run(NOTE_UNUSABLE_UNLESS_LOCKED, (now, reason, client_id, now - UNUSABLE_SECONDS))


def purge(now: int) -> int:
    """Forget up to PURGE_ROWS assertions that nobody would believe any more; how many there were."""
    with connection.cursor() as cursor:
        cursor.execute(PURGE, [now - KEEP_USED, PURGE_ROWS])
        return int(cursor.rowcount)


def _device(row: tuple[Any, ...]) -> DeviceRow:
    boots = 4 + len(BOARD_CLAIMS)
    keys = boots + len(Past._fields)
    board = dict(zip(BOARD_CLAIMS, row[4:boots], strict=True))
    return DeviceRow(row[2], row[3], board, Past(*row[boots:keys]), KeyState(*row[keys:-1]))


@cache
def _lite(statement: str) -> str:
    """The statement with the placeholders of Python's sqlite3."""
    return statement.replace("%s", "?")
