"""The agent as a process: what callers get from it, whatever becomes of its server, its workers and itself."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from device.resident import Agent, Authority, Home, a_home, an_authority, is_at_work, refusal, tokens, until
from device.servers import reply
from pi_agent import client, jws
from pi_agent.device import frames
from pi_agent.device.keys import file


@pytest.fixture
def authority() -> Iterator[Authority]:
    with an_authority() as authority:
        yield authority


@pytest.fixture
def home(authority: Authority) -> Iterator[Home]:
    with a_home(authority.server.url + "/token") as home:
        yield home


@pytest.fixture
def agent(home: Home) -> Iterator[Agent]:
    with home.start() as agent:
        yield agent


def attempts(agent: Agent) -> int:
    status = agent.status()
    assert status is not None
    return int(status["attempts"])


def failure(agent: Agent) -> dict[str, str] | None:
    status = agent.status()
    found: dict[str, str] | None = status["failure"] if status else None
    return found


# The road


def test_a_token_over_the_socket(agent: Agent, authority: Authority) -> None:
    """What the server gave is handed out, with the seconds that are left."""
    token = until(agent.token)
    assert token == "canary-token-0001"
    status, members = agent.ask("/v1/token")
    assert (status, set(members)) == (200, {"access_token", "token_type", "expires_in"})
    assert 1790 <= members["expires_in"] <= 1800
    sent = authority.server.requests[0]
    parsed = jws.parse(sent.form["assertion"])
    assert (parsed.claims["iss"], parsed.claims["aud"]) == ("pi-4f1c", "https://fleet.example")
    assert parsed.claims["board"]["revision"] == "a01041"


def test_a04_a05_every_attempt_carries_a_new_jti(agent: Agent, authority: Authority) -> None:
    """A retried assertion would be refused as a replay."""
    authority.answer = lambda number: reply(status=503)
    for count in range(1, 4):
        until(lambda count=count: len(authority.server.requests) >= count)  # type: ignore[misc]
        until(lambda: not agent.workers())
        time.sleep(0.25)
        agent.again()
    jtis = [jws.parse(request.form["assertion"]).claims["jti"] for request in authority.server.requests]
    assert len(set(jtis)) == len(jtis) >= 3
    assert all(len(base64.urlsafe_b64decode(jti + "==")) == 16 for jti in jtis)


def test_pi_agent_run_is_the_same_agent(home: Home) -> None:
    """Through the command line: it becomes the resident, gives a token, and leaves no socket behind on SIGTERM."""
    with home.log.open("wb") as log:
        process = subprocess.Popen(home.command("run"), env=home.environment(), stderr=log)
    agent = Agent(home, process)
    try:
        assert until(lambda: agent.status() and agent.token()) == "canary-token-0001"
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"-I\0-S\0" in command
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
    assert not (home.runtime / "agent.sock").exists()
    assert "Traceback" not in agent.said()


# Never an expired or an empty one


def test_e05_a_token_that_ends_is_no_longer_handed_out(home: Home, authority: Authority) -> None:
    """While the server is down the last token is served as long as it is good, and 503 from then on."""
    authority.answer = lambda number: reply(tokens(number)) if number == 1 else reply(status=500)
    later = home.folder / "later"
    later.write_text("0")
    ahead = (
        "from pi_agent.device import agent; _boot = agent.boot_seconds; agent.boot_seconds = lambda: _boot() + float"
    )
    with home.start(first=f"{ahead}(open({str(later)!r}).read())") as agent:
        token = until(agent.token)
        agent.again()
        until(lambda: len(authority.server.requests) > 1 and failure(agent))
        assert agent.token(min_valid=0) == token  # the failure has taken nothing away
        (home.folder / "new").write_text("1800")
        (home.folder / "new").rename(later)  # half an hour has gone by
        status, members = agent.ask("/v1/token?min_valid=0")
        assert (status, "access_token" in members, str(token) in str(members)) == (503, False, False)


def test_ra01_a_token_is_renewed_at_half_its_life(agent: Agent, authority: Authority) -> None:
    """With a life of ten seconds the next token comes after four to six, and callers have one all the time."""
    authority.answer = lambda number: reply(tokens(number, expires_in=10))
    first = until(agent.token)
    begun, seen = time.monotonic(), set()
    while agent.token(min_valid=0) == first:
        seen.add(agent.ask("/v1/token?min_valid=0")[0])
        assert time.monotonic() - begun < 12
        time.sleep(0.05)
    assert time.monotonic() - begun > 1  # not before 40 % of the life, less the time that the first worker took
    assert seen == {200}
    assert agent.token(min_valid=0) == "canary-token-0002"


def test_a_caller_who_wants_more_than_a_token_has_left_is_told(agent: Agent, authority: Authority) -> None:
    """min_valid beyond the life is no reason to ask the server again and again."""
    until(agent.token)
    for _ in range(20):
        status, members = agent.ask("/v1/token?min_valid=86400")
        assert status >= 400
        assert "access_token" not in members
    time.sleep(0.25)
    assert len(authority.server.requests) == 1


@pytest.mark.parametrize(
    "query", ["min_valid=-1", "min_valid=soon", "min_valid=", "min_valid=9999999", "min_valid=%C2%B2", "min_valid=1.5"]
)
def test_a_wish_that_is_no_number_is_400(agent: Agent, query: str) -> None:
    """Whole seconds, of at most six digits."""
    assert agent.ask(f"/v1/token?{query}")[0] == 400


def test_e03_there_is_no_way_to_have_something_signed(agent: Agent) -> None:
    """Paths beyond the documented ones are 404, whatever they ask for."""
    for path in ("/", "/v1/sign", "/v1/key", "/v1/assertion", "/v1/token/", "//v1/token", "/v1/../key.pem"):
        assert agent.ask(path)[0] == 404


# What the server says


def test_a_device_that_waits_for_approval_says_so(agent: Agent, authority: Authority) -> None:
    """403, a sentence, and the token once somebody has approved it."""
    authority.answer = lambda number: refusal("authorization_pending", error_description="not approved yet")
    until(lambda: failure(agent))
    status, members = agent.ask("/v1/token")
    assert status == 403
    assert "waiting for an operator's approval" in members["detail"]
    assert agent.status()["state"] == "pending"  # type: ignore[index]
    authority.answer = lambda number: reply(tokens(number))
    time.sleep(0.3)
    agent.again()
    assert until(agent.token)


def test_ra14_a_refused_device_says_so_and_asks_slowly(agent: Agent, authority: Authority) -> None:
    """403, the server's sentence, minutes until the next attempt, and the key stays as it was."""
    key = (agent.home.state / "key.pem").read_bytes()
    authority.answer = lambda number: refusal("invalid_grant", error_description="this device was revoked")
    until(lambda: failure(agent))
    status, members = agent.ask("/v1/token")
    assert status == 403
    assert "this device was revoked" in members["detail"]
    found = agent.status()
    assert found is not None
    assert found["state"] == "refused"
    assert found["next_attempt_in"] > 250
    assert (agent.home.state / "key.pem").read_bytes() == key


