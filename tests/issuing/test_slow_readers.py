"""Clients that say nothing more, or do not read what they are answered (requirement RS-06)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from device.living import eventually
from fleet.live import LiveFleet, closed_within
from issuing.conftest import start
from pi_agent.fleet.protocol import Protocol, Short, acknowledged
from pi_agent.fleet.web import Answer

PATH = "/static/htmx-2.0.11.min.js"  # the longest answer that anybody gets
ASKING = f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    found = start(tmp_path_factory.mktemp("slow") / "data", "", "--idle-seconds", "0.4", "--header-seconds", "0.4")
    yield found
    found.stop()


@contextmanager
def narrow(server: LiveFleet) -> Iterator[socket.socket]:
    """A connection whose own end holds little of what was not read yet."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        yield connection


def ask_often(connection: socket.socket, times: int) -> None:
    for _ in range(times):
        connection.sendall(ASKING)
        time.sleep(0.01)


def test_a_client_that_takes_none_of_its_answers_is_hung_up_on(tmp_path: Path) -> None:
    """Its place is free again, and nothing is said of it in the log."""
    server = start(tmp_path / "data", "", "--idle-seconds", "0.5", "--address-connections", "1")
    try:
        with narrow(server) as connection, pytest.raises(ConnectionError):
            ask_often(connection, 2000)
        assert server.request("GET", "/healthz").status == 200
    finally:
        assert server.stop() == (0, "")


def test_a_client_that_takes_its_answers_slowly_is_waited_for() -> None:
    """A byte since the last look is enough, and so is an answer that waits for the first time."""
    with socket.create_server(("127.0.0.1", 0)) as public, socket.create_connection(public.getsockname()) as reader:
        writer, _ = public.accept()
        transport = Mock()
        transport.get_extra_info.return_value = writer
        connection = object.__new__(Protocol)
        connection.transport = transport

        def look(waiting: int) -> bool:
            transport.get_write_buffer_size.return_value = waiting
            return connection.has_stalled()

        assert [look(0), look(9), look(9), look(0), look(9)] == [False, False, True, False, False]
        before = acknowledged(writer)
        writer.send(b"x")
        assert reader.recv(1) and eventually(lambda: acknowledged(writer) == before + 1)
        assert [look(9), look(9)] == [False, True]
        writer.close()


def test_where_the_kernel_does_not_count_nobody_is_hung_up_on() -> None:
    """What Linux before 4.1 tells of a connection ends before that number; the server goes on."""
    connection = object.__new__(Protocol)
    connection.transport = Mock()
    connection.transport.get_write_buffer_size.return_value = 9
    connection.transport.get_extra_info.return_value.getsockopt.return_value = bytes(104)
    assert [connection.has_stalled(), connection.has_stalled()] == [False, False]


@pytest.mark.parametrize("more", [b"", b"\r\n"])
@pytest.mark.parametrize("path", ["/oauth/token", "/healthz"])
def test_a_connection_that_goes_silent_is_closed(server: LiveFleet, path: str, more: bytes) -> None:
    """After an answer, on either way into the server, and also when what comes then begins no request."""
    with server.connect() as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 40")
        connection.sendall(more)
        assert closed_within(connection, 15)


def test_a_client_that_asks_for_tokens_and_reads_none_is_hung_up_on() -> None:
    """What it is answered is not collected for it."""
    connection = object.__new__(Protocol)
    connection.short, connection.flow, connection.transport = Short(last=False), Mock(write_paused=True), Mock()
    connection.transport.is_closing.return_value = False
    connection.answer(Answer(200))
    assert connection.transport.abort.called and not connection.transport.write.called
