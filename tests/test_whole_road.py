"""The main job with every real part: a fleet server and an agent as two processes, a board, a program, an operator."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jwt
import pytest

from device.living import eventually
from device.servers import free_port
from pi_agent import assertion, client, oauth
from pi_agent.device import identity
from pi_agent.device.keys import file
from pi_agent.device.transport import Transport
from pi_agent.errors import AgentError, OAuthError, TransportError

PROJECT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CPUINFO = PROJECT / "fixtures/cpuinfo/2b-a01041-4.1-32bit.txt"
PATIENCE = 120.0

Found = TypeVar("Found")


class Road:
    """A fleet server and one agent in one folder; either can be killed and started again."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.issuer = f"http://127.0.0.1:{free_port()}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        (home / "root/proc/sys/kernel/random").mkdir(parents=True)
        shutil.copy(CPUINFO, home / "root/proc/cpuinfo")
        (home / "root/proc/sys/kernel/random/boot_id").write_text(secrets.token_hex(16))

    def fleet(self, *words: str) -> list[str]:
        return [str(BIN / "pi-fleet"), "--data", str(self.home / "fleet"), *words]

    def agent(self, *words: str) -> list[str]:
        folders = [f"--{name}={self.home / name}" for name in ("state", "runtime", "root")]
        return [str(BIN / "pi-agent"), f"--config={self.home}/config.toml", *folders, *words]

    def start(self, name: str) -> None:
        command = (
            self.agent("run") if name == "agent" else self.fleet("serve", "--bind", self.issuer.removeprefix("http://"))
        )
        with (self.home / f"{name}.log").open("ab") as log:
            environment = os.environ | {"PI_AGENT_TOKEN_SPREAD": "0"}
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> int:
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(15)

    def token(self) -> str | None:
        """A token with nearly all of its life left, or None while there is none."""
        try:
            return client.token(min_valid=1700, runtime=str(self.home / "runtime"), timeout=10)
        except (AgentError, TransportError):
            return None

    def answers(self) -> bool:
        try:
            Transport(loopback_http=True).get_json(self.issuer + "/.well-known/oauth-authorization-server")
        except TransportError:
            return False
        return True


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


@pytest.fixture
def road(tmp_path: Path) -> Iterator[Road]:
    road = Road(tmp_path)
    road.start("fleet")
    wait_for(road.answers)
    done = run(road.agent("setup", road.issuer, "--loopback-http", "--name", "kitchen"), code=4)
    assert "waiting for approval" in done
    yield road
    for name in list(road.processes):
        road.kill(name)


def test_a_program_on_an_approved_board_gets_a_token_that_anybody_can_check(road: Road) -> None:
    """curl on the socket gives a token that verifies against /oauth/jwks with PyJWT alone and says which board it is."""
    road.start("agent")
    wait_for(lambda: status(road) == "pending")
    run(road.fleet("approve", "name:kitchen", "--yes", "--max", "1", "--reason", "test"))
    wait_for(road.token)
    if shutil.which("curl"):
        socket_path = str(road.home / "runtime/agent.sock")
        answer = run(["curl", "-sS", "--unix-socket", socket_path, "http://pi/v1/token?min_valid=60"])
    else:
        answer = client.get("/v1/token?min_valid=60", runtime=str(road.home / "runtime"))[1].decode()
    token = re.search(r'"access_token": "([^"]+)"', answer)
    assert token is not None
    claims = verified(road, token[1])
    assert claims["board"]["model"] == "2B"
    assert claims["board"]["memory_mib"] == 1024
    assert claims["sub"] == identity.load(road.home / "state").client_id
    assert "kitchen" in run(road.fleet("devices", "model:2b", "memory:1gb", "auth:1d"))


def test_either_side_killed_recovers_without_help(road: Road) -> None:
    """After SIGKILL of the server, of the agent, and of both, a restart is all it takes; a token that is good is kept."""
    run(road.fleet("approve", "status:pending", "--yes", "--max", "1", "--reason", "test"))
    road.start("agent")
    first = wait_for(road.token)
    road.kill("fleet")
    assert road.token() == first
    road.processes["agent"].send_signal(signal.SIGUSR1)
    wait_for(lambda: status(road) == "failed")
    assert road.token() == first
    road.start("fleet")
    wait_for(road.answers)
    road.processes["agent"].send_signal(signal.SIGUSR1)
    assert wait_for(lambda: (token := road.token()) != first and token)
    road.kill("agent")
    road.start("agent")
    assert verified(road, wait_for(road.token))["scope"] == "device"
    road.kill("agent")
    road.kill("fleet")
    road.start("fleet")
    road.start("agent")
    assert wait_for(road.token)
    assert road.kill("agent", signal.SIGTERM) == 0
    assert not (road.home / "runtime/agent.sock").exists()


