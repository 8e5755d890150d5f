"""HTTP/1.1 over a UNIX socket: as much of it as the server at the other end speaks, and no more.

``http.client`` would do, but it loads the parsers of mail and TLS first, which take longer than most answers. What can
be called here is called as it is there.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping

TYPE_CHECKING = False  # type checkers take it for true; the module would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import BinaryIO

MAX_LINE = 64 * 1024


class LocalConnection:
    """One connection, for one request after the other. Every failure is an OSError."""

    def __init__(self, path: str, seconds: float) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(seconds)
            self.sock.connect(path)
        except OSError:
            self.sock.close()
            raise
        self.file: BinaryIO = self.sock.makefile("rb")

    def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: localhost", *(f"{name}: {headers[name]}" for name in headers)]
        if body or method != "GET":
            lines.append(f"content-length: {len(body or b'')}")
        self.sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii") + (body or b""))

    def getresponse(self) -> LocalAnswer:
        return LocalAnswer(self.file)

    def close(self) -> None:
        self.file.close()
        self.sock.close()


class LocalAnswer:
    """An answer (RFC 9112), whose body is read as it comes."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        version, _, rest = _line(file).partition(b" ")
        if version != b"HTTP/1.1" or not rest[:3].isdigit():
            raise ConnectionError("what answers is no HTTP server")
        self.status = int(rest[:3])
        headers = {}
        while line := _line(file):
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        self.chunked = headers.get(b"transfer-encoding") == b"chunked"
        self.left = 0 if self.chunked else _number(headers.get(b"content-length", b"0"), 10)

    def read1(self, most: int) -> bytes:
        """The next part of the body; empty at its end. Raises OSError when it is cut short."""
        if self.chunked and not self.left:
            self.left = _number(_line(self.file), 16)
            if not self.left:
                self.chunked = False
                _line(self.file)
        if not self.left:
            return b""
        part = self.file.read(min(most, self.left))
        if not part:
            raise ConnectionResetError("the answer ends in the middle")
        self.left -= len(part)
        if self.chunked and not self.left:
            _line(self.file)
        return part

    def close(self) -> None:
        """Nothing of its own is open."""


def _line(file: BinaryIO) -> bytes:
    line = file.readline(MAX_LINE)
    if not line.endswith(b"\r\n"):
        raise ConnectionResetError("the server closed the connection")
    return line[:-2]


def _number(text: bytes, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise ConnectionError("what answers is no HTTP server") from None
