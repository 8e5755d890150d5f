"""One HTTP connection: uvicorn's, with what a server on the open network needs beyond it, and a short way for tokens.

Beyond uvicorn: headers must arrive in time and be of bounded size, answers must be taken, connections are counted, and on
the local socket the peer's user id is the client, which is how the REST interface knows its operator.

The short way: a POST to the token endpoint needs no task, no ASGI messages and no Django, so its body goes from the parser
straight to the clerk, and the answer straight to the transport. One such request is under way on a connection at a
time: a client that sends more without waiting for the answer is answered once, and the connection ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pi_agent.errors import OAuthError
from pi_agent.fleet import counters
from pi_agent.fleet.room import Place, Room
from pi_agent.fleet.sources import Network, client_behind
from pi_agent.fleet.web import MAX_BODY, Answer, Request, oauth_refusal, too_large, too_slow

if TYPE_CHECKING:
    from pi_agent.fleet.asgi import Application

TOKEN = b"/oauth/token"
MAX_HEADER_BYTES = 64 * 1024
MAX_HEADERS = 100
MAX_TRAILER_BYTES = 8 * 1024
MAX_PIPELINED = 4
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-type: application/json\r\ncontent-length: 35\r\n"
    b'connection: close\r\n\r\n{"error":"temporarily_unavailable"}'
)
STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class Short:
    """A request on the short way. ``last``: the connection ends with its answer."""

    __slots__ = ("body", "last", "timer", "whole")

    def __init__(self, *, last: bool) -> None:
        self.body = bytearray()
        self.whole = False
        self.last = last
        self.timer: asyncio.TimerHandle | None = None


class Protocol(HttpToolsProtocol):
    """One connection. What stands here first is set once, before the server starts."""

    application: Application
    room = Room(10_000, 2_000)
    header_seconds = 10.0
    body_seconds = 20.0
    proxies: Sequence[Network] = ()

    place: Place | None = None  # taken before the handshake when there is one (``handshakes``)
    short: Short | None = None
    deaf = False  # whatever else the client sends on this connection is not looked at
    in_headers = False  # what is named now is a header; behind a body it is a trailer, which nobody wants
    trailer_bytes = 0
    unanswered: Sequence[Any] = ()  # uvicorn's requests, but for those on the short way
    taken: int | None = None  # at the last look, of an answer that waited for its client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.header_timer: asyncio.TimerHandle | None = None
        self.header_bytes = 0
        peer = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            self.client = ("uid", peer_uid(peer))
        else:
            self.place = self.place or self.room.take((self.client or ("", 0))[0])
            if not self.place.is_free:
                counters.count("pi_fleet_refused_connections_total")
                transport.write(BUSY)
                transport.close()
                return
        self.await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        if self.place is not None:
            self.place.leave()
        super().connection_lost(exc)
        for each in self.unanswered:  # uvicorn tells only the last of them
            each.disconnected = True
            each.message_event.set()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.short is not None:
            if not self.short.whole and self.short.timer is None:
                self.short.timer = self.loop.call_later(self.body_seconds, self.refuse, too_slow(self.body_seconds))
        elif self.header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self.await_headers()  # something came that begins no request, such as an empty line
        if self.header_timer is not None:
            self.header_bytes += len(data)
            if self.header_bytes > MAX_HEADER_BYTES:
                self.transport.close()

    def shutdown(self) -> None:
        if self.short is None:
            super().shutdown()
        else:
            self.short.last = True
        arriving = self.short is not None and not self.short.whole
        if arriving or (self.cycle is not None and self.cycle.more_body):
            self.transport.close()  # a request that is still arriving would keep the server for as long as it likes

    # What the parser sees.

    def on_message_begin(self) -> None:
        if self.short is not None:
            self.deaf = self.short.last = True
        if self.deaf:
            return
        super().on_message_begin()
        self.in_headers, self.trailer_bytes = True, 0
        if self.header_timer is None:
            self.await_headers()

    def on_url(self, url: bytes) -> None:
        if not self.deaf:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A trailer is never taken for a header (RFC 9110 section 6.5.1), and is not kept."""
        if self.deaf:
            return
        if not self.in_headers:
            self.trailer_bytes += len(name) + len(value) + 4
            if self.trailer_bytes > MAX_TRAILER_BYTES:
                self.transport.abort()
        elif len(self.headers) <= MAX_HEADERS:  # one more than that is refused, and the rest is not kept
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.in_headers = False
        if self.deaf:
            return
        self.stop_waiting()
        idle = self.cycle is None or self.cycle.response_complete
        if error := self.unacceptable():
            self.turn_away(error, idle=idle)
            return
        if self.url == TOKEN and idle and not self.expect_100_continue and self.parser.get_method() == b"POST":
            keeps = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
            self.short = Short(last=not keeps)
        elif len(self.pipeline) >= MAX_PIPELINED:  # what is under way is answered, this is not, and then it ends
            self.deaf, self.cycle.keep_alive = True, False
        else:
            super().on_headers_complete()
            self.unanswered = [each for each in (*self.unanswered, self.cycle) if not each.response_complete]

    def unacceptable(self) -> OAuthError | None:
        """Why a request is not served, by its headers alone."""
        if self.parser.should_upgrade():  # the parser reads no further: what follows would be neither body nor request
            return OAuthError("invalid_request", "this server speaks HTTP/1.1 alone; send no Upgrade")
        hosts = [name for name, _ in self.headers].count(b"host")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            return OAuthError("invalid_request", "a request has one Host")  # RFC 9112 section 3.2
        if len(self.headers) > MAX_HEADERS:
            return OAuthError("invalid_request", f"there are more than {MAX_HEADERS} headers", status=431)
        if len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers]) > MAX_HEADER_BYTES:
            return OAuthError("invalid_request", f"the headers are longer than {MAX_HEADER_BYTES} bytes", status=431)
        return None

    def on_body(self, body: bytes) -> None:
        if self.deaf:
            return
        if self.short is None:
            super().on_body(body)
            return
        self.short.body += body
        if len(self.short.body) > MAX_BODY:
            self.refuse(too_large())

    def on_message_complete(self) -> None:
        if self.deaf:
            return
        if self.short is None:
            super().on_message_complete()
            return
        self.short.whole = True
        self.stop_waiting()
        self.application.clerk.submit(self.request(bytes(self.short.body)), self.loop, self.answer)

    # The short way.

    def request(self, body: bytes) -> Request:
        headers = dict(self.headers)
        host, port = client_behind(self.client or ("", 0), self.headers, self.proxies)
        return Request(
            method="POST",
            body=body,
            content_type=headers.get(b"content-type", b"").decode("latin-1"),
            authorization=headers.get(b"authorization", b"").decode("latin-1"),
            source=f"uid {port}" if host == "uid" else host,
        )

    def turn_away(self, error: OAuthError, *, idle: bool) -> None:
        """Answer a request that is not served, and hang up; after the answers that are still to come, if there are any."""
        if idle:
            self.short = Short(last=True)
            self.refuse(error)
        else:
            self.deaf, self.cycle.keep_alive = True, False

    def refuse(self, error: OAuthError) -> None:
        """Answer a request that is not whole, and never will be."""
        if self.short is not None:
            self.deaf = self.short.last = True
            self.stop_waiting()
            self.answer(oauth_refusal(error))

    def answer(self, answer: Answer) -> None:
        short, self.short = self.short, None
        if short is None or self.transport.is_closing():
            return
        if self.flow.write_paused:  # it asks and does not read what it is answered
            self.transport.abort()
            return
        headers = {**answer.headers, "content-length": str(len(answer.body)), "x-content-type-options": "nosniff"}
        if short.last:
            headers["connection"] = "close"
        lines = [STATUS_LINES[answer.status]]
        lines += [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        lines += [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
        self.transport.write(b"".join([*lines, b"\r\n", answer.body]))
        self.server_state.total_requests += 1
        if short.last:
            self.transport.close()
        else:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    # Waiting.

    def has_stalled(self) -> bool:
        """Whether an answer waits for a client that has taken none of it since the last look."""
        before, self.taken = self.taken, None
        if self.transport.get_write_buffer_size():
            with contextlib.suppress(OSError, struct.error):  # a local socket counts nothing, nor does an old kernel
                self.taken = acknowledged(self.transport.get_extra_info("socket"))
        return self.taken is not None and self.taken == before

    def await_headers(self) -> None:
        self.header_bytes = 0
        self.header_timer = self.loop.call_later(self.header_seconds, self.transport.close)

    def stop_waiting(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None
        if self.short is not None and self.short.timer is not None:
            self.short.timer.cancel()
            self.short.timer = None


def acknowledged(connection: Any) -> int:
    """How many bytes the other end of a TCP connection has taken (``tcpi_bytes_acked`` in linux/tcp.h)."""
    return int(struct.unpack("Q", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 128)[120:])[0])


def peer_uid(connection: Any) -> int:
    """The user id at the other end of a Unix socket (SO_PEERCRED, unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])
