"""TLS connections, which take their place before the handshake: one that never begins it counts like any other (RS-06).

``loop.create_server`` shows a connection only when its handshake is over.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from pi_agent.fleet import counters
from pi_agent.fleet.protocol import Protocol
from pi_agent.fleet.room import Place

PAUSE = 0.2  # until the next try when no descriptor is left


class Handshakes:
    """A server on a socket that listens; with ``close`` and ``wait_closed`` as asyncio's servers have them."""

    def __init__(self, public: socket.socket, tls: ssl.SSLContext, connection: Callable[[], Protocol]) -> None:
        self.public, self.tls, self.connection = public, tls, connection
        self.under_way: set[asyncio.Task[None]] = set()
        self.accepting = asyncio.create_task(self._accept())

    def close(self) -> None:
        for task in (self.accepting, *self.under_way):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(self.accepting, *self.under_way, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, address = await loop.sock_accept(self.public)
            except OSError:
                await asyncio.sleep(PAUSE)
                continue
            place = Protocol.room.take(address[0])
            if place.is_free:
                task = asyncio.create_task(self._begin(peer, place))
                self.under_way.add(task)
                task.add_done_callback(self.under_way.discard)
            else:  # what could be said would have to be encrypted
                counters.count("pi_fleet_refused_connections_total")
                place.leave()
                peer.close()

    async def _begin(self, peer: socket.socket, place: Place) -> None:
        """The handshake. Who does not end it in time, or well, is gone."""
        protocol = self.connection()
        protocol.place = place
        loop = asyncio.get_running_loop()
        patience = protocol.header_seconds
        try:
            await loop.connect_accepted_socket(lambda: protocol, peer, ssl=self.tls, ssl_handshake_timeout=patience)
        except OSError:  # also what TLS has to say
            place.leave()
        except asyncio.CancelledError:
            place.leave()
            raise
