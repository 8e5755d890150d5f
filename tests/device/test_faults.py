"""The fault matrix: what a real agent says and does while the world is broken, and that it recovers without help.

Each row is a server that misbehaves: the state, the sentence, what ``pi-agent token`` and ``status`` end with, and that a
token comes once the server is well (requirements RA-01 to RA-14).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.living import SOURCE, Living, eventually, living
from device.resident import Agent, a_home, an_authority, until
from device.servers import Authority, Request, Script, reply, token
from pi_agent import client, jws
from pi_agent.errors import AgentError


def resets(channel: socket.socket, _: Request) -> None:
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    channel.close()


def endless(channel: socket.socket, _: Request) -> None:
    channel.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        channel.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")


MATRIX: list[tuple[str, bytes | Script, str, str, int, int]] = [
    ("500", reply({"error": "server_error"}, status=500), "failed", "the server answered 500", 5, 1),
    ("502", reply(b"<html>Bad Gateway", status=502, media="text/html"), "failed", "the server answered 502", 5, 1),
    ("504", reply(b"", status=504), "failed", "the server answered 504", 5, 1),
    ("HTML", reply(b"<html>sign in</html>", media="text/html"), "failed", "without a JSON object", 5, 1),
    ("redirect", reply(b"", status=302, Location="http://127.0.0.1:1/"), "failed", "redirects (302)", 5, 1),
    ("garbage", b"\x00\xff" * 50, "failed", "", 5, 1),
    ("nothing", b"", "failed", "", 5, 1),
    ("reset", resets, "failed", "", 5, 1),
    ("endless", endless, "failed", "longer than 64 KiB", 5, 1),
    ("gzip", reply(b"\x1f\x8b", Content_Encoding="gzip"), "failed", "compressed", 5, 1),
    ("cut off", reply()[:-10], "failed", "", 5, 1),
    ("empty token", reply(token(access_token="")), "failed", "not a bearer token", 5, 1),
    ("no life", reply(token(expires_in=0)), "failed", "expires_in", 5, 1),
    ("NaN", reply(b'{"access_token":"a","token_type":"Bearer","expires_in":NaN}'), "failed", "JSON", 5, 1),
    ("busy", reply({"error": "slow_down"}, status=429, Retry_After="1"), "failed", "slow_down", 5, 1),
    ("refused", reply({"error": "invalid_client"}, status=400), "refused", "invalid_client", 4, 4),
    ("revoked", reply({"error": "invalid_grant"}, status=400), "refused", "invalid_grant", 4, 4),
    ("pending", reply({"error": "authorization_pending"}, status=400), "pending", "approval", 4, 4),
]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "state", "words", "code"),
    [(row[1], row[2], row[3], row[5]) for row in MATRIX],
    ids=[row[0] for row in MATRIX],
)
def test_a_server_that_misbehaves(pi: Living, fault: bytes | Script, state: str, words: str, code: int) -> None:
    """RA-02 to RA-14: the agent stays up, names the fault, hands out nothing, and has a token soon after the server is well."""
    pi.answers.now = fault
    with pi.running() as agent:
        status = pi.state(state)
        assert words in status["sentence"]
        with pytest.raises(AgentError) as refused:
            pi.token(timeout=0)
        assert (refused.value.status, refused.value.exit_code) == ((403, 4) if code == 4 else (503, 5))
        shown = pi.run("status")
        assert (shown.returncode, len(shown.stdout.splitlines()) <= 12) == (code, True)
        assert status["failure"]["message"] in shown.stdout
        pi.answers.now = reply()
        eventually(lambda: asked_again(agent, pi), "recovery")
        assert agent.poll() is None
        # RA-35: an answer may be lost after the server has taken the assertion, so none is sent twice.
        jtis = [jws.parse(each.form["assertion"]).claims["jti"] for each in pi.posts()]
        assert len(set(jtis)) == len(jtis) >= 2


def test_nobody_listens(pi: Living) -> None:
    """RA-02: connection refused is named as such."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    pi.environment["PI_AGENT_SERVER_TOKEN_ENDPOINT"] = f"http://127.0.0.1:{port}/token"
    with pi.running():
        assert "connection refused" in pi.state("failed")["sentence"]


