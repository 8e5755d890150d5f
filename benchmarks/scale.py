"""The token endpoint of a large fleet: a million devices beside ten thousand, and ten million used assertions to forget.

Run ``python benchmarks/scale.py`` (``--only devices,purge`` for a part, ``--database URL`` for PostgreSQL instead of
SQLite). The server, the load and what is measured are those of ``authority.py``; the two fleets are asked in turns. Of a
million devices 20,000 ask, in random places of every index; the others authenticated within the last quarter of an
hour. Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import secrets
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

import authority as bench
from pi_agent import oauth
from pi_agent.jwk import public_key

FEW, MANY, ASKING = 10_000, 1_000_000, 20_000
USED = 10_000_000
SLOWER, STEP, TURNS = 1.2, 50_000, 5
KIND = "pi-device-grant+jwt"


@dataclass(frozen=True)
class Figures:
    """CPU time of the server for a token, and how long one takes at a third of the full rate."""

    cpu_us: float
    rate: float
    p50_ms: float
    p99_ms: float

    def __str__(self) -> str:
        return (
            f"{self.cpu_us:6.0f} us CPU a token  {self.rate:6.0f} a second  "
            f"at a third of that p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="devices,purge", help="which parts")
    parser.add_argument("--database", default="", help="the URL of an empty PostgreSQL database for each part")
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    missed = 0
    for name in arguments.only.split(","):
        missed += PARTS[name](arguments.database, arguments.seconds)
    print(f"scale: {'all bars held' if not missed else f'{missed} missed'}")
    return 1 if missed else 0


def devices(database: str, seconds: float) -> int:
    """The same load on a small fleet and on a large one, in turns, so that both see the same machine."""
    with (
        fleet(FEW, FEW, database) as small,
        fleet(MANY, ASKING, database and f"{database}_many") as large,
    ):
        for home, port, _, known in (small, large):
            load(home, port, known, len(known), 60)  # every one once
        turns = [(figures(*small, seconds), figures(*large, seconds)) for _ in range(TURNS)]
    for number, found in zip((FEW, MANY), zip(*turns, strict=True), strict=True):
        print(f"{number:>9,} devices: {median(found)}", flush=True)
    slower = [many.cpu_us / few.cpu_us for few, many in turns]
    return bench.bar("a token of a million devices", slower, SLOWER, "x", at_most=True)


def purge(database: str, seconds: float) -> int:
    """Tokens while ten million used assertions lie there, and while they are forgotten."""
    with fleet(FEW, FEW, database) as (home, port, pid, known):
        load(home, port, known, len(known), 60)
        before = figures(home, port, pid, known, seconds)
    print(f"an empty table:   {before}", flush=True)
    with fleet(FEW, FEW, database and f"{database}_used", used=USED) as (home, port, pid, known):
        there = rows(home, database and f"{database}_used")
        begun = time.monotonic()
        load(home, port, known, len(known), 60)
        during = figures(home, port, pid, known, seconds)
        gone = there - rows(home, database and f"{database}_used")
        speed = gone / (time.monotonic() - begun)
    print(f"{USED:,} purged: {during}; {speed:,.0f} forgotten a second meanwhile", flush=True)
    missed = bench.bar(
        "a token while they are forgotten, p50", [during.p50_ms / before.p50_ms], SLOWER, "x", at_most=True
    )
    return missed + bench.bar("forgotten a second, beside what one core issues", [speed / before.rate], 1.0, "x")


PARTS = {"devices": devices, "purge": purge}


def median(found: Sequence[Figures]) -> Figures:
    """Of each figure, over the turns."""
    return Figures(*map(statistics.median, zip(*map(astuple, found), strict=True)))


def figures(home: Path, port: int, pid: int, known: list[bench.Device], seconds: float) -> Figures:
    before = bench.cpu_seconds(pid)
    full = load(home, port, known, int(seconds * 4000), seconds)
    spent = bench.cpu_seconds(pid) - before
    third = load(home, port, known, int(full["rate"] / 3 * seconds) + 1, seconds, full["rate"] / 3)
    return Figures(spent / full["answers"] * 1e6, full["rate"], third["p50_ms"], third["p99_ms"])


def load(home: Path, port: int, known: list[bench.Device], number: int, seconds: float, *rate: float) -> dict[str, Any]:
    issuer = f"http://127.0.0.1:{port}"
    bench.write_bodies(home / "bodies", known, number, issuer, oauth.grant_form, typ=KIND)
    found: dict[str, Any] = bench.load(port, "/oauth/token", home / "bodies", bench.CONNECTIONS, seconds, *rate)["all"]
    if found["statuses"].keys() != {"200"}:
        raise bench.MissingError(f"it answered {found['statuses']}: {found['sample']}")
    return found


@contextmanager
def fleet(
    number: int, asking: int, database: str, used: int = 0
) -> Iterator[tuple[Path, int, int, list[bench.Device]]]:
    """A server with ``number`` devices and ``used`` assertions: its folder, port, process, and the devices that ask."""
    known, port = make_devices(asking), bench.free_port()
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as name:
        home = Path(name)
        bench.fill(home, home / "data", known, database)
        with writing(home, database) as cursor:
            add_devices(cursor, number, asking)
            add_used(cursor, used)
        options = ["--database", database] if database else []
        serve = [sys.executable, "-c", bench.SERVE, "--data", str(home / "data"), "serve", "--no-rate-limit", *options]
        with bench.running([*serve, "--bind", f"127.0.0.1:{port}"], home, "listening", env=bench.OURS) as pid:
            yield home, port, pid, known


def make_devices(number: int) -> list[bench.Device]:
    """Devices with names that lie anywhere in an index."""
    found = []
    for _ in range(number):
        key = ec.generate_private_key(ec.SECP256R1())
        public = public_key(key.public_key())
        found.append(bench.Device(f"pi-{secrets.token_hex(8)}", key, public.kid, public.jwk))
    return found


# Filling. What a column is not given here is what it is in the first row.


@contextmanager
def writing(home: Path, database: str) -> Iterator[Any]:
    """A cursor in one transaction."""
    if database:
        import psycopg

        with psycopg.connect(database) as client:
            yield client.cursor()
        return
    connection = sqlite3.connect(home / "data" / "fleet.sqlite3")
    for pragma in ("journal_mode=DELETE", "journal_mode=OFF", "synchronous=OFF", "cache_size=-2000000"):
        connection.execute(f"PRAGMA {pragma}")
    with connection:
        yield connection.cursor()
    connection.close()


def add_devices(cursor: Any, number: int, asking: int) -> None:
    """Rows around those that are there, so that the asking ones lie apart from each other."""
    apart = number // asking
    if apart == 1:
        return
    postgres = "psycopg" in type(cursor).__module__
    row = cursor.execute("SELECT * FROM fleet_device LIMIT 1").fetchone()
    names = [column[0] for column in cursor.description]
    now, place = int(time.time()), "?" if not postgres else "%s"
    device = dict(zip(names, row, strict=True))
    key = cursor.execute("SELECT alg, jwk, created_at FROM fleet_devicekey LIMIT 1").fetchone()
    insert = f"INSERT INTO fleet_device ({', '.join(names)}) VALUES ({', '.join([place] * len(names))})"
    keys = f"INSERT INTO fleet_devicekey (device_id, kid, alg, jwk, created_at) VALUES ({', '.join([place] * 5)})"
    offset = 10 * asking
    if not postgres:
        cursor.execute("PRAGMA defer_foreign_keys=ON")
        cursor.execute(f"UPDATE fleet_device SET id = id * {apart} + {offset}")
        cursor.execute(f"UPDATE fleet_devicekey SET device_id = device_id * {apart} + {offset}")
    ids = (
        (offset + n for n in range(apart, number + apart) if n % apart)
        if not postgres
        else range(offset, offset + number - asking)
    )
    batch: list[list[Any]] = []

    def put() -> None:
        cursor.executemany(insert, batch)
        cursor.executemany(keys, [(row[names.index("id")], secrets.token_hex(21), *key) for row in batch])
        batch.clear()

    models = ("2b", "3b", "3b+", "4b", "5", "zero2w", "zerow", "b+")
    for index, identity in enumerate(ids):
        name, at = f"pi-{secrets.token_hex(8)}", now - 60 - index * 7919 % 840
        more = {"id": identity, "client_id": name, "name": name, "name_key": name, "serial": name[3:], "auth_at": at,
                "seen_at": at, "rhythm_at": at, "token_until": at + 1800, "model_key": models[index % 8]}  # fmt: skip
        batch.append(list((device | more).values()))
        if len(batch) == STEP:
            put()
    put()


def add_used(cursor: Any, number: int) -> None:
    """Assertions that nobody would believe any more, of any device, in the order of their time."""
    place, old = "%s" if "psycopg" in type(cursor).__module__ else "?", int(time.time()) - 86_400
    insert = f"INSERT INTO fleet_usedassertion (issuer, jti, expires_at) VALUES ({place}, {place}, {place})"
    for start in range(0, number, STEP):
        some = range(start, min(start + STEP, number))
        cursor.executemany(insert, [(f"pi-{n * 7919 % 10_007:016x}", f"{n:022}", old + n // 1000) for n in some])


def rows(home: Path, database: str) -> int:
    """How many used assertions are there, while the server works."""
    question = "SELECT count(*) FROM fleet_usedassertion"
    if database:
        with writing(home, database) as cursor:
            return int(cursor.execute(question).fetchone()[0])
    with sqlite3.connect(home / "data" / "fleet.sqlite3") as connection:
        found = int(connection.execute(question).fetchone()[0])
    connection.close()
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (bench.MissingError, subprocess.CalledProcessError, OSError) as error:
        sys.exit(f"error: {error}")
