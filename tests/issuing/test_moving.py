"""From SQLite to PostgreSQL: ``restore`` of a SQLite backup into an empty database, and what it refuses."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from fleet.live import CLEAN, LiveFleet, run
from issuing.cluster import Cluster
from issuing.conftest import start

SECRET = "a secret that is long enough"  # it seals the keys of a test
INTERRUPTED = """
import os, signal, sys
from pi_agent.fleet import cli
from pi_agent.fleet.progress import Progress
add = Progress.add
def interrupted(progress, number):
    os.kill(os.getpid(), signal.SIGINT)
    add(progress, number)
Progress.add = interrupted
sys.exit(cli.main())
"""


def move(data: Path, url: str, backup: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run("--data", str(data), "restore", "--database", url, str(backup), *options)


def rows(cluster: Cluster, url: str, table: str = "fleet_device") -> int:
    found = cluster.execute(f"SELECT count(*) FROM {table}", url.rpartition("/")[2])
    return int(str(found[0][0]))


def lines(server: LiveFleet) -> list[tuple[int, str]]:
    found = json.loads(server.cli("audit", "--limit", "1000", "-o", "json").stdout)["items"]
    return [(line["id"], line["action"]) for line in found]


def test_a_fleet_moves_to_postgresql_and_its_boards_notice_nothing(tmp_path: Path, cluster: Cluster) -> None:
    """Keys, sealed ones too, rights, the log with its numbers, and nothing that was used up can be used again."""
    data, backup, url = tmp_path / "data", tmp_path / "backup.db", cluster.database()
    data.mkdir(mode=0o700)
    (data / "fleet.toml").write_text(f'key_secret = "{SECRET}"\n')
    server = start(data, "")
    port = server.port
    good, gone = server.enroll(name="kitchen"), server.enroll(board=None, name="hall")
    waiting = server.enroll(board=None, approved=False, name="attic")
    for words in (
        ("tag", good.client_id, "+lab", "--yes", "--reason", "bench"),
        ("revoke", gone.client_id, "--yes", "--reason", "sold"),
        ("operator", "set", "eve", "admin"),
    ):
        assert server.cli(*words).returncode == 0, words
    token = server.cli("token", "make", "eve", "--role", "admin").stdout.strip()
    session = server.cli("sign-in-link", "--operator", "eve").stdout.strip()
    before, late = good.form(), good.form()
    assert server.ask(before).status == 200
    assert server.cli("backup", str(backup)).returncode == 0
    assert server.ask(late).status == 200  # after the backup
    log, keys = lines(server), server.request("GET", "/oauth/jwks").json
    server.stop()

    done = move(data, url, backup, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["devices"] == 3
    assert f"write database_url into {data}/fleet.toml" in done.stderr
    assert (data / "fleet.sqlite3.before-restore").exists() and not (data / "fleet.sqlite3").exists()
    lost = run("--data", str(data), "devices")
    assert (lost.returncode, url in lost.stderr) == (2, True)  # a command that names no database makes no new fleet

    server = start(data, url, bind=f"127.0.0.1:{port}")
    try:
        assert server.request("GET", "/oauth/jwks").json == keys
        for used in (before, late):
            assert server.ask(used).json["error"] == "invalid_grant"
        assert server.ask(good.form()).status == 200
        assert "revoked" in server.ask(gone.form()).json["error_description"]
        assert server.cli("approve", waiting.client_id, "--yes", "--reason", "known").returncode == 0
        assert server.ask(waiting.form()).status == 200
        assert server.ask(server.enroll(board=None, name="new").form()).status == 200
        assert json.loads(server.cli("devices", "tag:lab", "-o", "json").stdout)["total"] == 1
        auth = {"authorization": f"Bearer {token}"}
        assert server.request("GET", "/api/v1/operators", b"", auth).status == 200
        assert server.request("POST", "/sign-in", f"code={session}".encode()).status in (400, 403)
        assert lines(server)[-len(log) :] == log
        assert "database.restore" in {action for _, action in lines(server)}
        assert server.cli("audit", "verify").returncode == 0
        assert rows(cluster, url, "fleet_signinlink") == rows(cluster, url, "django_session") == 0
    finally:
        server.stop()


def test_only_an_empty_database_takes_a_fleet(tmp_path: Path, cluster: Cluster) -> None:
    """Not one that a server is at work on, though it has no devices yet, nor one that holds a fleet: exit code 6."""
    data, backup, url = tmp_path / "data", tmp_path / "backup.db", cluster.database()
    assert run("--data", str(data), "simulate", "3").returncode == 0
    assert run("--data", str(data), "backup", str(backup)).returncode == 0
    server = start(tmp_path / "other", url)
    try:
        done = move(data, url, backup)
        assert (done.returncode, "another pi-fleet is at work on" in done.stderr) == (6, True), done.stderr
    finally:
        server.stop()
    done = move(data, url, backup)
    assert (done.returncode, "is not empty: it holds 0 devices" in done.stderr) == (6, True), done.stderr
    assert rows(cluster, url) == 0 and (data / "fleet.sqlite3").exists()

    url = cluster.database()
    assert run("--data", str(tmp_path / "third"), "migrate", env={"DATABASE_URL": url}).returncode == 0
    assert move(data, url, backup).returncode == 0  # tables alone are no fleet
    done = move(data, url, backup)
    assert (done.returncode, "it holds 3 devices" in done.stderr) == (6, True), done.stderr


def test_an_older_backup_is_brought_to_this_version_and_a_newer_one_refused(tmp_path: Path, cluster: Cluster) -> None:
    """In a copy: the backup itself stays as it is."""
    data, backup, url = tmp_path / "data", tmp_path / "backup.db", cluster.database()
    assert run("--data", str(data), "simulate", "3").returncode == 0
    assert run("--data", str(data), "backup", str(backup)).returncode == 0
    with closing(sqlite3.connect(backup)) as opened, opened:
        opened.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('fleet', '9999_later', 0)")
    done = move(data, url, backup)
    assert (done.returncode, "written by a newer pi-fleet (9999_later)" in done.stderr) == (2, True), done.stderr
    assert rows(cluster, url) == 0
    with closing(sqlite3.connect(backup)) as opened, opened:
        opened.execute("DELETE FROM django_migrations WHERE app = 'fleet' AND name >= '0005'")
        opened.execute("ALTER TABLE fleet_device DROP COLUMN rhythm_at")
    before = backup.read_bytes()
    done = move(data, url, backup)
    assert done.returncode == 0, done.stderr
    assert rows(cluster, url) == 3 and backup.read_bytes() == before


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("'a' || char(0)", r"row 2 of fleet_device: .*NUL"),
        ("CAST(x'EDA080' AS TEXT)", r"fleet_device cannot be read after row 0: .*UTF-8"),
        (f"'{'x' * 65}'", r"COPY fleet_device, line 2, column name: value too long"),
    ],
    ids=["NUL", "surrogate", "too-long"],
)
def test_what_postgresql_cannot_keep_is_named_and_nothing_is_written(
    tmp_path: Path, cluster: Cluster, value: str, said: str
) -> None:
    """All or nothing; and the fleet of the folder is where it was."""
    data, backup, url = tmp_path / "data", tmp_path / "backup.db", cluster.database()
    assert run("--data", str(data), "simulate", "3").returncode == 0
    with closing(sqlite3.connect(data / "fleet.sqlite3")) as opened, opened:
        opened.execute(f"UPDATE fleet_device SET name = {value} WHERE id = 2")
    assert run("--data", str(data), "backup", str(backup)).returncode == 0
    done = move(data, url, backup)
    assert done.returncode == 1 and re.search(said, done.stderr), done.stderr
    assert rows(cluster, url) == rows(cluster, url, "fleet_auditevent") == 0
    assert (data / "fleet.sqlite3").exists() and not list(data.glob(".fleet.sqlite3-*"))


def test_an_interrupted_move_leaves_nothing(tmp_path: Path, cluster: Cluster) -> None:
    """Ctrl-C between two parts of it: no row, no draft, and a sentence that says so."""
    data, backup, url = tmp_path / "data", tmp_path / "backup.db", cluster.database()
    assert run("--data", str(data), "simulate", "3").returncode == 0
    assert run("--data", str(data), "backup", str(backup)).returncode == 0
    words = ("--data", str(data), "restore", "--database", url, str(backup))
    command = [sys.executable, "-c", INTERRUPTED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=CLEAN, timeout=60)
    assert (done.returncode, "interrupted: nothing was written into" in done.stderr) == (130, True), done.stderr
    assert rows(cluster, url) == 0 and not list(data.glob(".fleet.sqlite3-*"))


def test_what_is_no_backup_of_sqlite_is_left_to_postgresqls_own_tools(tmp_path: Path, cluster: Cluster) -> None:
    """The command to use is in the hint."""
    (tmp_path / "dump").write_bytes(b"PGDMP")
    done = move(tmp_path / "data", cluster.database(), tmp_path / "dump")
    assert (done.returncode, "pg_restore" in done.stderr) == (2, True)
    done = move(tmp_path / "data", cluster.database(), tmp_path / "missing")
    assert (done.returncode, "is no backup of a fleet" in done.stderr) == (1, True)