def test_a_name_that_nobody_knows(pi: Living) -> None:
    """RA-03: DNS is named; while it is asked, the socket answers at once."""
    pi.environment["PI_AGENT_SERVER_TOKEN_ENDPOINT"] = "https://no-such-host.invalid/token"
    with pi.running():
        begun = time.monotonic()
        pi.status()
        assert time.monotonic() - begun < 1
        assert pi.state("failed")["failure"]["reason"] in ("dns", "timeout")


def test_a_server_that_hangs_holds_up_nobody(pi: Living) -> None:
    """RA-06, E-05: while an attempt hangs, callers hear "not yet" at once, that it is under way, and the agent ends when told to."""
    pi.answers.now = lambda channel, _: time.sleep(20)
    with pi.running() as agent:
        eventually(lambda: bool(pi.posts()), "a request")
        begun = time.monotonic()
        assert pi.get("/v1/token")[0] == 503
        assert pi.status()["sentence"] == "no token, first request under way"
        assert time.monotonic() - begun < 1
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(5) == 0
    assert not (pi.home / "run" / "agent.sock").exists()


@pytest.mark.parametrize(
    ("days", "name", "words"), [(-1, "127.0.0.1", "expired"), (1, "elsewhere.example", "match|valid for")]
)
def test_a_certificate_that_does_not_fit(tmp_path: Path, days: int, name: str, words: str) -> None:
    """RA-08: an expired certificate, or another's, fails closed and is named."""
    authority = Authority(tmp_path)
    with living(tmp_path / "pi", tls=authority.context(name=name, days=days)) as pi:
        pi.environment["PI_AGENT_SERVER_CA_FILE"] = str(authority.ca_file)
        with pi.running():
            status = pi.state("failed")
            assert status["failure"]["reason"] == "tls"
            assert any(word in status["sentence"] for word in words.split("|"))
            assert "token" not in [request.form.get("grant_type") for request in pi.server.requests]


def test_no_descriptor_left_is_survived(pi: Living) -> None:
    """RA-36: with every descriptor in use the agent goes on, and serves again when callers leave."""
    with pi.running(("prlimit", "--nofile=40")) as agent:
        pi.state("ok")
        held = [held_open(pi) for _ in range(60)]
        for channel in held:
            channel.close()
        eventually(pi.has_token, "an answer")
        assert agent.poll() is None


def test_a_thousand_idle_connections_hurt_nobody(pi: Living) -> None:
    """RA-32: 1,000 connections that say nothing are held, another caller is served, and the refresh goes on."""
    with pi.running(("prlimit", "--nofile=4096")) as agent:
        pi.state("ok")
        held = [held_open(pi) for _ in range(1000)]
        assert pi.token()
        before = pi.status()["refreshes"]
        agent.send_signal(signal.SIGUSR1)
        eventually(lambda: pi.status()["refreshes"] > before, "a refresh")
        for channel in held:
            channel.close()


def asked_again(agent: subprocess.Popen[bytes], pi: Living) -> bool:
    agent.send_signal(signal.SIGUSR1)
    return pi.has_token()


def held_open(pi: Living) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(f"{pi.runtime}/agent.sock")
    return channel


@pytest.fixture
def strict() -> Iterator[Agent]:
    """An agent that allows a tenth of the usual, which a busy machine manages to ask, too."""
    few = "from pi_agent.device import doors; doors.PAUSE, doors.CREDIT = 0.01, 1.0"
    with an_authority() as authority, a_home(f"{authority.server.url}/token") as home, home.start(first=few) as agent:
        until(agent.token)
        yield agent


def connected(agent: Agent) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX)
    channel.connect(f"{agent.home.runtime}/agent.sock")
    channel.settimeout(5)
    return channel


