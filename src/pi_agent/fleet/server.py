"""``pi-fleet serve``: one process that listens on an address for devices and on ``DATA/fleet.sock`` for operators.

Uvicorn does HTTP, each connection of it a ``protocol.Protocol``. SIGTERM ends the server: what was let in is answered.
SIGHUP reloads the certificate and the signing keys; connections stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from pi_agent.errors import ConfigError, TransportError
from pi_agent.fleet import folder, logs, served
from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.client import command
from pi_agent.fleet.greeting import greeting, warnings
from pi_agent.fleet.handshakes import Handshakes
from pi_agent.fleet.protocol import Protocol
from pi_agent.fleet.room import Room
from pi_agent.fleet.settings import Settings
from pi_agent.fleet.sources import networks
from pi_agent.fleet.tls import load_certificate

if TYPE_CHECKING:
    from pi_agent.fleet.asgi import Application
    from pi_agent.fleet.housekeeper import Housekeeper
    from pi_agent.fleet.webhooks import Sender

GRACE_SECONDS = 3
BACKLOG = 2048
SPARE_FILES = 64
MAX_SOCKET_PATH = 107  # sun_path of unix(7), less its NUL
GC_THRESHOLD = (20_000, 20, 100)

log = logging.getLogger("pi_agent.fleet")


class Server(uvicorn.Server):
    """Uvicorn's server, which says when it listens, and ends with 0 when it is told to end."""

    def __init__(
        self, config: uvicorn.Config, *, local: socket.socket, greeting: str, reload: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self.local = local
        self.greeting = greeting
        self.reload = reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])
        loop = asyncio.get_running_loop()
        state = self.server_state

        def connection() -> Protocol:
            return Protocol(config=self.config, server_state=state, app_state={})

        # Not by uvicorn, which would give a TLS handshake a minute; and the local socket never speaks TLS.
        for public in sockets or []:
            if self.config.ssl:
                public.listen(BACKLOG)
                self.servers.append(Handshakes(public, self.config.ssl, connection))  # type: ignore[arg-type]  # it is closed like one
            else:
                self.servers.append(await loop.create_server(connection, sock=public, backlog=BACKLOG))
        self.servers.append(await loop.create_server(connection, sock=self.local, backlog=BACKLOG))
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        with contextlib.suppress(OSError):  # a log that is full or gone is no reason to serve nobody
            print(self.greeting, file=sys.stderr, flush=True)  # noqa: T201  # this is a command's output

    async def on_tick(self, counter: int) -> bool:
        """Uvicorn's, ten times a second."""
        if counter % max(1, round(10 * self.config.timeout_keep_alive)) == 0:
            self.hang_up()
        return await super().on_tick(counter)

    def hang_up(self) -> None:
        """End the connections whose client has taken nothing of what waits for it since the last look (RS-06)."""
        for connection in list(self.server_state.connections):
            assert isinstance(connection, Protocol)
            if connection.has_stalled():
                connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGTERM:
            self.should_exit = True  # uvicorn would raise it once more at the end
        else:
            super().handle_exit(sig, frame)


def serve(wanted: Settings) -> int:
    """Serve until SIGTERM (0) or SIGINT (KeyboardInterrupt).

    What keeps it from starting is a ConfigError when it stays so until somebody mends it, which systemd does not try
    again (RestartPreventExitStatus=2), and else a TransportError or a ConflictError.
    """
    os.umask(0o077)
    folder.prepare(wanted.data)
    lock = folder.take_lock(wanted.lock)  # held until the process ends
    public = listen(wanted)
    settings = wanted.with_port(public.getsockname()[1])
    logs.set_up(settings.log)
    fleet_settings.configure(settings)
    fleet_settings.migrate()
    local = listen_local(settings)
    application, housekeeper, sender = _build(settings)
    config = _uvicorn(settings, application)
    words = _words(settings)
    served.note(settings)

    def reload() -> None:
        _reload_certificate(settings, config)
        housekeeper.hurry()

    # Nothing that lives by now ever dies, so the collector need not look at it again; tokens leave no cycles.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLD)
    housekeeper.start()
    sender.start()
    try:
        Server(config, local=local, greeting=words, reload=reload).run(sockets=[public])
    finally:
        sender.stop()
        housekeeper.close()
        application.close()
        settings.socket.unlink(missing_ok=True)
        assert lock >= 0
    return 0


