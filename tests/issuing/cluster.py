"""A PostgreSQL of our own, in a temporary folder: Debian's ``postgresql`` through its ``initdb`` and ``pg_ctl``."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from functools import cached_property
from pathlib import Path

from fleet.live import run

USER = "postgres"


def binaries() -> Path | None:
    """Where the server's programs are, the newest first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: -int(path.parts[-3]))
    named = shutil.which("initdb")
    return found[0].parent if found else Path(named).parent if named else None


def missing() -> str:
    """Why there can be no cluster, or nothing."""
    if binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    try:
        import psycopg  # noqa: F401
        import psycopg_pool  # noqa: F401
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
    if os.geteuid() == 0 and not _exists(USER):
        return f"root may not run PostgreSQL, and there is no user {USER}"
    return ""


class Cluster:
    """A server on a free port of loopback. ``database`` makes a database and answers its URL: with the tables of a fleet
    and no row in them, or with ``nothing=True`` with nothing at all.

    It does not wait for the disk (fsync): what is tested is killed programs, which the kernel's memory outlives.
    """

    def __init__(self) -> None:
        programs = binaries()
        assert programs is not None
        self.programs = programs
        self.home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        if os.geteuid() == 0:
            shutil.chown(self.home, USER, USER)
        self.port = _free_port()
        self._run("initdb", "-D", str(self.home / "db"), "-U", USER, "-A", "trust", "--no-sync")
        self.made = 0
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -k {self.home} -c listen_addresses=127.0.0.1 -c max_connections=100 -c fsync=off"
        log = str(self.home / "log")
        self._run("pg_ctl", "-D", str(self.home / "db"), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.home / "db"), "-w", "-m", mode, "stop")

    def database(self, *, nothing: bool = False) -> str:
        self.made += 1
        name = f"fleet_{self.made}"
        self.execute(f"CREATE DATABASE {name}" + ("" if nothing else f" TEMPLATE {self._tables}"))
        return self._url(name)

    @cached_property
    def _tables(self) -> str:
        """A database to copy: making the tables takes a server as long as all else that it does before it listens."""
        self.execute("CREATE DATABASE tables")
        with tempfile.TemporaryDirectory() as data:
            assert run("--data", data, "migrate", env={"DATABASE_URL": self._url("tables")}).returncode == 0
        return "tables"

    def _url(self, name: str) -> str:
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(self._url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        subprocess.run(
            self._as_user("pg_ctl", "-D", str(self.home / "db"), "-m", "immediate", "stop"),
            check=False,
            capture_output=True,
        )
        shutil.rmtree(self.home, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            self._as_user(program, *arguments),
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            cwd="/",
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, (program, done.stdout)

    def _as_user(self, program: str, *arguments: str) -> list[str]:
        command = [str(self.programs / program), *arguments]
        return ["runuser", "-u", USER, "--", *command] if os.geteuid() == 0 else command


def _exists(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
