"""The socket with many callers, of whom none can hold up, crowd out or end the others. Time is an argument here."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import select
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pi_agent.device import doors
from pi_agent.device.allow import Peer
from pi_agent.device.doors import Doors
from pi_agent.device.local import Request, answer
from pi_agent.errors import ConfigError, PiAgentError

GET = b"GET /v1/status HTTP/1.1\r\nHost: pi\r\n\r\n"
BODY = b'{"answer": 1}'


class House:
    """Doors with the loop that the agent has around them, a step at a time, and a clock that a test sets."""

    def __init__(self, runtime: Path, body: bytes = BODY) -> None:
        self.path = runtime / "agent.sock"
        self.peers: list[Peer] = []
        self.now = 1000.0
        self._body = body
        self.poll = select.epoll()
        self.doors = Doors(str(runtime), self.poll, self._respond)

    def _respond(self, request: Request, peer: Peer, now: float, until: float) -> bytes:
        self.peers.append(peer)
        return answer(200, self._body, keep_alive=request.keep_alive)

    def step(self, seconds: float = 0.0) -> None:
        """Let time pass, and serve whatever has come."""
        self.now += seconds
        for _ in range(100):
            for handle, kinds in self.poll.poll(0):
                self.doors.on_event(handle, kinds, self.now)
        self.doors.sweep(self.now)

    def call(self) -> socket.socket:
        channel = socket.socket(socket.AF_UNIX)
        channel.settimeout(2)
        channel.connect(str(self.path))
        return channel

    def ask(self, data: bytes = GET) -> bytes:
        """What comes back, up to the end of the connection or of what there is."""
        with self.call() as channel:
            with contextlib.suppress(BrokenPipeError):
                channel.sendall(data)
            self.step()
            return self.receive(channel)

    def receive(self, channel: socket.socket) -> bytes:
        received = b""
        channel.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while chunk := channel.recv(65536):
                received += chunk
                self.step()
        return received

    def is_closed(self, channel: socket.socket) -> bool:
        channel.setblocking(False)
        try:
            return channel.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A folder with a name short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="pi-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def house(runtime: Path) -> Iterator[House]:
    house = House(runtime)
    yield house
    house.doors.close()
    house.poll.close()


def status(data: bytes) -> int:
    return int(data.split(b" ", 2)[1])


# Coming in


def test_e01_the_socket_is_for_user_and_group(house: House) -> None:
    """Born 0660 under any umask; the lock is 0600."""
    assert stat.S_IMODE(house.path.stat().st_mode) == 0o660
    assert stat.S_IMODE(house.path.with_name("agent.lock").stat().st_mode) == 0o600


def test_e02_the_caller_is_known_by_the_kernels_word(house: House) -> None:
    """uid and groups come from the socket, whatever the request says."""
    house.ask(b"GET /v1/status HTTP/1.1\r\nX-User: root\r\nAuthorization: Basic cm9vdDo=\r\n\r\n")
    (peer,) = house.peers
    assert peer.uid == os.getuid()
    assert os.getgid() in peer.groups


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_e02_another_user_is_another_peer(house: House) -> None:
    """Whoever connects is who they are at that moment."""
    house.path.chmod(0o666)
    house.path.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        channel = house.call()
    finally:
        os.seteuid(0)
    channel.sendall(GET)
    house.step()
    channel.close()
    assert house.peers[0].uid == 65534


def test_e12_a_second_agent_is_told_and_the_first_goes_on(house: House, runtime: Path) -> None:
    """The lock says who is at home; the socket is not stolen."""
    with pytest.raises(ConfigError, match="another agent runs in"):
        Doors(str(runtime), select.epoll(), house._respond)
    assert status(house.ask()) == 200


@pytest.mark.parametrize("left", ["socket", "file", "dangling link"])
def test_e12_ra20_what_a_dead_agent_left_is_replaced(runtime: Path, left: str) -> None:
    """A socket nobody listens on, or whatever else lies in its place."""
    path = runtime / "agent.sock"
    match left:
        case "socket":
            with socket.socket(socket.AF_UNIX) as old:
                old.bind(str(path))
        case "file":
            path.write_text("x")
        case "dangling link":
            path.symlink_to(runtime / "nowhere")
    house = House(runtime)
    assert status(house.ask()) == 200
    house.doors.close()
    assert not path.exists()
    assert not (runtime / "nowhere").exists()


def test_e08_a_planted_lock_is_not_followed(runtime: Path) -> None:
    """A link in the lock's place makes nothing elsewhere."""
    (runtime / "agent.lock").symlink_to(runtime / "victim")
    with pytest.raises(PiAgentError, match=r"cannot open .*/agent\.lock"):
        House(runtime)
    assert not (runtime / "victim").exists()


