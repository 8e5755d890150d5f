"""Word from the kernel that the network has come up: a new address or a new route (rtnetlink(7)).

An address that is merely prolonged, as each router advertisement and each renewed lease does it, is told like a new one,
and is none. Where a sandbox forbids the socket the agent does without, and its back-off brings it back.
"""

from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte
import sys

RTM_NEWADDR, RTM_DELADDR, RTM_NEWROUTE = 20, 21, 24
GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
HEADER, FIXED = 16, 8  # struct nlmsghdr; struct ifaddrmsg
IFA_ADDRESS = 1
MAX_KNOWN = 64

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: the resident reads this
if TYPE_CHECKING:
    from collections.abc import Iterator


class Network:
    """Raises OSError where there is no such socket to be had."""

    def __init__(self) -> None:
        kind = _socket.SOCK_RAW | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        self._channel = _socket.socket(_socket.AF_NETLINK, kind, 0)
        self._known: dict[bytes, int] = {}
        self._channel.bind((0, GROUPS))

    def fileno(self) -> int:
        return self._channel.fileno()

    def came_up(self) -> bool:
        """Read all that has come. True when an address or a route was added, or more has happened than could be told."""
        added = False
        while True:
            try:
                data = self._channel.recv(65536)
            except BlockingIOError:
                return added
            except OSError:  # ENOBUFS: some was lost, so look
                return True
            for kind, body in _messages(data):
                added |= self._is_news(kind, body)

    def _is_news(self, kind: int, body: bytes) -> bool:
        if kind not in (RTM_NEWADDR, RTM_DELADDR):
            return kind == RTM_NEWROUTE
        name, flags = body[:1] + body[4:FIXED] + _address(body), body[2]  # family, interface, address
        before = self._known.pop(name, None)
        if kind == RTM_DELADDR:
            return False
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[name] = flags  # one that was tentative can be used when it no longer is
        return before != flags


def listen() -> Network | None:
    """What turns readable when something about addresses and routes changes, or None."""
    try:
        return Network()
    except OSError:
        return None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    start = 0
    while start + HEADER <= len(data):
        length = int.from_bytes(data[start : start + 4], sys.byteorder)
        yield int.from_bytes(data[start + 4 : start + 6], sys.byteorder), data[start + HEADER : start + length]
        start += max(HEADER, (length + 3) & ~3)


def _address(body: bytes) -> bytes:
    """The IFA_ADDRESS attribute of a struct ifaddrmsg, b"" when it has none."""
    start = FIXED
    while start + 4 <= len(body):
        length = int.from_bytes(body[start : start + 2], sys.byteorder)
        if int.from_bytes(body[start + 2 : start + 4], sys.byteorder) == IFA_ADDRESS:
            return body[start + 4 : start + length]
        start += max(4, (length + 3) & ~3)
    return b""
