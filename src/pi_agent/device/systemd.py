"""The notification protocol of sd_notify(3): one datagram to ``$NOTIFY_SOCKET``. Without systemd nothing happens."""

from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte into the resident
import os


def notify(*states: str) -> None:
    """Tell systemd ``READY=1``, ``STATUS=...``, ``WATCHDOG=1``, ``STOPPING=1``. A manager that does not listen is no error."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        channel.sendto("\n".join(states).encode(), "\0" + address[1:] if address.startswith("@") else address)
    except OSError:
        return
    finally:
        channel.close()
