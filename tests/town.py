"""Where documented commands are run: a board that is set up, a board that waits, and a fleet of simulated ones.

The board is the one that the documents talk about: ``kitchen``, whose agent runs, beside ``porch``, which nobody has
approved, with a serial that ends with 8f3a. The fleet server, the agent and an API are real and on loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from device.living import eventually
from device.servers import Request, reply, serving
from fleet.live import LiveFleet
from pi_agent import client, words
from pi_agent.device import identity
from pi_agent.errors import TransportError

PROJECT = Path(__file__).resolve().parent.parent
CPUINFO = (PROJECT / "fixtures/cpuinfo/2b-a01041-4.1-32bit.txt").read_text()
BIN = Path(sys.executable).parent
SERIALS = {"kitchen": "00000000166cec4b", "porch": "0000000071c08f3a"}
PATIENCE = 60.0
# What the documents have: programs of the owner's, and sudo, which is not needed where nobody is kept from anything.
PROGRAMS = {
    "bin/sudo": '#!/bin/sh\nexec "$@"\n',
    "program": '#!/bin/sh\ntest -n "$PI_AGENT_TOKEN"\n',
    "boards.csv": "serial,key,name\n00000000aaaa0002,,garden\n",
}


class Town:
    """``home`` holds everything, also while nothing runs, so that a copy of it is a second town."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.issuer = f"http://127.0.0.1:{port}"
        self.api = ""
        self.elsewhere = Elsewhere()
        own = {name: value for name, value in os.environ.items() if not name.startswith(("PI_AGENT_", "PI_FLEET_"))}
        self.environment = own | {
            "PATH": f"{home}/bin:{BIN}:{os.environ['PATH']}",
            "HOME": str(home),
            "PI_FLEET_DATA": str(home / "fleet"),
            "PI_AGENT_TOKEN_SPREAD": "0",
            "PI_AGENT_SERVER_LOOPBACK_HTTP": "true",
        }

    def board(self, name: str) -> dict[str, str]:
        """The environment of a command on the board ``name``."""
        folders = {word.upper(): str(self.home / name / word) for word in ("state", "runtime", "root")}
        folders["CONFIG"] = str(self.home / name / "config.toml")
        return self.environment | {f"PI_AGENT_{word}": folder for word, folder in folders.items()}

    def run(self, *command: str, board: str = "kitchen", codes: tuple[int, ...] = (0,)) -> str:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False, env=self.board(board), cwd=self.home
        )
        assert done.returncode in codes, (command, done.stdout, done.stderr)
        return done.stdout

    def furnish(self) -> None:
        """Make what every town begins with."""
        for name, text in PROGRAMS.items():
            (self.home / name).parent.mkdir(exist_ok=True)
            (self.home / name).write_text(text)
            (self.home / name).chmod(0o755)
        for name, serial in SERIALS.items():
            kernel = self.home / name / "root/proc/sys/kernel/random"
            kernel.mkdir(parents=True)
            (kernel / "boot_id").write_text(secrets.token_hex(16))
            text = re.sub(r"(Serial\s*: ).*", rf"\g<1>{serial}", CPUINFO)
            (self.home / name / "root/proc/cpuinfo").write_text(text)
        self.run("pi-fleet", "simulate", "60")
        with self.fleet_running():
            for name in SERIALS:
                self.run("pi-agent", "setup", self.issuer, "--name", name, board=name, codes=(4,))
            self.run("pi-fleet", "approve", "name:kitchen", "--yes", "--reason", "here")
            self.run("pi-fleet", "tag", "name:kitchen", "+kiosk", "--yes", "--reason", "here")
            self.run("pi-fleet", "operator", "set", "ann", "approver")

    @contextlib.contextmanager
    def fleet_running(self) -> Iterator[None]:
        fleet = LiveFleet(self.home / "fleet", "--no-rate-limit", bind=self.issuer.removeprefix("http://"))
        try:
            yield
        finally:
            fleet.stop()

    @contextlib.contextmanager
    def living(self) -> Iterator[None]:
        """Everything runs, and the board has its token."""
        with self.fleet_running(), self.elsewhere.running() as self.api, self._agent_running():
            yield

    @contextlib.contextmanager
    def asleep(self) -> Iterator[None]:
        """Neither fleet nor agent runs, as for a command that asks nobody, or somebody elsewhere."""
        with self.elsewhere.running() as self.api:
            yield

    @contextlib.contextmanager
    def _agent_running(self) -> Iterator[None]:
        with (self.home / "agent.log").open("wb") as log:
            agent = subprocess.Popen(["pi-agent", "run"], stdout=log, stderr=log, env=self.board("kitchen"))
        try:
            eventually(lambda: self.state() == "ok", patience=PATIENCE)
            yield
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(PATIENCE)

    def state(self) -> str:
        try:
            return str(client.ask("/v1/status", runtime=str(self.home / "kitchen/runtime"))["state"])
        except TransportError:
            return ""

    # What stands in the documents as an example, and has to be this town's

    def json(self, *command: str) -> dict[str, Any]:
        return dict(json.loads(self.run(*command)))

    def code(self) -> str:
        """What the board that waits shows its owner."""
        return words.code(identity.load(self.home / "porch/state").kid)

    def operator_token(self) -> str:
        return self.run("pi-fleet", "token", "make", "ann", "--role", "approver", "--ttl", "1d").strip()

    def operator_token_id(self) -> str:
        self.operator_token()
        return str(self.json("pi-fleet", "token", "list", "--json")["items"][0]["prefix"])

    def signing_key(self) -> str:
        return str(self.json("pi-fleet", "keys", "list", "--json")["items"][0]["kid"])

    def resource_server(self) -> str:
        """ID:SECRET of one that may ask about the kitchen's token."""
        made = self.run("pi-fleet", "resource-server", "add", "api", "--audience", self.issuer)
        return ":".join(made.split())

    def token(self) -> str:
        return client.token(runtime=str(self.home / "kitchen/runtime"))


class Elsewhere:
    """Other people's servers: an API that wants a token, and the metadata of whatever issuer is asked about."""

    def __init__(self) -> None:
        self.issuer = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        with serving(self._answer) as server:
            yield server.url

    def _answer(self, channel: socket.socket, request: Request) -> None:
        metadata = {"issuer": self.issuer, "token_endpoint": self.issuer.rstrip("/") + "/token"}
        bearer = request.headers.get("authorization", "").startswith("Bearer ey")
        known = bearer or "/.well-known/" in request.line
        channel.sendall(reply(metadata if known else {"error": "no token"}, status=200 if known else 401))


def copied(town: Town, home: Path) -> Town:
    """The same town in another folder; only one of them can live at a time, since they share the address."""
    shutil.copytree(town.home, home, dirs_exist_ok=True)
    return Town(home, int(town.issuer.rpartition(":")[2]))
