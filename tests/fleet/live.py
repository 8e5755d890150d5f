"""A real ``pi-fleet serve`` in a process of its own, on a real SQLite file, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from fleet.support import FORM, Pi, Reply

COMMAND = [sys.executable, "-c", "import sys; from pi_agent.fleet.cli import main; sys.exit(main())"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("PI_FLEET_")}
DATABASE = "fleet.sqlite3"
APPROVE = "UPDATE fleet_device SET status = 'approved' WHERE client_id = %(id)s"
DEADLINE = 20.0


class LiveFleet:
    """One server. ``stderr`` holds what it has said until ``stop``.

    Where there is no folder ``data`` yet, it begins with ``empty_database``; in one that is there, it makes what it lacks.
    """

    def __init__(self, data: Path, *options: str, bind: str = "127.0.0.1:0") -> None:
        self.data = data
        self.url = options[options.index("--database") + 1] if "--database" in options else ""
        if not (data.exists() or self.url):
            data.mkdir(mode=0o700)
            (data / DATABASE).touch(0o600)
            (data / DATABASE).write_bytes(empty_database())
        self.process = subprocess.Popen(
            [*COMMAND, "--data", str(data), "serve", "--bind", bind, *options],
            stderr=subprocess.PIPE,
            text=True,
            env=CLEAN,
        )
        self.greeting = self._greeting()
        self.port = int(re.search(r"listening on http://127\.0\.0\.1:(\d+)", self.greeting)[1])  # type: ignore[index]
        self.issuer = f"http://127.0.0.1:{self.port}"

    def _greeting(self) -> str:
        assert self.process.stderr is not None
        said = ""
        for line in self.process.stderr:
            said += line
            if line.startswith("  then"):
                return said
        raise AssertionError(f"it did not start: {said}")

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """The exit code, and what was said after the greeting."""
        self.process.send_signal(sig)
        _, stderr = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, stderr

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def ask(self, body: bytes) -> Reply:
        return self.request("POST", "/oauth/token", body, {"content-type": FORM})

    def enroll(self, *, approved: bool = True, name: str = "kitchen", **more: Any) -> Pi:
        """A device of this fleet."""
        pi = Pi(issuer=self.issuer, **more)
        kind = {"content-type": "application/json"}
        first = self.request("POST", "/oauth/register", json.dumps(pi.registration(None)).encode(), kind)
        second = self.request(
            "POST", "/oauth/register", json.dumps(pi.registration(first.json["nonce"], client_name=name)).encode(), kind
        )
        pi.client_id = second.json["client_id"]
        if approved:
            self._approve(pi.client_id)
        return pi

    def _approve(self, client_id: str) -> None:
        """Past the server: for a command it would load its REST interface, which takes as long as its start."""
        if self.url:
            import psycopg  # where there is a PostgreSQL

            with psycopg.connect(self.url) as database:
                changed = database.execute(APPROVE.encode(), {"id": client_id}).rowcount
        else:
            with closing(sqlite3.connect(self.data / DATABASE, timeout=DEADLINE)) as lite, lite:
                changed = lite.execute(APPROVE.replace("%(id)s", ":id"), {"id": client_id}).rowcount
        assert changed == 1

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("--data", str(self.data), *arguments)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)


def run(*arguments: str, stdin: str = "", env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """One ``pi-fleet`` command, to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=CLEAN | dict(env or {}),
    )


@cache
def empty_database() -> bytes:
    """All tables and no row in them: making them takes a server as long as all else that it does before it listens."""
    with tempfile.TemporaryDirectory() as data:
        assert run("--data", data, "migrate").returncode == 0
        return (Path(data) / DATABASE).read_bytes()


def closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side closes before the time is over. What it says before is thrown away."""
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(4096):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True
    return False
