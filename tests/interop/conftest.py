"""Real authorization servers on loopback, where they are installed (``./dev interop`` installs them)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.living import CPUINFO, SOURCE, eventually
from pi_agent import client
from pi_agent.errors import AgentError, TransportError

FOLDER = Path(os.environ.get("PI_AGENT_INTEROP") or Path(__file__).parents[2] / ".interop")


def has_token(runtime: str) -> bool:
    try:
        return bool(client.token(runtime=runtime, timeout=1))
    except (AgentError, TransportError):
        return False


class Board:
    """A board that is set up with the real commands, at a server that takes its key by hand."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "root/proc/sys/kernel/random").mkdir(parents=True)
        (home / "run").mkdir()
        shutil.copy(CPUINFO, home / "root/proc/cpuinfo")
        (home / "root/proc/sys/kernel/random/boot_id").write_text("5f6f3f0e-6f2c-4a5e-9d5f-0d0f6f7a8b9c")

    def command(self, *words: str) -> list[str]:
        folders = [f"--{name}={self.home / name}" for name in ("state", "root")]
        code = (
            f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from pi_agent.device.cli import main; sys.exit(main())"
        )
        config = f"--config={self.home / 'config.toml'}"
        return [sys.executable, "-c", code, config, *folders, f"--runtime={self.home / 'run'}", *words]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PI_AGENT_")}
        return kept | {"PI_AGENT_TOKEN_SPREAD": "0"}

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=60, check=False, env=self.environment
        )

    def set_up(self, issuer: str, *, preset: str, endpoint: str, more: str = "") -> str:
        """Make a key and settings; the answer is the JWKS for the server, which need not run yet."""
        text = f'[server]\ntoken_endpoint = "{endpoint}"\nloopback_http = true\n{more}'
        (self.home / "config.toml").write_text(text)
        done = self.run("setup", issuer, "--preset", preset, "--client-id", "board-1", "--json")
        assert done.returncode == 0, done.stderr
        return json.dumps({"keys": [json.loads(done.stdout)["jwk"]]})

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """The agent; the value is its runtime folder."""
        agent = subprocess.Popen(self.command("run"), env=self.environment)
        try:
            yield str(self.home / "run")
        finally:
            agent.terminate()
            agent.wait(10)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


@pytest.fixture
def node() -> Iterator[str]:
    """Node with oidc-provider beside it."""
    if not (FOLDER / "node_modules/oidc-provider").is_dir():
        pytest.skip("oidc-provider is not installed: ./dev interop")
    local = FOLDER / "node_modules/.bin/node"
    yield str(local) if local.exists() else "node"


@contextlib.contextmanager
def listening(command: list[str], port: int) -> Iterator[None]:
    """The server that ``command`` starts, as soon as it listens at ``port``."""
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def listens() -> bool:
        assert server.poll() is None, server.communicate()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        eventually(listens, "the server")
        yield
    finally:
        server.terminate()
        server.communicate(timeout=10)