def test_ra04_the_servers_retry_after_is_obeyed(agent: Agent, authority: Authority) -> None:
    """A busy server says when."""
    authority.answer = lambda number: reply({"error": "slow_down"}, status=429, Retry_After="1000")
    until(lambda: failure(agent))
    found = agent.status()
    assert found is not None
    assert 990 < found["next_attempt_in"] < 1110


def test_ra02_a_server_that_is_not_there_is_named(agent: Agent, authority: Authority) -> None:
    """503 with the cause; the agent goes on."""
    authority.answer = lambda number: reply(status=500)
    assert until(lambda: failure(agent))["message"] == "the server answered 500"  # type: ignore[index]
    assert agent.ask("/v1/token")[0] == 503


# Workers that do not come back


def test_a_worker_that_is_killed_is_one_failed_attempt(agent: Agent, authority: Authority) -> None:
    """SIGKILL in the middle of a request: the agent says so, answers meanwhile, and tries again."""
    authority.hang.clear()
    (worker,) = until(lambda: len(authority.server.requests) == 1 and agent.workers())  # type: ignore[misc]
    assert agent.ask("/v1/token")[0] == 503  # nobody waits for the network
    os.kill(worker, signal.SIGKILL)
    until(lambda: failure(agent))
    assert attempts(agent) == 1
    authority.hang.set()
    time.sleep(0.3)
    agent.again()
    assert until(agent.token)
    assert "broke off" in agent.said()


def test_ra36_no_process_to_be_had_is_one_failed_attempt(home: Home) -> None:
    """What the system refuses is named as such, said once, and over when the system gives again."""
    python = home.folder / "python"
    with home.start(home.fields() | {"python": str(python)}) as agent:
        assert until(lambda: failure(agent))["reason"] == "resources"  # type: ignore[index]
        for _ in range(3):
            before = attempts(agent)
            agent.again()
            until(lambda before=before: attempts(agent) > before)  # type: ignore[misc]
        assert agent.said().count("no worker: ") == 1
        python.symlink_to(sys.executable)
        agent.again()
        assert until(agent.token)