def _uvicorn(settings: Settings, application: Application) -> uvicorn.Config:
    Protocol.application = application
    Protocol.header_seconds, Protocol.body_seconds = settings.header_seconds, settings.body_seconds
    Protocol.proxies = networks(settings.trusted_proxy)
    most = _allow_connections(settings.max_connections)
    Protocol.room = Room(most, settings.address_connections, Protocol.proxies)
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
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_keep_alive=settings.idle_seconds,  # type: ignore[arg-type]  # it is only given to call_later
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    if settings.tls_cert is not None:  # first of all, since uvicorn would not say which file is wrong
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings.tls_cert, settings.tls_key)
    config.load()
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    return config


def _reload_certificate(settings: Settings, config: uvicorn.Config) -> None:
    """Take a renewed certificate into use; one that cannot be read leaves the old one."""
    if config.ssl is None or settings.tls_cert is None:
        return
    try:
        load_certificate(config.ssl, settings.tls_cert, settings.tls_key)
    except ConfigError as error:
        log.error("%s; the certificate from before stays in use", error)


def _build(settings: Settings) -> tuple[Application, Housekeeper, Sender]:
    """The application, who looks after it, and who tells webhooks."""
    # Models exist only once Django is set up.
    from pi_agent.fleet.asgi import Application
    from pi_agent.fleet.housekeeper import Housekeeper
    from pi_agent.fleet.tokens import load_authority
    from pi_agent.fleet.webhooks import Sender

    application = Application(load_authority(settings, now=int(time.time())))
    return application, Housekeeper(application), Sender()


def _words(settings: Settings) -> str:
    """What to say when it listens. A link only to a terminal: a log has other readers, and the link makes them admin."""
    from pi_agent.fleet.access import FIRST, ensure_operator, has_admin, role_of  # as above
    from pi_agent.fleet.models import Device
    from pi_agent.fleet.signin import make_link

    now = int(time.time())
    sign_in = f"{command(settings)} sign-in-link"
    if role_of(FIRST) is None and has_admin():  # nobody comes back who was removed
        sign_in += " --operator NAME"
    elif sys.stderr.isatty():
        link = make_link(FIRST, created_by="pi-fleet serve", now=now, settings=settings)
        sign_in = f"{link}  (works once, for 15 minutes)"
    else:
        ensure_operator(FIRST, "admin", by="pi-fleet serve", now=now)
    boards = Device.objects.filter(simulated=False).exists()
    return greeting(settings, sign_in, warnings(settings, served.last(settings.data), boards=boards, now=now))


def listen(settings: Settings) -> socket.socket:
    """The public socket. Raises TransportError when the address cannot be had now, and ConfigError when it may not be."""
    host = settings.host.strip("[]")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        public = socket.socket(family, kind, proto)
        public.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        public.bind(address)
    except OSError as error:
        ours = error.errno in (errno.EADDRINUSE, errno.EACCES)  # the address is, and the port cannot be had
        hint = f"choose another port with --bind {settings.host}:8081, or 0 for any" if ours else "see: ip address"
        what = f"cannot listen on {settings.bind}: {error.strerror}"
        if error.errno == errno.EACCES:
            raise ConfigError(what, key="bind", hint=hint) from error
        raise TransportError(what, reason="address", hint=hint) from error  # a port gets free, an interface comes up
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


def _allow_connections(wanted: int) -> int:
    """Raise the limit on open files as far as we may; what is left after our own needs is for connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = wanted + SPARE_FILES
    soft = files if hard == resource.RLIM_INFINITY else min(hard, files)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(soft - SPARE_FILES, 1)
