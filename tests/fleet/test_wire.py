"""HTTP over the local socket, against a server that says whatever a test has it say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pi_agent.fleet.wire import LocalConnection

Connect = Callable[[bytes], LocalConnection]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """A connection to a server that reads one request, says what it was given, and hangs up."""

    def connected(says: bytes) -> LocalConnection:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as peer:
                peer.recv(65536)
                peer.sendall(says)

        threading.Thread(target=serve, daemon=True).start()
        connection = LocalConnection(str(tmp_path / "socket"), 5)
        connection.request("GET", "/", None, {})
        return connection

    return connected


def body(connection: LocalConnection, most: int = 1000) -> bytes:
    with contextlib.closing(connection):
        answer, whole = connection.getresponse(), b""
        while part := answer.read1(most):
            whole += part
    return whole


@pytest.mark.parametrize("most", [1, 2, 3, 1000])
@pytest.mark.parametrize(
    "framing",
    [
        b"Content-Length: 7\r\n\r\n[1, 22]",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n4\r\n 22]\r\n0\r\n\r\n",
    ],
)
def test_a_body_is_read_whole_however_it_is_framed(connect: Connect, framing: bytes, most: int) -> None:
    """By its length, and in chunks; in parts of any size."""
    assert body(connect(b"HTTP/1.1 200 OK\r\n" + framing), most) == b"[1, 22]"


@pytest.mark.parametrize(
    "says",
    [
        b"",
        b"HTTP/1.1 200",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nten\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: ten\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000,
    ],
)
def test_an_answer_that_is_cut_short_is_no_answer(connect: Connect, says: bytes) -> None:
    """Half an export must never be taken for a whole one; the caller hears of it as of any lost connection."""
    with pytest.raises(OSError, match=r"server|middle|HTTP"):
        body(connect(says))