def test_the_resident_does_not_cut_in_on_its_callers(agent: Agent) -> None:
    """It runs with SCHED_BATCH, which makes a connection cheaper by an eighth (./dev bench agent)."""
    assert os.sched_getscheduler(agent.process.pid) == os.SCHED_BATCH


def test_a05_a12_no_process_shows_key_or_assertion(agent: Agent, authority: Authority) -> None:
    """Command lines and environments of resident and worker hold neither; nor does the resident know the key."""
    authority.hang.clear()
    (worker,) = until(lambda: len(authority.server.requests) == 1 and agent.workers())  # type: ignore[misc]
    secrets = (authority.server.requests[0].form["assertion"].encode(), b"PRIVATE KEY")
    for pid in (agent.process.pid, worker):
        shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert not any(secret in shown for secret in secrets)


def test_ra09_whatever_a_worker_says_the_agent_stays(home: Home) -> None:
    """A worker that was taken over can do no more than fail: silence, nonsense and a flood are three failed attempts."""
    folder = home.folder / "false" / "pi_agent" / "device"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    said = home.folder / "says"
    (folder / "worker.py").write_text(f"import os\ndef main():\n    os.write(1, open({str(said)!r}, 'rb').read())\n")
    nonsense = frames.pack({"outcome": "token", "head": "x", "tail": "}", "expires_in": "soon"})
    said.write_bytes(b"")
    with home.start(home.fields() | {"path": str(home.folder / "false")}) as agent:
        until(lambda: failure(agent))
        for count, garbage in enumerate((nonsense, b"x" * 200_000), 2):
            said.write_bytes(garbage)
            agent.again()
            until(lambda count=count: agent.process.poll() is not None or attempts(agent) == count)  # type: ignore[misc]
        until(lambda: not agent.workers())
        assert agent.process.poll() is None, agent.said()
        assert agent.ask("/v1/token?min_valid=0")[0] == 503
    assert "Traceback" not in agent.said()


OURS = {
    *(
        "agent",
        "allow",
        "api",
        "children",
        "clock",
        "doors",
        "entrance",
        "frames",
        "journal",
        "leaving",
        "local",
        "metrics",
    ),
    *("network", "outlets", "schedule", "sinks", "systemd", "tokens"),
}
DEAR = {
    *("ssl", "asyncio", "requests", "urllib3", "oauthlib", "cryptography", "jwt", "logging", "argparse", "dataclasses"),
    *("tomllib", "typing", "json", "re", "enum", "socket", "selectors", "subprocess", "pathlib", "threading", "signal"),
    *("ctypes", "_ctypes", "datetime", "collections", "functools", "contextlib", "email", "http", "urllib", "hashlib"),
}


def test_the_resident_is_made_of_these_modules(home: Home) -> None:
    """After a life with everything in it (a token, a refusal, figures, new settings) nothing dear was imported."""
    listed = home.folder / "modules"
    at_exit = f"import atexit, sys; atexit.register(lambda: open({str(listed)!r}, 'w').write('\\n'.join(sys.modules)))"
    token_file = str(home.folder / "token")
    with home.start(home.fields() | {"token_file": token_file}, first=at_exit) as agent:
        assert until(agent.token)
        for target in ("/v1/token?audience=x", "/v1/board", "/nothing", "/v1/token?min_valid=x"):
            agent.ask(target)
        client.get("/metrics", runtime=str(home.runtime))
        agent.process.send_signal(signal.SIGHUP)
        until(lambda: "the settings" in agent.said())
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(10) == 0
    modules = set(listed.read_text().split())
    assert {name for name in modules if name.startswith("pi_agent.device.")} == {
        f"pi_agent.device.{name}" for name in OURS
    }
    assert not modules & DEAR


# Ends and beginnings


def _a_link(key: Path) -> None:
    key.rename(key.with_name("elsewhere"))
    key.symlink_to("elsewhere")


def _a_directory(key: Path) -> None:
    key.unlink()
    key.mkdir()


def _another_key(key: Path) -> None:
    key.unlink()
    file.load_or_create(key.parent)


