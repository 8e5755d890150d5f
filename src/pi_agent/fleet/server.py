"""``pi-fleet serve``: one process that listens on an address for devices and on ``DATA/fleet.sock`` for operators.

Uvicorn does HTTP; what a server on the open network needs beyond it is here: a time for headers to arrive in, a bound
on their size and on connections, and on the local socket the peer's user id, which is how ``api`` knows its operator.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
import struct
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pi_agent.errors import ConfigError
from pi_agent.fleet import folder
from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.settings import Settings

HEADER_SECONDS = 10
MAX_HEADER_BYTES = 64 * 1024
IDLE_SECONDS = 20
GRACE_SECONDS = 3
BACKLOG = 2048
MAX_CONNECTIONS = 10_000
SPARE_FILES = 64
MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its NUL
BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-type: application/json\r\ncontent-length: 35\r\n"
    b'connection: close\r\n\r\n{"error":"temporarily_unavailable"}'
)


class Protocol(HttpToolsProtocol):
    """One connection. ``max_connections`` is set once, before the server starts."""

    max_connections = MAX_CONNECTIONS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.header_timer: asyncio.TimerHandle | None = None
        self.header_bytes = 0
        peer = transport.get_extra_info("socket")
        if peer.family == socket.AF_UNIX:
            self.client = ("uid", peer_uid(peer))
        elif len(self.connections) > self.max_connections:
            transport.write(BUSY)
            transport.close()
            return
        self.await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self.await_headers()  # something came that begins no request, such as an empty line
        if self.header_timer is not None:
            self.header_bytes += len(data)
            if self.header_bytes > MAX_HEADER_BYTES:
                self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self.header_timer is None:
            self.await_headers()

    def on_headers_complete(self) -> None:
        self.stop_waiting()
        super().on_headers_complete()

    def shutdown(self) -> None:
        super().shutdown()
        if self.cycle is not None and self.cycle.more_body:
            self.transport.close()  # a request that is still arriving would keep the server for as long as it likes

    def await_headers(self) -> None:
        self.header_bytes = 0
        self.header_timer = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def stop_waiting(self) -> None:
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None


class Server(uvicorn.Server):
    """Uvicorn's server, which says when it listens, and ends with 0 when it is told to end."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self.greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.greeting, file=sys.stderr, flush=True)  # noqa: T201  # this is a command's output

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.should_exit = True  # uvicorn would raise it once more at the end
        else:
            super().handle_exit(sig, frame)


def peer_uid(connection: Any) -> int:
    """The user at the other end of a local socket (SO_PEERCRED, unix(7))."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


def serve(wanted: Settings) -> int:
    """Serve until SIGTERM (0) or SIGINT (KeyboardInterrupt). Raises ConfigError or ConflictError before it starts."""
    os.umask(0o077)
    folder.prepare(wanted.data)
    lock = folder.take_lock(wanted.lock)  # held until the process ends
    public = listen(wanted)
    settings = wanted.with_port(public.getsockname()[1])
    fleet_settings.configure(settings)
    fleet_settings.migrate()
    local = listen_local(settings)
    application, greeting = _build(settings)
    Protocol.max_connections = _allow_connections()
    config = uvicorn.Config(
        application,
        http=Protocol,
        loop="uvloop",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    try:
        Server(config, greeting).run(sockets=[public, local])
    finally:
        application.close()
        settings.socket.unlink(missing_ok=True)
        assert lock >= 0
    return 0


def _build(settings: Settings) -> tuple[Any, str]:
    """The application, and what to say when it listens. Imported here, since models exist only once Django is set up."""
    from pi_agent.fleet.asgi import Application  # see above
    from pi_agent.fleet.signin import make_link  # see above
    from pi_agent.fleet.tokens import load_authority  # see above

    now = int(time.time())
    link = make_link("operator", created_by="pi-fleet serve", now=now, settings=settings)
    return Application(load_authority(settings, now=now)), greeting(settings, link)


def greeting(settings: Settings, link: str) -> str:
    return f"""\
pi-fleet is listening on http://{settings.bind}
  issuer        {settings.issuer}
  data folder   {settings.data}
  sign in       {link}  (works once, for 15 minutes)
  first device  {fleet_settings.setup_command(settings.issuer)}
  then          pi-fleet --data {settings.data} devices status:pending"""


def listen(settings: Settings) -> socket.socket:
    """The public socket. Raises ConfigError when the address cannot be had."""
    host = settings.host.strip("[]")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        public = socket.socket(family, kind, proto)
        public.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        public.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.bind}: {error.strerror}",
            key="bind",
            hint="choose another port with --bind 127.0.0.1:8081, or 0 for any",
        ) from error
    public.setblocking(False)
    return public


def listen_local(settings: Settings) -> socket.socket:
    """The operators' socket. The lock is held, so a socket that is already there belongs to nobody."""
    path = settings.socket
    if len(bytes(path)) > MAX_SOCKET_PATH:
        raise ConfigError(f"{path} is too long for a socket", key="data", hint="choose a shorter --data folder")
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ConfigError(f"{path} is in the way and is not a socket", key="data", hint=f"mv {path} {path}.old")
    path.unlink(missing_ok=True)
    local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    local.bind(str(path))
    path.chmod(0o600)
    local.setblocking(False)
    return local


def _allow_connections() -> int:
    """Raise the limit on open files as far as we may; what is left after our own needs is for connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_FILES
    soft = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(soft - SPARE_FILES, 1)
