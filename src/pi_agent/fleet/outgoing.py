"""One HTTP exchange with a server that nobody vouches for: no redirect, no proxy, and over in time.

A timeout of a socket is one for each read, so a server that sends a byte now and then is never out of time. Here all of it
is ended from outside, by shutting the socket down: to close it would leave whoever waits for it waiting.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit


def exchange(
    method: str, url: str, body: bytes, headers: Mapping[str, str], *, seconds: float, most: int
) -> tuple[int, bytes]:
    """The status of an answer, and at most ``most`` bytes of its body.

    Raises OSError, http.client.HTTPException or, for a URL that cannot be asked, ValueError.
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port
    made: http.client.HTTPConnection = (
        http.client.HTTPSConnection(host, port, timeout=seconds, context=ssl.create_default_context())
        if parts.scheme == "https"
        else http.client.HTTPConnection(host, port, timeout=seconds)
    )
    held: list[socket.socket] = []  # of an answer that ends with its connection, ``made`` lets go
    end = time.monotonic() + seconds
    deadline = threading.Timer(seconds, lambda: _cut(held or [made.sock]))
    deadline.daemon = True
    deadline.start()
    try:
        made.request(method, parts.path + (f"?{parts.query}" if parts.query else "") or "/", body, dict(headers))
        held.append(made.sock)
        answer = made.getresponse()
        data = answer.read(most)
        if time.monotonic() > end:  # then this may be a part, as if it were all
            raise TimeoutError(f"no whole answer within {seconds:g} s")
        return answer.status, data
    finally:
        deadline.cancel()
        made.close()


def _cut(sockets: Iterable[socket.socket | None]) -> None:
    for each in sockets:
        if each is not None:
            with suppress(OSError):  # it is over by itself
                each.shutdown(socket.SHUT_RDWR)
