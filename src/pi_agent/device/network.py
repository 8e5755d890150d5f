"""Word from the kernel that the network has come up: a new address or a new route (rtnetlink(7)).

Where a sandbox forbids the socket the agent does without, and its back-off brings it back.
"""

from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte
import sys

RTM_NEWADDR, RTM_NEWROUTE = 20, 24
GROUPS = 0x10 | 0x40 | 0x100 | 0x400  # RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
HEADER = 16  # struct nlmsghdr


def listen() -> _socket.socket | None:
    """A socket that turns readable when something about addresses and routes changes, or None."""
    try:
        channel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC, 0)
    except OSError:
        return None
    try:
        channel.bind((0, GROUPS))
    except OSError:
        channel.close()
        return None
    return channel


def came_up(channel: _socket.socket) -> bool:
    """Read all that has come. True when an address or a route was added, or more has happened than could be told."""
    added = False
    while True:
        try:
            message = channel.recv(65536)
        except BlockingIOError:
            return added
        except OSError:  # ENOBUFS: some was lost, so look
            return True
        added = added or any(kind in (RTM_NEWADDR, RTM_NEWROUTE) for kind in _kinds(message))


def _kinds(message: bytes) -> list[int]:
    kinds, start = [], 0
    while start + HEADER <= len(message):
        length = int.from_bytes(message[start : start + 4], sys.byteorder)
        kinds.append(int.from_bytes(message[start + 4 : start + 6], sys.byteorder))
        start += max(HEADER, (length + 3) & ~3)
    return kinds
