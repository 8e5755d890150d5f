"""Where a request came from: the peer, or what a trusted proxy says of the peer it had.

Nothing else that a proxy says is looked at: the server's name and scheme are settings (requirement C-14).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORWARDED_FOR = b"x-forwarded-for"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Client = tuple[str, int]


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(name) for name in names)


def source_of(scope: Mapping[str, Any]) -> str:
    """The peer: an IP address, or ``uid 1000`` on the local socket (``protocol`` puts it there)."""
    host, port = scope.get("client") or ("", 0)
    return f"uid {port}" if host == "uid" else str(host)


def client_behind(peer: Client, headers: Iterable[tuple[bytes, bytes]], proxies: Sequence[Network]) -> Client:
    """The client of a request: the last address in X-Forwarded-For that is no proxy of ours, if ``peer`` is one."""
    if not proxies or not is_proxy(peer[0], proxies):
        return peer
    named = b",".join(value for name, value in headers if name == FORWARDED_FOR).decode("latin-1")
    for hop in reversed(named.split(",")):
        address = hop.strip()
        if not _is_address(address):
            return peer  # whoever wrote this, it is no address
        if not is_proxy(address, proxies):
            return address, 0
    return peer


def is_proxy(host: str, proxies: Sequence[Network]) -> bool:
    """Whether an address is that of one of ``proxies``."""
    if not _is_address(host):
        return False
    address = ipaddress.ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None)  # an IPv4 peer of a socket that listens on both
    return any((mapped or address) in network for network in proxies)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
