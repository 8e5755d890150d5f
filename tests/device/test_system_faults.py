"""Faults of the system below the agent, with real file systems and a real resolver: what it says, and that it recovers."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.living import Living, eventually
from device.resident import Home, a_home, until
from device.rotating import Rotating
from device.spaces import joining, mounting, needs_mounts, seen_by, within
from pi_agent.device import identity
from pi_agent.device.joining import load_key
from pi_agent.device.keys import file

pytestmark = needs_mounts

QUICK = "from pi_agent.device import transport; transport.DEADLINE = 1.0"
DEAF = "127.0.0.153"


def first_cross(home: Home, wrapper: tuple[str, ...], first: str = "") -> dict[str, str]:
    """The first finding of ``pi-agent doctor`` that is bad, of a board that sees what ``wrapper`` gives it."""
    done = home.run("doctor", "--json", wrapper=wrapper, first=first)
    bad = [each for each in json.loads(done.stdout)["findings"] if each["verdict"] == "bad"]
    assert done.returncode == int(bool(bad)), done.stderr
    return bad[0] if bad else {"name": "", "text": "", "hint": ""}


# A resolver that never answers


@pytest.fixture
def deaf() -> Iterator[socket.socket]:
    """A name server that hears and says nothing."""
    channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        channel.bind((DEAF, 53))
    except OSError as error:
        pytest.skip(f"no name server of our own: {error.strerror}")
    channel.setblocking(False)
    with channel:
        yield channel


def is_asked(deaf: socket.socket) -> bool:
    try:
        return bool(deaf.recv(512))
    except BlockingIOError:
        return False


def test_ra03_a_resolver_that_never_answers(deaf: socket.socket, tmp_path: Path) -> None:
    """The attempt ends in its time and names DNS; meanwhile the socket answers; doctor's first cross is DNS."""
    resolver, names = tmp_path / "resolv.conf", tmp_path / "nsswitch.conf"
    resolver.write_text(f"nameserver {DEAF}\noptions timeout:30 attempts:1\n")
    names.write_text("hosts: files dns\n")
    wrapper = mounting(f"mount --bind {resolver} /etc/resolv.conf", f"mount --bind {names} /etc/nsswitch.conf")
    with a_home("https://fleet.example/token") as home, home.start(home.bend(QUICK), wrapper=wrapper) as agent:
        until(lambda: is_asked(deaf))
        status = agent.status()
        assert status is not None
        assert (status["attempts"], status["failure"], status["next_attempt_in"]) == (1, None, None)
        assert agent.ask("/v1/token")[0] == 503
        failure: dict[str, str] = until(lambda: (agent.status() or {}).get("failure") or {})
        assert (failure["reason"], "no name server" in failure["message"]) == ("dns", True)
        until(lambda: not agent.workers())
        found = first_cross(home, wrapper, "from pi_agent.device import doctor; doctor.PATIENCE = 0.5")
        assert (found["name"], "fleet.example" in found["text"]) == ("dns", True)


# Disks that are full or read-only


def rotating(pi: Living, **more: int) -> Rotating:
    """The server wants rotations done as a fleet does them."""
    server = Rotating(file.load(pi.home / "state").public_key(), pi.server.url, **more)
    pi.answers.now, pi.answers.metadata = server, server.metadata
    return server


