"""Clients that ask and do not read what they are answered (requirement RS-06)."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from fleet.live import LiveFleet
from issuing.conftest import start
from pi_agent.fleet.protocol import Protocol, acknowledged
from town import eventually

PATH = "/static/htmx-2.0.11.min.js"  # the longest answer that anybody gets
ASKING = f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


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