def test_who_asks_too_much_is_told_so(strict: Agent) -> None:
    """RA-31: beyond the burst a user hears 429 with a sentence, on a connection that is then closed."""
    received = b""
    with connected(strict) as channel, contextlib.suppress(OSError):
        channel.sendall(b"GET /v1/status HTTP/1.1\r\nHost: pi\r\n\r\n" * 500)
        while chunk := channel.recv(1 << 20):
            received = (received + chunk)[-4096:]
    assert b"HTTP/1.1 429 Too Many Requests" in received
    assert b"asks more than 1000 times a second" in received


OTHER_USER = """
import os, sys
sys.path.insert(0, sys.argv[1]); os.chdir(sys.argv[2])
from pi_agent import client
os.setgroups([]); os.setgid(1); os.setuid(1)
print([client.get("/v1/status", runtime=".")[0] for _ in range(50)])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ra31_who_asks_too_much_hurts_nobody_else(strict: Agent) -> None:
    """While one user asks as fast as it can, and is told 429, another is served every time, and the refresh goes on."""
    stop, told = threading.Event(), set()
    runtime = strict.home.runtime

    def flood() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), connected(strict) as channel:
                channel.sendall(b"GET /v1/status HTTP/1.1\r\nHost: pi\r\n\r\n" * 20)
                told.add(channel.recv(1 << 16)[9:12])

    strict.home.folder.chmod(0o755)
    runtime.chmod(0o755)
    (runtime / "agent.sock").chmod(0o666)
    flooders = [threading.Thread(target=flood) for _ in range(4)]
    for thread in flooders:
        thread.start()
    try:
        until(lambda: b"429" in told)
        strict.again()
        command = [sys.executable, "-c", OTHER_USER, str(SOURCE), str(runtime)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout == f"{[200] * 50}\n"
    finally:
        stop.set()
        for thread in flooders:
            thread.join()
    until(lambda: (strict.status() or {"refreshes": 0})["refreshes"] > 1)


def test_sigkill_and_start_again(pi: Living) -> None:
    """RA-20, E-12: what a killed agent leaves behind does not stop the next one."""
    with pi.running() as agent:
        agent.kill()
        agent.wait(5)
    assert (pi.home / "run" / "agent.sock").exists()
    with pi.running():
        pi.state("ok")
        second = pi.run("run")
        assert second.returncode == 2
        assert second.stderr == f"error: another agent runs in {pi.runtime}\nhint: pi-agent status\n"


def test_tmpfs_full_leaves_the_socket(pi: Living) -> None:
    """RA-22: a token file that cannot be written is a warning; the socket serves."""
    pi.environment["PI_AGENT_SINKS_TOKEN_FILE"] = str(pi.home / "nowhere" / "token")
    with pi.running():
        pi.state("ok")
        assert any("cannot write" in warning for warning in pi.status()["warnings"])
        assert pi.token()


def test_nothing_secret_is_said(pi: Living) -> None:
    """G-01, A-05, E-06: neither a token nor an assertion is in the log, the status, the metrics, the command lines or any file."""
    pi.answers.now = reply(token(access_token="canary-4711-canary"))
    with pi.running() as agent:
        pi.state("ok")
        told = pi.log() + str(pi.status()) + client.get("/metrics", runtime=pi.runtime)[1].decode()
        told += Path(f"/proc/{agent.pid}/cmdline").read_text() + Path(f"/proc/{agent.pid}/environ").read_text()
        assert "canary" not in told
        secrets = (b"canary-4711", pi.posts()[0].form["assertion"][:40].encode())
        assert secrets[1].decode() not in told
        written = [path.read_bytes() for path in pi.home.rglob("*") if path.is_file()]
        assert not [secret for secret in secrets if any(secret in content for content in written)]


def test_e11_no_socket_has_an_abstract_name(pi: Living) -> None:
    """A name without a file has no permissions; the one that is listened on is the file in the runtime folder."""
    with pi.running() as agent:
        pi.state("ok")
        handles = [str(path.readlink()) for path in Path(f"/proc/{agent.pid}/fd").iterdir()]
        rows = [row.split() for row in Path(f"/proc/{agent.pid}/net/unix").read_text().splitlines()[1:]]
        names = {row[7] for row in rows if len(row) > 7 and f"socket:[{row[6]}]" in handles}
        assert names == {f"{pi.runtime}/agent.sock"}