def test_ra26_the_server_gets_another_signing_key(road: Road) -> None:
    """The agent does nothing about it: the next token comes signed by the new key, and the one before it still verifies."""
    run(road.fleet("approve", "status:pending", "--yes", "--max", "1", "--reason", "test"))
    road.start("agent")
    first = wait_for(road.token)
    run(road.fleet("keys", "rotate", "--now"))

    def another() -> str | None:
        road.processes["agent"].send_signal(signal.SIGUSR1)
        token = road.token()
        return token if token and kid(token) != kid(first) else None

    verified(road, wait_for(another))
    verified(road, first)

    def at_rest() -> dict[str, Any] | None:
        """The status once every attempt was a refresh; the last signal may have begun another one."""
        found = client.ask("/v1/status", runtime=str(road.home / "runtime"))
        return found if found["attempts"] == found["refreshes"] else None

    found = wait_for(at_rest)
    assert (found["state"], found["failures"]) == ("ok", 0)


def test_a_used_assertion_is_refused_also_after_the_server_was_killed(road: Road) -> None:
    """B-21, B-23: the second use of an assertion buys nothing, before and after a SIGKILL of the server."""
    run(road.fleet("approve", "status:pending", "--yes", "--max", "1", "--reason", "test"))
    known, key = identity.load(road.home / "state"), file.load(road.home / "state")
    claims = assertion.claims(
        issuer=known.client_id, audience=road.issuer, now=int(time.time()), jti=secrets.token_urlsafe(16), lifetime=300
    )
    signed = assertion.sign(claims, kind=assertion.GRANT, alg=key.alg, kid=key.public_key().kid, sign=key.sign)
    form, transport = oauth.grant_form(signed), Transport(loopback_http=True)
    transport.buy(known.token_endpoint, lambda: form)
    for _ in range(2):
        with pytest.raises(OAuthError, match="invalid_grant"):
            transport.buy(known.token_endpoint, lambda: form)
        road.kill("fleet")
        road.start("fleet")
        wait_for(road.answers)


def test_a_revoked_board_keeps_nothing_but_its_last_token(road: Road) -> None:
    """B-25: a revoked device is refused at its next request, and its agent says so."""
    run(road.fleet("approve", "status:pending", "--yes", "--max", "1", "--reason", "test"))
    road.start("agent")
    wait_for(road.token)
    run(road.fleet("revoke", "name:kitchen", "--yes", "--max", "1", "--reason", "sold"))
    road.processes["agent"].send_signal(signal.SIGUSR1)
    wait_for(lambda: status(road) == "refused")
    assert "revoked" in str(client.ask("/v1/status", runtime=str(road.home / "runtime"))["failure"])


def test_an_enrollment_token_admits_one_board_at_once(road: Road, tmp_path: Path) -> None:
    """F-03: a one-time enrollment token approves the board that brings it, and no other board after it."""
    token = run(road.fleet("enrollment-token", "--uses", "1")).split()[-1]
    for number, code in ((1, 0), (2, 5)):
        home = tmp_path / str(number)
        shutil.copytree(road.home / "root", home / "root")
        serial = (home / "root/proc/cpuinfo").read_text()
        (home / "root/proc/cpuinfo").write_text(re.sub(r"(Serial\s*: ).*", rf"\g<1>00000000c0ffee0{number}", serial))
        other = Road.__new__(Road)
        other.home = home
        command = other.agent("setup", road.issuer, "--loopback-http", "--enrollment-token-file", "-")
        done = subprocess.run(command, input=token, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert (done.returncode == 0) is (code == 0), done.stdout + done.stderr


def status(road: Road) -> str | None:
    try:
        return str(client.ask("/v1/status", runtime=str(road.home / "runtime"))["state"])
    except TransportError:
        return None


def verified(road: Road, token: str) -> dict[str, Any]:
    key = jwt.PyJWKClient(road.issuer + "/oauth/jwks").get_signing_key_from_jwt(token)
    claims: dict[str, Any] = jwt.decode(token, key, algorithms=["ES256"], issuer=road.issuer, audience=road.issuer)
    return claims


def wait_for(probe: Callable[[], Found | None]) -> Found:
    return eventually(probe, patience=PATIENCE)


def run(command: list[str], *, code: int = 0) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == code, (command, done.stdout, done.stderr)
    return done.stdout
