"""Ways to use the token: requests and httpx, exec, wait, files, hooks; and settings that change while the agent runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from device.conftest import needs_root
from device.living import Living, eventually, numbered
from device.servers import Request, Server, reply, serving
from pi_agent.client import auth
from pi_agent.device import outlets, sinks
from pi_agent.device.tokens import Slot


@pytest.fixture
def pi(pi: Living) -> Living:
    pi.answers.now = numbered()
    return pi


@pytest.fixture
def api() -> Iterator[Server]:
    """A resource server that takes every token but the first."""

    def script(channel: Any, request: Request) -> None:
        good = request.headers.get("authorization", "") not in ("", "Bearer token-1")
        channel.sendall(reply({"thanks": True}) if good else reply({}, status=401))

    with serving(script) as server:
        yield server


def test_requests_gets_a_new_token_after_a_401(pi: Living, api: Server) -> None:
    """``auth=auth()`` in requests: a 401 is answered once, with another token, and the body goes along."""
    with pi.running():
        pi.state("ok")
        time.sleep(0.2)
        answer = requests.post(api.url, json={"degrees": 21}, auth=auth(runtime=pi.runtime), timeout=10)
        assert answer.json() == {"thanks": True}
        assert [each.headers["authorization"] for each in api.requests] == ["Bearer token-1", "Bearer token-2"]
        assert [json.loads(each.body) for each in api.requests] == [{"degrees": 21}] * 2
        assert [each.status_code for each in answer.history] == [401]


def test_a_second_401_is_the_callers(pi: Living) -> None:
    """A server that refuses the new token, too, is believed."""
    with serving(lambda channel, _: channel.sendall(reply({}, status=401))) as api, pi.running():
        pi.state("ok")
        assert requests.get(api.url, auth=auth(runtime=pi.runtime), timeout=10).status_code == 401
        assert len(api.requests) == 2


def test_httpx_takes_the_same_object(pi: Living, api: Server) -> None:
    """``auth=auth()`` in httpx, with a client and with an asynchronous one."""
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    with pi.running():
        pi.state("ok")
        with httpx.Client(auth=auth(runtime=pi.runtime)) as session:
            assert session.post(api.url, json={"degrees": 21}).json() == {"thanks": True}
        assert [each.headers["authorization"] for each in api.requests] == ["Bearer token-1", "Bearer token-2"]

        async def one() -> int:
            async with httpx.AsyncClient(auth=auth(runtime=pi.runtime)) as session:
                return int((await session.get(api.url)).status_code)

        import asyncio

        assert asyncio.run(one()) == 200


def test_wait_ends_when_a_token_is_there(pi: Living) -> None:
    """``pi-agent wait``: 0 as soon as there is a token, 1 when the time is over, 5 without an agent."""
    assert pi.run("wait", "--timeout", "0").returncode == 5
    pi.answers.now = reply(b"", status=500)
    with pi.running() as agent:
        done = pi.run("wait", "--timeout", "0.2")
        assert (done.returncode, done.stderr.startswith("error: no token")) == (1, True)
        waiting = subprocess.Popen(pi.command("wait", "--timeout", "20"))
        pi.answers.now = reply()
        agent.send_signal(signal.SIGUSR1)
        assert waiting.wait(20) == 0


def test_wait_says_4_for_a_refused_board(pi: Living) -> None:
    """A board that nobody approved: 4."""
    pi.answers.now = reply({"error": "authorization_pending"}, status=400)
    with pi.running():
        pi.state("pending")
        assert pi.run("wait", "--timeout", "0.2").returncode == 4


def test_exec_gives_the_token_and_takes_the_exit_code(pi: Living) -> None:
    """The child finds the token in its environment; its exit code is ours, or 128 and the signal."""
    with pi.running():
        pi.state("ok")
        shown = pi.run("exec", "--", sys.executable, "-c", "import os; print(os.environ['PI_AGENT_TOKEN']); exit(7)")
        assert (shown.returncode, shown.stdout) == (7, "token-1\n")
        assert pi.run("exec", "--", "sh", "-c", "kill -TERM $$").returncode == 128 + 15
        by_fd = pi.run("exec", "--fd", "--variable", "T", "--", "sh", "-c", "cat /dev/fd/$T_FD")
        assert by_fd.stdout == "token-1\n"
        assert pi.run("exec").returncode == 2
        assert pi.run("exec", "--", "/no/such/program").returncode == 2


def test_exec_restarts_its_program_with_the_new_token(pi: Living) -> None:
    """When the token has been refreshed the program is ended and started again with the new one."""
    pi.answers.now = numbered(life=10)
    seen = pi.home / "seen"
    script = f"import os, time; open({str(seen)!r}, 'a').write(os.environ['PI_AGENT_TOKEN'] + chr(10)); time.sleep(30)"
    with pi.running():
        pi.state("ok")
        child = subprocess.Popen(pi.command("exec", "--min-valid", "1", "--", sys.executable, "-c", script))
        eventually(lambda: seen.exists() and len(set(seen.read_text().split())) >= 2, "a restart")
        child.terminate()
        assert child.wait(10) in (128 + 15, 143)


def test_exec_that_is_to_end_starts_nothing_more(pi: Living) -> None:
    """SIGTERM while the program is being ended because of a new token: it is not started again, and its exit code is ours."""
    pi.answers.now = numbered(life=4)
    seen, gate = pi.home / "seen", pi.home / "gate"
    script = f"""
