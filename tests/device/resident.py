"""The real agent as a process of its own, in a folder of its own, against a scripted token server."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pi_agent
from device.servers import Request, Server, reply, serving
from pi_agent import client
from pi_agent.device import frames, identity, preparation
from pi_agent.device.keys import file
from pi_agent.errors import AgentError, TransportError

SOURCE = Path(pi_agent.__file__).resolve().parent.parent
CPUINFO = Path(__file__).resolve().parents[2] / "fixtures" / "cpuinfo" / "2b-a01041-6.1-32bit.txt"
ISSUER = "https://fleet.example"
PATIENCE = 30.0

T = TypeVar("T")


class Authority:
    """A token server that answers as told: ``answer`` is called with the number of the request, from 1."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answer: Callable[[int], bytes] = lambda number: reply(tokens(number))
        self.hang = threading.Event()
        self.hang.set()


def tokens(number: int, *, expires_in: int = 1800) -> dict[str, Any]:
    return {"access_token": f"canary-token-{number:04}", "token_type": "Bearer", "expires_in": expires_in}


def refusal(error: str, **more: Any) -> bytes:
    return reply({"error": error} | more, status=400)


@contextlib.contextmanager
def an_authority() -> Iterator[Authority]:
    made: list[Authority] = []

    def script(channel: Any, _: Request) -> None:
        number = len(made[0].server.requests)
        made[0].hang.wait(PATIENCE)
        channel.sendall(made[0].answer(number))

    with serving(script) as server:
        made.append(Authority(server))
        yield made[0]
        made[0].hang.set()


class Home:
    """Folders of an enrolled board: ``state`` with key and identity, ``runtime`` for the socket, ``root`` with its /proc."""

    def __init__(self, folder: Path, token_endpoint: str, *, spread: int = 0, issuer: str = ISSUER) -> None:
        self.folder = folder
        self.state, self.runtime, self.root = folder / "state", folder / "run", folder / "root"
        self.log = folder / "log"
        self.state.mkdir(mode=0o700)
        boot_id = self.root / "proc/sys/kernel/random/boot_id"
        boot_id.parent.mkdir(parents=True)
        boot_id.write_text("0b5c1f0e-7d2a-4c39-9d5e-6f3a2b1c4d5e\n")
        shutil.copy(CPUINFO, self.root / "proc" / "cpuinfo")
        self.variables = {
            "PI_AGENT_STATE": str(self.state),
            "PI_AGENT_RUNTIME": str(self.runtime),
            "PI_AGENT_ROOT": str(self.root),
            "PI_AGENT_CONFIG": str(folder / "config.toml"),
            "PI_AGENT_SERVER_LOOPBACK_HTTP": "true",
            "PI_AGENT_TOKEN_SPREAD": str(spread),
        }
        key = file.load_or_create(self.state)
        identity.store(
            self.state,
            identity.Identity(issuer, "pi-4f1c", token_endpoint, key.public_key().kid, ""),
        )

    def command(self, *arguments: str, first: str = "") -> list[str]:
        code = f"{first}\nimport sys; from pi_agent.device.cli import main; sys.exit(main())"
        return [sys.executable, "-c", code, *arguments]

    def environment(self) -> dict[str, str]:
        plain = {name: value for name, value in os.environ.items() if not name.startswith("PI_AGENT_")}
        return plain | self.variables | {"PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(
        self, *arguments: str, first: str = "", wrapper: tuple[str, ...] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """One command of the command line, to its end."""
        return subprocess.run(
            [*wrapper, *self.command(*arguments, first=first)],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            **more,
        )

    def fields(self) -> dict[str, str]:
        """What ``pi-agent run`` hands to the resident."""
        before = dict(os.environ)
        os.environ.update(self.variables)
        try:
            return preparation.prepare({})
        finally:
            os.environ.clear()
            os.environ.update(before)

    def bend(self, code: str) -> dict[str, str]:
        """The fields for workers that run ``code`` before their own: a shorter deadline, another clock."""
        fields = self.fields()
        before = f"import sys; sys.path[:0] = {fields['path'].split(os.pathsep)!r}\n{code}\nexec(sys.argv[1])"
        python = self.folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S -B -c {shlex.quote(before)} "$4"\n')
        python.chmod(0o755)
        return fields | {"python": str(python)}

    def start(
        self,
        fields: dict[str, str] | None = None,
        *,
        first: str = "",
        wrapper: tuple[str, ...] = (),
        alarm: int | None = None,
    ) -> Agent:
        """The resident, without the second that ``pi-agent run`` takes to get ready. ``first`` is code that it runs first."""
        reader, writer = os.pipe()
        os.write(writer, frames.pack(self.fields() if fields is None else fields))
        os.close(writer)
        code = (
            f"import sys; sys.path[:0] = [{str(SOURCE)!r}]\n{first}\n"
            f"from pi_agent.device.agent import main; main({reader}, {alarm})"
        )
        command = [*wrapper, sys.executable, "-I", "-S", "-B", "-c", code]
        with self.log.open("ab") as log:
            passed = [reader] if alarm is None else [reader, alarm]
            process = subprocess.Popen(command, stderr=log, pass_fds=passed, stdin=subprocess.DEVNULL)
        os.close(reader)
        return Agent(self, process)


@contextlib.contextmanager
def a_home(token_endpoint: str, **more: Any) -> Iterator[Home]:
    """Below a name short enough for a socket; whatever runs there is ended."""
    folder = Path(tempfile.mkdtemp(prefix="pi-"))
    home = Home(folder, token_endpoint, **more)
    try:
        yield home
    finally:
        shutil.rmtree(folder)


class Agent:
    """A running resident, as a caller and as its operator see it."""

    def __init__(self, home: Home, process: subprocess.Popen[bytes]) -> None:
        self.home = home
        self.process = process

    def __enter__(self) -> Agent:
        until(lambda: self.status() is not None or self.process.poll() is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, target: str) -> tuple[int, dict[str, Any]]:
        status, body = client.get(target, runtime=str(self.home.runtime))
        return status, json.loads(body)

    def status(self) -> dict[str, Any] | None:
        try:
            return client.ask("/v1/status", runtime=str(self.home.runtime))
        except (TransportError, AgentError):
            return None

    def token(self, min_valid: int = 1) -> str | None:
        """The token as it is handed out now, or None."""
        status, members = self.ask(f"/v1/token?min_valid={min_valid}")
        if status != 200:
            return None
        assert members["expires_in"] >= max(min_valid, 1)
        assert members["access_token"]
        return str(members["access_token"])

    def again(self) -> None:
        """Ask for a new token now (SIGUSR1)."""
        self.process.send_signal(signal.SIGUSR1)

    def workers(self) -> list[int]:
        """The processes it has started that are still at work."""
        pid = self.process.pid
        try:
            children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []
        return [child for child in children if is_at_work(child)]

    def said(self) -> str:
        return self.home.log.read_text(encoding="utf-8")


def is_at_work(pid: int) -> bool:
    """False for a process that is gone, or only waits to be taken note of."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], T], *, patience: float = PATIENCE) -> T:
    """What ``condition`` gives once it is true, or the end of the test's patience."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return found
