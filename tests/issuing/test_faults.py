"""What goes wrong around the server: locks, full disks, a database that leaves, clocks (requirements RS-01, RS-02, RS-04, RS-09, RS-14)."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from fleet.conftest import SETTINGS
from fleet.live import CLEAN, LiveFleet, run
from fleet.support import Pi, Reply, ask, exchange
from issuing.cluster import Cluster, missing
from issuing.conftest import start
from pi_agent.fleet.asgi import Application


def healed(server: LiveFleet, pi: Pi, seconds: float = 20) -> bool:
    """Whether the device is served again, in some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.ask(pi.form()).status == 200:
            return True
        time.sleep(0.2)
    return False


def put_off(reply: Reply) -> bool:
    return (
        reply.status == 503
        and reply.json["error"] == "temporarily_unavailable"
        and 1 <= int(reply.headers["retry-after"]) <= 60
    )


def test_rs01_a_locked_database_is_a_503_and_passes(tmp_path: Path) -> None:
    """Somebody holds SQLite's lock longer than a request waits. Afterwards the same assertion buys its token."""
    server = start(tmp_path / "data", "", "--busy-timeout", "0.2")
    try:
        body = server.enroll().form()
        with closing(sqlite3.connect(tmp_path / "data" / "fleet.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert put_off(server.ask(body))
            assert server.request("GET", "/oauth/jwks").status == 200
            other.execute("ROLLBACK")
        assert server.ask(body).status == 200
    finally:
        server.stop()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root")
def test_rs02_a_full_disk_is_a_503_and_passes(tmp_path: Path) -> None:
    """No token without a durable record: 503 while there is no room, served again when there is, undamaged."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=700", "none", str(data)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this machine lets nobody mount")
    try:
        server = start(data, "")
        pi = server.enroll()
        used = pi.form()
        assert server.ask(used).status == 200
        fill(data / "ballast")
        found = [server.ask(pi.form()) for _ in range(200)]
        refused = [reply for reply in found if reply.status != 200]
        assert refused and all(map(put_off, refused)), {reply.status for reply in found}
        assert server.request("GET", "/.well-known/oauth-authorization-server").status == 200
        (data / "ballast").unlink()
        assert healed(server, pi)
        assert server.ask(used).json["error"] == "invalid_grant"
        assert server.stop()[0] == 0
        with closing(sqlite3.connect(data / "fleet.sqlite3")) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        subprocess.run(["umount", "-l", str(data)], check=False)


def fill(path: Path) -> None:
    """A file that takes all the room there is."""
    with path.open("wb", buffering=0) as ballast:
        for size in (65536, 4096, 512, 1):
            try:
                while True:
                    ballast.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.skipif(bool(missing()), reason=missing())
def test_rs04_a_database_that_leaves_and_comes_back(tmp_path: Path) -> None:
    """503 within five seconds, the process stays up, keys and metadata are there, and it heals by itself."""
    cluster = Cluster()
    try:
        server = start(tmp_path / "data", cluster.database(nothing=True))
        try:
            pi = server.enroll()
            used = pi.form()
            assert server.ask(used).status == 200
            cluster.stop("immediate")
            for _ in range(2):
                before = time.monotonic()
                assert put_off(server.ask(pi.form()))
                assert time.monotonic() - before < 5.5
            assert server.request("GET", "/healthz").status == 200
            assert server.request("GET", "/readyz").json["missing"] == ["database"]
            assert server.request("GET", "/oauth/jwks").status == 200
            cluster.start()
            assert healed(server, pi)
            assert server.ask(used).json["error"] == "invalid_grant"
            assert server.request("GET", "/readyz").status == 200
        finally:
            code, said = server.stop()
        assert code == 0 and "Traceback" not in said
    finally:
        cluster.close()


def test_rs04_connections_that_were_cut_are_replaced(tmp_path: Path, cluster: Cluster) -> None:
    """Every connection of the pool is ended on the other side: at most one answer is a 503."""
    server = start(tmp_path / "data", cluster.database())
    try:
        pi = server.enroll()
        cluster.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname LIKE 'fleet%'"
        )
        found = [server.ask(pi.form()) for _ in range(5)]
        assert all(reply.status == 200 or put_off(reply) for reply in found)
        assert [reply.status for reply in found].count(200) >= 4
    finally:
        server.stop()


def test_rs01_a_device_that_is_held_on_postgresql_is_a_503_and_passes(tmp_path: Path, cluster: Cluster) -> None:
    """Somebody holds its row for longer than a request waits; then the same assertion buys its token."""
    import psycopg

    url = cluster.database()
    server = start(tmp_path / "data", url)
    try:
        pi = server.enroll()
        body = pi.form()
        with psycopg.connect(url) as other:
            other.execute("SELECT 1 FROM fleet_device FOR UPDATE")
            assert put_off(server.ask(body))
            other.rollback()
        assert server.ask(body).status == 200
    finally:
        server.stop()


def test_rs09_a_clock_that_went_back_issues_nothing(app: Application, pi: Pi) -> None:
    """More than a minute behind the newest token: 503, not ready; a minute is forgiven; a clock that is right again is, too."""
    now = [int(time.time())]
    application = Application(app.authority, clock=lambda: now[0])
    try:
        assert ask(application, pi.form()).status == 200
        now[0] -= 59
        assert ask(application, pi.form(pi.assertion(iat=now[0], exp=now[0] + 60))).status == 200
        now[0] -= 10
        assert put_off(ask(application, pi.form(pi.assertion(iat=now[0], exp=now[0] + 60))))
        assert "clock" in exchange(application, "GET", "/readyz").json["missing"]
        now[0] += 69
        assert ask(application, pi.form()).status == 200
    finally:
        application.close()
        app.reload()


def test_rs09_a_future_that_was_wrong_can_be_taken_back(tmp_path: Path) -> None:
    """The clock was a year ahead once: nothing is issued until an operator says so; then it is."""
    data = tmp_path / "data"
    server = start(data, "")
    try:
        pi = server.enroll()
        assert server.ask(pi.form()).status == 200
        with closing(sqlite3.connect(data / "fleet.sqlite3")) as database, database:
            database.execute("UPDATE fleet_device SET auth_at = auth_at + 31536000")
        end = time.monotonic() + 60
        while server.request("GET", "/readyz").status == 200 and time.monotonic() < end:
            time.sleep(0.1)
        assert put_off(server.ask(pi.form()))
        told = server.cli("doctor")
        assert told.returncode == 1 and "--accept-clock" in told.stdout
        assert server.cli("doctor", "--accept-clock").returncode == 0
        assert healed(server, pi)
    finally:
        server.stop()


def test_rs14_an_older_server_refuses_a_newer_database(tmp_path: Path, database: str) -> None:
    """It says so, and leaves it alone."""
    server = start(tmp_path / "data", database)
    server.stop()
    insert = "INSERT INTO django_migrations (app, name, applied) VALUES ('fleet', '9999_future', '2030-01-01 00:00:00')"
    if database:
        import psycopg

        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(insert)
    else:
        with closing(sqlite3.connect(tmp_path / "data" / "fleet.sqlite3")) as lite, lite:
            lite.execute(insert)
    done = run(
        "--data",
        str(tmp_path / "data"),
        "serve",
        "--bind",
        "127.0.0.1:0",
        *(["--database", database] if database else []),
    )
    assert done.returncode == 2
    assert "newer pi-fleet (9999_future)" in done.stderr and "hint:" in done.stderr


# pi-fleet, which ends by kill -9 in the transaction of one migration, when so many are in.
KILLED = """
import os, signal, sys
from django.db.migrations.recorder import MigrationRecorder
from pi_agent.fleet.cli import main
done, record = [], MigrationRecorder.record_applied
def record_applied(*migration):
    if len(done) == int(os.environ["KILLED_AFTER"]):
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(record(*migration))
MigrationRecorder.record_applied = record_applied
sys.exit(main())
"""


@pytest.mark.parametrize("done", [0, 14, 15, 16])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_rs14_a_migration_that_was_killed_is_gone_on_with(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str, done: int
) -> None:
    """RS-14: kill -9 when so many migrations are in: the next start does the rest, and the fleet works."""
    data = tmp_path / "data"
    database = request.getfixturevalue("cluster").database(nothing=True) if kind == "postgres" else ""
    env = CLEAN | {"KILLED_AFTER": str(done)} | ({"PI_FLEET_DATABASE_URL": database} if database else {})
    command = [sys.executable, "-c", KILLED, "--data", str(data), "migrate"]
    killed = subprocess.run(command, env=env, stderr=subprocess.DEVNULL, check=False)
    assert (killed.returncode, migrated(data, database)) == (-signal.SIGKILL, done)
    server = start(data, database)
    try:
        assert server.ask(server.enroll().form()).status == 200
        assert server.cli("audit", "verify").returncode == 0
    finally:
        server.stop()


def migrated(data: Path, database: str) -> int:
    """How many migrations are in."""
    psycopg = pytest.importorskip("psycopg")
    question = "SELECT count(*) FROM django_migrations"
    try:
        if database:
            with psycopg.connect(database, autocommit=True) as connection:
                row = connection.execute(question).fetchone()
        else:
            with closing(sqlite3.connect(f"file:{data / 'fleet.sqlite3'}?mode=ro", uri=True)) as lite:
                row = lite.execute(question).fetchone()
    except (sqlite3.Error, psycopg.Error):  # there is no file, no table yet, or it is locked
        return 0
    return int(row[0]) if row else 0


def test_servers_that_start_together_migrate_once(tmp_path: Path, cluster: Cluster) -> None:
    """Three at the same moment on an empty PostgreSQL: all of them serve, with one and the same signing key."""
    from concurrent.futures import ThreadPoolExecutor

    url = cluster.database(nothing=True)
    with ThreadPoolExecutor(3) as pool:
        servers = list(pool.map(lambda name: start(tmp_path / name, url), "abc"))
    try:
        assert len({server.request("GET", "/oauth/jwks").body for server in servers}) == 1
    finally:
        for server in servers:
            server.stop()


def test_a_database_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    """Exit 5, so that systemd tries again; one line, and a hint that names the user. The password is in neither."""
    url = "postgresql://someone:hunter2@127.0.0.1:1/nothing?password=hunter2&sslmode=disable"
    done = run("--data", str(tmp_path / "data"), "serve", "--bind", "127.0.0.1:0", "--database", url)
    assert done.returncode == 5
    shown = "postgresql://someone@127.0.0.1:1/nothing?sslmode=disable"
    assert f"cannot use the database {shown}: connection failed" in done.stderr
    assert f"hint: psql '{shown}'" in done.stderr
    assert "hunter2" not in done.stderr and "Traceback" not in done.stderr


def test_settings_show_no_secret() -> None:
    """Neither the database's password nor the secret of the keys is in a repr."""
    shown = repr(replace(SETTINGS, database_url="postgresql://a:hunter2@h/d", key_secret="hunter2hunter2hunter2"))
    assert "hunter2" not in shown