import os, signal, time
def tell(word): open({str(seen)!r}, "a").write(word + chr(10))
signal.signal(signal.SIGTERM, lambda *_: tell("told"))
tell(os.environ["PI_AGENT_TOKEN"])
while not os.path.exists({str(gate)!r}): time.sleep(0.02)
os._exit(7)
"""
    with pi.running():
        pi.state("ok")
        runner = subprocess.Popen(pi.command("exec", "--min-valid", "1", "--", sys.executable, "-c", script))
        eventually(lambda: seen.exists() and seen.read_text().count("told") == 1, "a rotation")
        runner.terminate()
        eventually(lambda: seen.read_text().count("told") == 2, "the signal, passed on")
        gate.touch()
        assert runner.wait(10) == 7
        assert seen.read_text().count("token-") == 1


def test_exec_goes_on_after_a_ctrl_c_that_its_program_survives(pi: Living) -> None:
    """SIGINT is the program's to take or to leave: when it goes on, it is still started again with the next token."""
    pi.answers.now = numbered(life=4)
    seen = pi.home / "seen"
    script = f"""
import os, signal, time
def tell(word): open({str(seen)!r}, "a").write(word + chr(10))
signal.signal(signal.SIGINT, lambda *_: tell("told"))
tell(os.environ["PI_AGENT_TOKEN"])
while True: time.sleep(0.1)
"""
    with pi.running():
        pi.state("ok")
        runner = subprocess.Popen(pi.command("exec", "--min-valid", "1", "--", sys.executable, "-c", script))
        eventually(lambda: seen.exists() and "token-" in seen.read_text(), "a start")
        runner.send_signal(signal.SIGINT)
        try:
            eventually(lambda: "token-" in seen.read_text().partition("told")[2], "a restart")
        finally:
            runner.terminate()
        assert runner.wait(10) == 128 + 15


def test_exec_tells_its_program_of_a_new_token(pi: Living) -> None:
    """``--fd --on-rotation USR1``: the same process hears a signal, and reads the new token where the old one was."""
    pi.answers.now = numbered(life=10)
    seen = pi.home / "seen"
    script = f"""
import os, signal, time
def tell(*_):
    token = os.pread(int(os.environ["PI_AGENT_TOKEN_FD"]), 9999, 0).decode()
    open({str(seen)!r}, "a").write(f"{{os.getpid()}} {{token}}")
signal.signal(signal.SIGUSR1, tell)
tell()
time.sleep(30)
"""
    words = ("exec", "--fd", "--on-rotation", "USR1", "--min-valid", "1", "--", sys.executable, "-c", script)
    with pi.running():
        pi.state("ok")
        child = subprocess.Popen(pi.command(*words))
        eventually(lambda: seen.exists() and seen.read_text().count("\n") > 1, "a signal")
        rows = seen.read_text().splitlines()
        assert (len({row.split()[0] for row in rows}), len({row.split()[1] for row in rows})) == (1, len(rows))
        child.terminate()
        assert child.wait(10) == 128 + 15