def test_e01_a_path_that_no_socket_can_have_is_named(tmp_path: Path) -> None:
    """struct sockaddr_un holds 107 bytes."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with pytest.raises(ConfigError, match="longer than 107 bytes"):
        House(folder)


# Talking


def test_requests_in_one_breath_are_answered_in_turn(house: House) -> None:
    """Three requests sent together give three answers; the last one closes."""
    received = house.ask(GET + GET + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + GET)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.endswith(BODY)


def test_a_request_that_comes_byte_by_byte_is_answered(house: House) -> None:
    """Nothing depends on how the kernel cuts it."""
    with house.call() as channel:
        for number in range(len(GET)):
            channel.sendall(GET[number : number + 1])
            house.step()
        assert status(house.receive(channel)) == 200


def test_a_caller_who_shuts_down_its_side_still_gets_the_answer(house: House) -> None:
    """As nc -N does."""
    with house.call() as channel:
        channel.sendall(GET)
        channel.shutdown(socket.SHUT_WR)
        house.step()
        assert status(house.receive(channel)) == 200
    house.step()
    assert len(house.doors) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"\0" * 100 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\xff\xff: x\r\n\r\n",
        random.Random(4000).randbytes(4000) + b"\r\n\r\n",
    ],
)
def test_e03_hostile_bytes_get_400_and_the_next_caller_200(house: House, data: bytes) -> None:
    """Nothing that a caller sends ends the agent."""
    received = house.ask(data)
    assert status(received) == 400
    assert json.loads(received.partition(b"\r\n\r\n")[2])["status"] == 400
    assert status(house.ask()) == 200


def test_e04_a_request_without_end_is_431(house: House) -> None:
    """More than 4 KiB are not waited for."""
    assert status(house.ask(b"GET /" + b"a" * 5000)) == 431
    assert len(house.doors) == 0


# Holding on


def test_ra32_half_a_request_is_closed_after_five_seconds(house: House) -> None:
    """However slowly the rest drips in."""
    with house.call() as channel:
        channel.sendall(b"GET /v1/")
        house.step()
        for _ in range(4):
            house.step(1.0)
            assert not house.is_closed(channel)
            channel.setblocking(True)
            channel.sendall(b"a")
        house.step(1.1)
        assert house.is_closed(channel)


def test_ra32_a_silent_caller_is_closed_after_five_seconds(house: House) -> None:
    """Somebody who connects and says nothing."""
    with house.call() as channel:
        house.step()
        house.step(4.0)
        assert not house.is_closed(channel)
        house.step(1.1)
        assert house.is_closed(channel)


def test_ra32_an_idle_connection_is_closed_after_a_minute(house: House) -> None:
    """Between requests there is more time."""
    with house.call() as channel:
        channel.sendall(GET)
        house.step()
        assert status(house.receive(channel)) == 200
        house.step(58.0)
        assert not house.is_closed(channel)
        house.step(2.1)
        assert house.is_closed(channel)


def test_ra32_e04_two_hundred_idle_callers_do_not_hurt(house: House) -> None:
    """The next one is answered in the same step."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(house.call())
            house.step()
        assert len(house.doors) == 200
        assert status(house.ask()) == 200
    house.step(6.0)
    assert len(house.doors) == 0


def test_e04_in_a_full_house_the_idlest_of_whoever_has_most_goes(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users who fill the house with idle connections keep nobody out, and nobody who has fewer loses one for it."""
    monkeypatch.setattr(doors, "MAX_CALLERS", 4)
    with contextlib.ExitStack() as stack:
        channels = []
        for _ in range(4):
            channels.append(stack.enter_context(house.call()))
            house.step(0.1)
        first = next(iter(house.doors._callers.values()))
        first.user.callers -= 1
        first.user = doors.User(1234)  # somebody else, who came before them all
        first.user.callers = 1
        assert status(house.ask()) == 200
        assert [house.is_closed(channel) for channel in channels] == [False, True, False, False]


def test_e04_a_full_house_of_busy_callers_is_said(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody is idle the newcomer gets 503, and when to try again."""
    monkeypatch.setattr(doors, "MAX_CALLERS", 1)
    with house.call() as channel:
        channel.sendall(GET[:10])
        house.step()
        answered = house.ask()
        assert (status(answered), b"Retry-After: 1" in answered) == (503, True)
        assert not house.is_closed(channel)


def test_ra32_a_caller_who_never_reads_fills_no_memory(runtime: Path) -> None:
    """His own requests wait while his answers do; then he is closed."""
    house = House(runtime, body=b"x" * 8000)
    with house.call() as channel:
        channel.setblocking(False)
        for _ in range(50):
            with contextlib.suppress(BlockingIOError):
                channel.send(b"GET / HTTP/1.1\r\n\r\n" * 200)
            house.step(0.01)
        assert len(house.doors) == 1
        held = sum(len(caller.to_send) for caller in house.doors._callers.values())
        assert held < 64 * 1024
        house.step(61.0)
        house.step(61.0)
        assert len(house.doors) == 0
    house.doors.close()


def test_ra32_a_caller_who_reads_late_gets_every_answer(runtime: Path) -> None:
    """What had to wait is answered once there is room again, in order and whole."""
    house = House(runtime, body=b"y" * 8000)
    with house.call() as channel:
        channel.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        house.step()
        assert house.receive(channel).count(b"y" * 8000) == 100
    house.doors.close()


def test_ra36_without_descriptors_nobody_waits_in_a_circle(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no descriptor is left the idlest goes, the others are served, and the agent does not spin."""
    monkeypatch.setattr(doors, "MAX_CALLERS_PER_UID", 10**6)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 40 + 10, hard))
        try:
            for channel in callers:
                channel.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    channel.connect(str(house.path))
            for _ in range(60):
                house.step(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert 0 < len(house.doors) <= 12
    house.step()
    assert status(house.ask()) == 200
