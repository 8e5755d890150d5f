"""A real agent in a process of its own, on a recorded Pi 2, at a server that the test scripts."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from device.servers import Request, Script, Server, reply, serving, token
from pi_agent import client
from pi_agent.device import identity
from pi_agent.device.keys import file
from pi_agent.errors import AgentError, TransportError

SOURCE = Path(client.__file__).parents[1]
FIXTURES = Path(__file__).parents[2] / "fixtures" / "cpuinfo"
CPUINFO = next(path for path in sorted(FIXTURES.rglob("*.txt")) if "a01041" in path.read_text(errors="replace"))
BOOT_ID = "5f6f3f0e-6f2c-4a5e-9d5f-0d0f6f7a8b9c"
CLIENT_ID = "pi-0123456789abcdef"
PATIENCE = 15.0

Found = TypeVar("Found")


def eventually(probe: Callable[[], Found | None], what: str = "it", *, patience: float = PATIENCE) -> Found:
    """What ``probe`` gives as soon as it gives anything."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.03)
    raise AssertionError(f"{what} did not happen in {patience:g} s")


class Answers:
    """What the server says: to token requests ``now`` (bytes, or a script), to metadata requests its endpoints."""

    def __init__(self) -> None:
        self.now: bytes | Script = reply()
        self.metadata: dict[str, Any] = {}
        self.metadata_date = ""
        self.instead_of_metadata: bytes | Script | None = None

    def __call__(self, channel: socket.socket, request: Request) -> None:
        metadata = self.instead_of_metadata or reply(self.metadata, Date=self.metadata_date)
        said = metadata if request.line.startswith("GET") else self.now
        if isinstance(said, bytes):
            channel.sendall(said)
        else:
            said(channel, request)


class Living:
    """One board: its folders, its server, and its agent while ``running``."""

    def __init__(self, home: Path, server: Server, answers: Answers) -> None:
        self.home = home
        self.server = server
        self.answers = answers
        self.runtime = str(home / "run")
        self.environment = {"PI_AGENT_TOKEN_SPREAD": "0"}
        for folder in ("root/proc/sys/kernel/random", "run"):
            (home / folder).mkdir(parents=True)
        (home / "state").mkdir(mode=0o700)
        shutil.copy(CPUINFO, home / "root/proc/cpuinfo")
        (home / "root/proc/sys/kernel/random/boot_id").write_text(BOOT_ID)
        self.kid = file.load_or_create(home / "state").public_key().kid
        serial = next(row.split(":")[1].strip() for row in CPUINFO.read_text().splitlines() if "Serial" in row)
        known = identity.Identity(server.url, CLIENT_ID, server.url + "/token", self.kid, serial)
        identity.store(home / "state", known)
        answers.metadata = {"issuer": server.url, "token_endpoint": server.url + "/token"}
        self.configure(f'[server]\nissuer = "{server.url}"\nloopback_http = true\n')

    def configure(self, text: str, name: str = "config.toml") -> None:
        (self.home / name).parent.mkdir(exist_ok=True)
        (self.home / name).write_text(text)

    def command(self, *words: str, first: str = "") -> list[str]:
        """``first`` is code that the process runs first."""
        folders = [word for name in ("state", "root") for word in (f"--{name}", str(self.home / name))]
        options = ["--config", str(self.home / "config.toml"), *folders, "--runtime", self.runtime]
        code = (
            f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{first}\n"
            "from pi_agent.device.cli import main; sys.exit(main())"
        )
        return [sys.executable, "-c", code, *options, *words]

    def run(
        self, *words: str, wrapper: tuple[str, ...] = (), first: str = "", **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end."""
        return subprocess.run(
            [*wrapper, *self.command(*words, first=first)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=self._variables(),
            **more,
        )

    @contextlib.contextmanager
    def running(self, wrapper: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
        """The agent, until the block ends; it listens when the block begins. A ``wrapper`` starts it, and ends when it ends."""
        with (self.home / "log").open("ab") as log:
            process = subprocess.Popen(
                [*wrapper, *self.command("run")],
                stderr=log,
                stdout=log,
                env=self._variables(),
                process_group=0 if wrapper else None,
            )
        try:
            eventually(lambda: self.listens() or process.poll() is not None, f"listening ({self.log()})")
            yield process
        finally:
            if process.poll() is None and wrapper:
                os.killpg(process.pid, signal.SIGTERM)  # strace takes no signal itself while it writes to a file
            elif process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(10)

    def listens(self) -> bool:
        try:
            return bool(self.status())
        except TransportError:
            return False

    def status(self) -> dict[str, Any]:
        return client.ask("/v1/status", runtime=self.runtime)

    def get(self, target: str, method: str = "GET", timeout: float = 20.0) -> tuple[int, dict[str, Any]]:
        status, body = client.get(target, method=method, runtime=self.runtime, timeout=timeout)
        return status, json.loads(body)

    def token(self, **more: Any) -> str:
        return client.token(runtime=self.runtime, **more)

    def has_token(self) -> bool:
        try:
            return bool(self.token(min_valid=1, timeout=0))
        except AgentError:
            return False

    def state(self, wanted: str) -> dict[str, Any]:
        """The status as soon as its state is ``wanted``."""
        return eventually(lambda: ((found := self.status())["state"] == wanted and found) or None, f"state {wanted}")

    def log(self) -> str:
        return (self.home / "log").read_text() if (self.home / "log").exists() else ""

    def posts(self) -> list[Request]:
        return [request for request in self.server.requests if request.line.startswith("POST")]

    def _variables(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PI_AGENT_")}
        return kept | self.environment


@contextlib.contextmanager
def living(home: Path, **more: Any) -> Iterator[Living]:
    answers = Answers()
    with serving(answers, **more) as server:
        yield Living(home, server, answers)


def numbered(life: int = 1800, **more: Any) -> Script:
    """A server that gives tokens ``token-1``, ``token-2``, ..."""
    given = [0]

    def script(channel: socket.socket, _: Request) -> None:
        given[0] += 1
        channel.sendall(reply(token(access_token=f"token-{given[0]}", expires_in=life, **more)))

    return script