def test_files_and_hooks(pi: Living) -> None:
    """The token file and the environment file hold the current token, are not open to all, and go when the agent ends."""
    events = pi.home / "events"
    hook = pi.home / "hooks" / "on-token.d" / "10-tell"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\necho $PI_AGENT_EVENT >> {events}\n")
    hook.chmod(0o755)
    outside = pi.home / "hooks" / "on-token.d" / "20-planted"
    outside.write_text(f"#!/bin/sh\necho planted >> {events}\n")
    outside.chmod(0o777)
    token_file, environment_file = pi.home / "run" / "token", pi.home / "run" / "env"
    pi.environment |= {
        "PI_AGENT_SINKS_TOKEN_FILE": str(token_file),
        "PI_AGENT_SINKS_ENVIRONMENT_FILE": str(environment_file),
        "PI_AGENT_SINKS_HOOKS": str(pi.home / "hooks"),
    }
    with pi.running() as agent:
        eventually(lambda: events.exists() and events.read_text() == "token\n", "the hook")
        assert token_file.read_text() == "token-1"
        assert stat.S_IMODE(token_file.stat().st_mode) == 0o600
        assert environment_file.read_text().splitlines()[0] == "PI_AGENT_TOKEN=token-1"
        agent.send_signal(signal.SIGUSR1)
        eventually(lambda: token_file.read_text() == "token-2", "the next token")
        assert sorted(path.name for path in (pi.home / "run").iterdir()) == ["agent.lock", "agent.sock", "env", "token"]
    assert not token_file.exists()
    assert not environment_file.exists()


def test_ra14_e07_a_refused_boards_files_go(pi: Living) -> None:
    """When the server refuses the board, the files with its last token are taken away, and a hook hears why."""
    events, token_file = pi.home / "events", pi.home / "run" / "token"
    hook = pi.home / "hooks" / "on-refused.d" / "tell"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\necho $PI_AGENT_EVENT $PI_AGENT_REASON >> {events}\n")
    hook.chmod(0o755)
    pi.environment |= {
        "PI_AGENT_SINKS_TOKEN_FILE": str(token_file),
        "PI_AGENT_SINKS_HOOKS": str(pi.home / "hooks"),
    }
    with pi.running() as agent:
        eventually(token_file.exists, "the token file")
        pi.answers.now = reply({"error": "invalid_grant"}, status=400)
        agent.send_signal(signal.SIGUSR1)
        eventually(lambda: not token_file.exists(), "the end of the file")
        eventually(lambda: events.exists() and events.read_text() == "refused invalid_grant\n", "the hook")


def test_a_reader_of_the_token_file_sees_old_or_new(tmp_path: Path) -> None:
    """E-07: reading as fast as possible while it is replaced a thousand times never gives an empty or torn token."""
    path = tmp_path / "token"
    sinks.write(str(path), b"A" * 900, None)
    torn: list[str] = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            text = path.read_text()
            if len(text) != 900 or len(set(text)) != 1:
                torn.append(text[:20])

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1000):
        assert sinks.write(str(path), bytes([65 + number % 26]) * 900, None) == ""
    stop.set()
    reader.join()
    assert torn == []


def test_ra22_e07_a_file_outlives_neither_its_token_nor_the_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that cannot be replaced goes when the token in it ends, and the new one is written as soon as that is possible."""
    path = tmp_path / "token"
    settings = {"token_file": str(path), "environment_file": "", "hooks": ""}
    slot = Slot("", "", 0.0)
    outlet = outlets.Outlets(settings, None)

    def token_comes(name: str, now: float) -> None:
        slot.asked = now
        slot.keep({"outcome": "token", "head": f'{{"access_token": "{name}", ', "tail": "}", "expires_in": "100"}, 0.5)
        outlet.put(slot, now, changed=False, start=lambda *_: None)

    token_comes("first", 1000.0)
    with monkeypatch.context() as full:
        full.setattr(sinks, "write", lambda path, *_: f"cannot write {path}: full")
        token_comes("second", 1050.0)
        outlet.sweep(slot, 1099.0)
        assert (path.read_text(), outlet.problem) == ("first", f"cannot write {path}: full")
        outlet.sweep(slot, 1100.0)
        assert not path.exists()
    outlet.sweep(slot, 1101.0)
    assert (path.read_text(), outlet.problem) == ("second", "")
    outlet.sweep(slot, 1150.0)
    assert not path.exists()


@pytest.mark.parametrize("plant", ["symlink", "directory"])
def test_planted_names_redirect_no_token(tmp_path: Path, plant: str) -> None:
    """E-08: a link at the token file's name is replaced, not followed; a directory there is a warning."""
    target = tmp_path / "target"
    target.write_text("mine")
    path = tmp_path / "run" / "token"
    path.parent.mkdir()
    if plant == "symlink":
        path.symlink_to(target)
        assert sinks.write(str(path), b"secret", None) == ""
        assert not path.is_symlink()
    else:
        path.mkdir()
        assert "cannot write" in sinks.write(str(path), b"secret", None)
    assert target.read_text() == "mine"
    assert [each.name for each in path.parent.iterdir()] == ["token"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o757])