SPOILED: dict[str, Callable[[Path], object]] = {
    "missing": lambda key: key.unlink(),
    "empty": lambda key: key.write_bytes(b""),
    "garbled": lambda key: key.write_bytes(b"\0" * 200),
    "open to others": lambda key: key.chmod(0o644),
    "a link": _a_link,
    "a directory": _a_directory,
    "another key": _another_key,
    "half an identity": lambda key: key.with_name("identity.json").write_text('{"version": 2, "iss'),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_ra23_ra30_what_trying_again_cannot_mend_stops_the_service(home: Home, spoil: Callable[[Path], object]) -> None:
    """One line that says what it is, a hint, and the exit code of RestartPreventExitStatus=; the file is left as it is."""
    key = home.state / "key.pem"
    spoil(key)
    before = {path.name: (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in home.state.iterdir()}
    done = home.run("run")
    assert done.returncode == 2, done.stderr
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: ") and hint.startswith("hint: ")
    assert before == {path.name: (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in home.state.iterdir()}


def test_ra21_a_disk_that_cannot_be_read_now_is_tried_again(home: Home) -> None:
    """EIO on the key is another matter: systemd starts the agent again."""
    broken = (
        "import os; _open = os.open\n"
        "def opens(path, *rest, **more):\n"
        "    if str(path).endswith('key.pem'): raise OSError(5, 'Input/output error')\n"
        "    return _open(path, *rest, **more)\n"
        "os.open = opens"
    )
    done = home.run("run", first=broken)
    assert (done.returncode, "key.pem: Input/output error" in done.stderr) == (1, True)


def test_e12_a_second_agent_in_the_same_folder_says_so(agent: Agent, home: Home) -> None:
    """It ends with one clear sentence, and the first one goes on."""
    done = home.run("run")
    assert done.returncode != 0
    assert f"error: another agent runs in {home.runtime}" in done.stderr
    assert "Traceback" not in done.stderr
    assert until(agent.token)


def test_e12_ra20_after_a_sigkill_the_next_agent_takes_over(home: Home) -> None:
    """A dead agent's socket is in nobody's way."""
    with home.start() as first:
        until(first.token)
        first.process.kill()
        first.process.wait()
    assert (home.runtime / "agent.sock").exists()
    with home.start() as second:
        assert until(second.token) == "canary-token-0002"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_no_socket_and_no_worker(
    home: Home, authority: Authority, number: signal.Signals
) -> None:
    """Even in the middle of an attempt."""
    authority.hang.clear()
    with home.start() as agent:
        (worker,) = until(lambda: len(authority.server.requests) == 1 and agent.workers())  # type: ignore[misc]
        agent.process.send_signal(number)
        assert agent.process.wait(5) == 0
    assert not (home.runtime / "agent.sock").exists()
    until(lambda: not is_at_work(worker), patience=3)  # long before it would give up by itself


def test_ra32_idle_and_half_connections_do_not_hurt(agent: Agent) -> None:
    """Two hundred callers who say nothing, or half a line, and the next is answered at once."""
    until(agent.token)
    callers = []
    for number in range(200):
        channel = socket.socket(socket.AF_UNIX)
        channel.connect(str(agent.home.runtime / "agent.sock"))
        if number % 2:
            channel.sendall(b"GET /v1/tok")
        callers.append(channel)
    begun = time.monotonic()
    assert agent.token()
    assert time.monotonic() - begun < 2
    for channel in callers:
        channel.close()


def test_e03_hostile_bytes_do_not_end_it(agent: Agent) -> None:
    """Anybody who may connect may send anything."""
    for data in (
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"\0" * 9000,
        b"\r\n\r\n",
        b"GET /?%ff HTTP/1.1\r\n\r\n",
        os.urandom(3000) + b"\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(agent.home.runtime / "agent.sock"))
            try:
                channel.sendall(data)
                channel.settimeout(2)
                channel.recv(1000)
            except OSError:
                continue
    assert agent.process.poll() is None
    assert agent.status()


# What is said


def test_g01_g09_the_log_holds_no_token_and_no_repetition(agent: Agent, authority: Authority) -> None:
    """Success, failure and refusal in turn: lines about each change, none with a token or an assertion."""
    until(agent.token)
    authority.answer = lambda number: refusal(
        "invalid_grant", error_description=f"no: {authority.server.requests[-1].body.decode()}"
    )
    for _ in range(2):
        before = attempts(agent)
        agent.again()
        until(lambda before=before: attempts(agent) > before and not agent.workers())  # type: ignore[misc]
    until(lambda: failure(agent))
    text = agent.said() + json.dumps(agent.status())
    assert "canary-token" not in text
    for request in authority.server.requests:
        assert request.form["assertion"][:40] not in text
    assert agent.said().count("refused") == 1
    assert "Traceback" not in text
