"""/usr/bin/pi-agent as the package installs it, against a scripted agent: the quick way says what the long way says."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "aaa.bbb-_~+/=.ccc"
GOOD = f'{{"access_token": "{TOKEN}", "token_type": "Bearer", "expires_in": 1500}}'
NONE = '{"status": 503, "detail": "no token; first request in 3 s", "hint": "wait a little"}'

Start = Callable[..., "subprocess.CompletedProcess[bytes]"]


def answer(body: str, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode()


@contextmanager
def agent(folder: Path, reply: bytes) -> Iterator[list[bytes]]:
    """An agent that gives one answer to everything; yields what it is asked."""
    asked: list[bytes] = []
    door = socket.socket(socket.AF_UNIX)
    door.bind(str(folder / "agent.sock"))
    door.listen()

    def serve() -> None:
        while True:
            try:
                channel, _ = door.accept()
            except OSError:
                return
            with channel:
                asked.append(channel.recv(4096).partition(b"\r\n")[0])
                channel.sendall(reply)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield asked
    finally:
        door.shutdown(socket.SHUT_RDWR)
        thread.join()
        door.close()


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Run the launcher with the given words, on this interpreter and this tree's modules."""
    text = (ROOT / "packaging" / "pi-agent").read_text()
    assert text.startswith("#!/usr/bin/python3 -IS\n")
    file = tmp_path / "pi-agent"
    file.write_text(text.replace("/usr/lib/python3/dist-packages", str(ROOT / "src")))

    def run(
        *words: str, options: tuple[str, ...] = (), stdout: int = subprocess.PIPE
    ) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-IS", *options, str(file), *words]
        environment = os.environ | {"PI_AGENT_RUNTIME": str(tmp_path)}
        return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=False, env=environment, timeout=60)

    return run


@pytest.mark.parametrize(("words", "expected"), [((), TOKEN), (("--header",), f"Authorization: Bearer {TOKEN}\n")])
def test_quick_and_long_way_agree(start: Start, tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    """A token is printed as the long way prints it, and asked for once."""
    with agent(tmp_path, answer(GOOD)) as asked:
        quick = start("token", *words)
        assert asked == [b"GET /v1/token?min_valid=60 HTTP/1.1"]
        long = start("token", "--min-valid", "60", *words)
    assert (quick.returncode, quick.stdout.decode(), quick.stderr) == (0, expected, b"")
    assert (long.returncode, long.stdout) == (0, quick.stdout)


def test_quick_way_imports_next_to_nothing(start: Start, tmp_path: Path) -> None:
    """Printing a token loads neither argparse nor json, nor any module of ours."""
    with agent(tmp_path, answer(GOOD)):
        shown = start("token", options=("-X", "importtime")).stderr.decode()
    loaded = {line.rpartition("|")[2].strip() for line in shown.splitlines()}
    assert "_socket" in loaded
    assert not {name for name in loaded if name in ("argparse", "json", "os", "re") or name.startswith("pi_agent")}


def test_no_token_goes_the_long_way(start: Start, tmp_path: Path) -> None:
    """When the agent has none, what it says comes with its hint and exit code."""
    with agent(tmp_path, answer(NONE, "503 Service Unavailable")):
        done = start("token")
    assert (done.returncode, done.stdout) == (5, b"")
    assert done.stderr == b"error: no token; first request in 3 s\nhint: wait a little\n"


def test_no_agent(start: Start) -> None:
    """Without an agent the exit code is 5, and the hint says what to look at."""
    done = start("token")
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"hint: " in done.stderr


@pytest.mark.parametrize(
    "reply",
    [
        answer('{"access_token": "'),
        answer('{"access_token": "a\\u0062c"}')[:-1],
        answer(GOOD)[:90],
        answer(GOOD, "500 Oops"),
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"",
    ],
)
def test_no_half_token(start: Start, tmp_path: Path, reply: bytes) -> None:
    """An answer that is not whole is never printed as a token."""
    with agent(tmp_path, reply):
        done = start("token")
    assert done.stdout == b""
    assert done.returncode != 0
    assert b"Traceback" not in done.stderr


def test_reader_has_left(start: Start, tmp_path: Path) -> None:
    """A pipe that nobody reads is exit code 1, without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    with agent(tmp_path, answer(GOOD)):
        done = start("token", stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_other_commands(start: Start) -> None:
    """Everything else goes to the program itself."""
    done = start("board", "--revision", "a01041")
    assert done.returncode == 0
    assert done.stdout.startswith(b"Raspberry Pi 2 Model B")