def test_e09_nothing_is_written_where_others_may_write(tmp_path: Path, mode: int) -> None:
    """Whoever may write in the folder could put another token there, sticky bit or not: it is a warning, and no file."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    said = sinks.write(str(folder / "token"), b"secret", None)
    assert f"cannot write {folder}/token: {folder} may be written by others" in said
    assert list(folder.iterdir()) == []


@needs_root
def test_e09_nothing_is_written_into_another_users_folder(tmp_path: Path) -> None:
    """Nor into a folder that belongs to neither root nor the agent."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    os.chown(folder, 1234, -1)
    assert f"{folder} belongs to uid 1234" in sinks.write(str(folder / "token"), b"secret", None)
    assert list(folder.iterdir()) == []


def test_e08_a_link_in_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    """What it leads to stays empty."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to("elsewhere")
    assert "cannot write" in sinks.write(str(tmp_path / "run" / "token"), b"secret", None)
    assert list((tmp_path / "elsewhere").iterdir()) == []


@needs_root
@pytest.mark.parametrize("theirs", ["on-token.d", "on-token.d/hook"])
def test_e09_another_users_hook_is_not_run(tmp_path: Path, theirs: str) -> None:
    """A hook, or the folder with it, that belongs to neither root nor the agent: whoever owns it may change it."""
    hook = tmp_path / "on-token.d" / "hook"
    hook.parent.mkdir()
    hook.touch(0o755)
    assert sinks.hooks(str(tmp_path), "token") == [str(hook)]
    os.chown(tmp_path / theirs, 1234, -1)
    assert sinks.hooks(str(tmp_path), "token") == []


def test_sighup_takes_new_settings_and_keeps_the_old_for_bad_ones(pi: Living) -> None:
    """RA-24: a good file is taken over, a bad one is named with file and line, and the agent goes on as before."""
    config = pi.home / "config.toml"
    with pi.running() as agent:
        pi.state("ok")
        pi.configure('[token]\nscope = "one two"\n', "config.d/10-scope.toml")
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: "settings were read again" in pi.log(), "the new settings")
        eventually(lambda: pi.posts()[-1].form.get("scope") == "one two", "a request with the new scope")
        config.write_text(config.read_text() + 'isuer = "x"\n')
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: "the settings stay as they were" in pi.log(), "the refusal")
        assert f"{config}:4: there is no setting 'server.isuer'" in pi.log()
        assert pi.token()


def test_sighup_leaves_the_token_file_and_makes_a_new_one(pi: Living) -> None:
    """A file that the settings still name stays; one that they name from now on is there with the token of before."""
    first, second = pi.home / "run" / "token", pi.home / "run" / "environment"
    pi.configure(f'[sinks]\ntoken_file = "{first}"\n', "config.d/10-sinks.toml")
    with pi.running() as agent:
        eventually(first.exists, "the token file")
        pi.configure(f'[sinks]\ntoken_file = "{first}"\nenvironment_file = "{second}"\n', "config.d/10-sinks.toml")
        agent.send_signal(signal.SIGHUP)
        eventually(second.exists, "the environment file")
        assert (first.read_text(), "PI_AGENT_TOKEN=token-1\n" in second.read_text()) == ("token-1", True)
        pi.configure("", "config.d/10-sinks.toml")
        agent.send_signal(signal.SIGHUP)
        eventually(lambda: not first.exists() and not second.exists(), "the end of both")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_a_small_program_in_the_shell(pi: Living) -> None:
    """The documented line for curl works against the socket itself."""
    with pi.running():
        pi.state("ok")
        command = ["curl", "-s", "--unix-socket", f"{pi.runtime}/agent.sock", "http://pi/v1/token"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["access_token"] == "token-1"


def test_the_resident_stays_thin(pi: Living) -> None:
    """A running agent holds no more than a third of what the worker's libraries take: no ssl, no libcrypto in its maps."""
    with pi.running() as agent:
        pi.state("ok")
        maps = Path(f"/proc/{agent.pid}/maps").read_text()
        assert not [word for word in ("libssl", "libcrypto", "_rust", "_asyncio") if word in maps]