def small(folder: Path, kind: str, options: str = "rw") -> tuple[str, ...]:
    """``folder`` on a file system of its own, with what is in it."""
    before = folder.with_suffix(".before")
    shutil.copytree(folder, before, copy_function=shutil.copy2)
    mount = f"mount -t tmpfs -o size=256k,mode=700 none {folder}"
    if kind == "ext4":
        if not Path("/dev/loop-control").exists():
            pytest.skip("no loop devices here: a container")
        image = folder.with_suffix(".image")
        with image.open("wb") as file:
            file.truncate(4 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
        mount = f"mount -o loop {image} {folder}; chmod 700 {folder}"
    return mounting(mount, f"cp -a {before}/. {folder}", f"mount -o remount,{options} {folder}")


def fill(folder: Path) -> None:
    """Not a byte is left."""
    for number, size in enumerate((65536, 1024, 1)):
        with contextlib.suppress(OSError), (folder / f"filler-{number}").open("wb", buffering=0) as filler:
            while filler.write(b"\0" * size):
                pass


def make_room(folder: Path) -> None:
    for filler in folder.glob("filler-*"):
        filler.unlink()


def refreshed(pi: Living, agent: subprocess.Popen[bytes]) -> None:
    """One refresh more than before."""
    before = pi.status()["refreshes"]
    eventually(lambda: asks(agent) and pi.status()["refreshes"] > before, "a refresh")


def asks(agent: subprocess.Popen[bytes]) -> bool:
    agent.send_signal(signal.SIGUSR1)
    return True


def crosses(pi: Living, agent: subprocess.Popen[bytes]) -> list[dict[str, str]]:
    """What the doctor finds bad, where the agent lives."""
    done = pi.run("doctor", "--json", wrapper=joining(agent.pid))
    return [each for each in json.loads(done.stdout)["findings"] if each["verdict"] == "bad"]


def is_whole(state: Path) -> bool:
    """An identity with its key, and nothing half."""
    known = identity.load(state)
    assert load_key(state, known).public_key().kid == known.kid
    return not list(state.glob(".pi-agent-*"))


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_ra21_a_full_disk_postpones_the_rotation_and_nothing_else(pi: Living, kind: str) -> None:
    """Tokens are served, no file is half, status and doctor say why; with room again the key is rotated."""
    server, state = rotating(pi), pi.home / "state"
    with pi.running(small(state, kind)) as agent:
        pi.state("ok")
        inside = seen_by(agent.pid, state)
        fill(inside)
        server.is_due = True
        refreshed(pi, agent)
        eventually(lambda: f"the key is not rotated yet: cannot write {state}/identity.json: No space left" in pi.log())
        (warning,) = pi.status()["warnings"]
        assert "the key is not rotated yet" in warning
        assert warning in pi.run("status").stdout
        assert pi.token() != "token-1"
        assert is_whole(inside)
        (cross,) = crosses(pi, agent)
        assert (cross["name"], cross["text"]) == ("flash", f"the file system of {state} is full")
        make_room(inside)
        eventually(lambda: asks(agent) and identity.load(inside).kid != pi.kid, "the rotation")
        assert is_whole(inside)
        refreshed(pi, agent)
        assert (pi.status()["warnings"], crosses(pi, agent)) == ([], [])
        assert list(server.keys) == [identity.load(inside).kid]


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_ra21_a_full_disk_before_the_next_key_is_made(pi: Living, kind: str) -> None:
    """The rotation has begun when the disk fills: the old key goes on, and the new one is made when there is room."""
    server, state = rotating(pi), pi.home / "state"
    server.is_due = True
    with pi.running(small(state, kind)) as agent:
        pi.state("ok")
        inside = seen_by(agent.pid, state)
        assert identity.load(inside).next_key
        fill(inside)
        refreshed(pi, agent)
        assert any("the key is not rotated yet: cannot write" in warning for warning in pi.status()["warnings"])
        assert is_whole(inside)
        make_room(inside)
        eventually(lambda: asks(agent) and identity.load(inside).kid != pi.kid, "the rotation")
        assert is_whole(inside)


def test_ra21_a_read_only_disk(pi: Living) -> None:
    """The agent starts on it, leftovers and all, and serves; status and doctor say why no key can be rotated, until it can."""
    server, state = rotating(pi), pi.home / "state"
    (state / ".pi-agent-leftover").touch(0o600)
    server.is_due = True
    with pi.running(small(state, "ext4", "ro")) as agent:
        assert pi.token() == "token-1"
        reason = f"cannot write {state}/identity.json: Read-only file system"
        eventually(lambda: pi.status()["warnings"] == [f"the key is not rotated yet: {reason}"], "the reason")
        assert pi.log().count(f"no key can be rotated: {state} is on a read-only file system") == 1  # at the start
        (cross,) = crosses(pi, agent)
        assert (cross["name"], cross["text"]) == ("flash", f"{state} is on a read-only file system")
        within(agent.pid, "mount", "-o", "remount,rw", str(state))
        inside = seen_by(agent.pid, state)
        eventually(lambda: asks(agent) and identity.load(inside).kid != pi.kid, "the rotation")
        refreshed(pi, agent)
        assert (pi.status()["warnings"], crosses(pi, agent)) == ([], [])


def test_ra22_a_full_tmpfs_keeps_the_old_token_file(pi: Living) -> None:
    """The socket serves the new token, the file still holds the old one, whole; with room it is written without help."""
    server, out = rotating(pi), pi.home / "out"
    out.mkdir()
    files = {"PI_AGENT_SINKS_TOKEN_FILE": out / "token", "PI_AGENT_SINKS_ENVIRONMENT_FILE": out / "env"}
    pi.environment |= {name: str(path) for name, path in files.items()}
    with pi.running(small(out, "tmpfs")) as agent:
        pi.state("ok")
        inside = seen_by(agent.pid, out)
        assert eventually((inside / "token").read_text) == "token-1"
        fill(inside)
        refreshed(pi, agent)
        assert (pi.token() != "token-1", server.given > 1) == (True, True)
        assert (inside / "token").read_text() == "token-1"
        assert not [path.name for path in inside.iterdir() if path.name.startswith(".")]
        (warning,) = pi.status()["warnings"]
        assert f"cannot write {out}/token: No space left on device; cannot write {out}/env" in warning
        assert warning in pi.log()
        (cross,) = crosses(pi, agent)
        assert (cross["name"], cross["text"]) == ("flash", f"the file system of {out} is full")
        make_room(inside)
        eventually(lambda: (inside / "token").read_text() == pi.token(), "the file")
        assert (pi.status()["warnings"], crosses(pi, agent)) == ([], [])
