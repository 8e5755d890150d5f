"""Post bodies from a file to a token endpoint, over connections that stay open, and say how it went. Standard library only.

    load.py PORT PATH FILE CONNECTIONS SECONDS [RATE [HONEST_FILE HONEST_RATE]]

FILE holds one request body a line, each is sent once. Without RATE each connection sends as soon as it was answered;
with it requests are due at fixed times, and latency counts from when one was due, sent or not. With an honest file the
requests of FILE are a flood, from many loopback addresses, and only the honest ones are reported in ``honest``.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import sys
from collections import Counter
from pathlib import Path
from time import perf_counter

TYPE = b"application/x-www-form-urlencoded"


class Connection:
    __slots__ = ("buffer", "due", "group", "socket")

    def __init__(self, port: int, group: Group, source: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), source_address=(source, 0) if source else None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.buffer = b""
        self.due = 0.0
        self.group = group


class Group:
    """Requests of one kind, the connections for them, and what became of them."""

    def __init__(self, path: str, bodies: str, rate: float) -> None:
        self.requests = [request(path, line) for line in Path(bodies).read_bytes().splitlines()]
        self.requests.reverse()
        self.rate = rate
        self.idle: list[Connection] = []
        self.sent = self.flying = 0
        self.statuses: Counter[str] = Counter()
        self.latency: list[float] = []
        self.sample = ""

    def send(self, now: float, start: float) -> None:
        due = len(self.idle) if not self.rate else min(len(self.idle), int((now - start) * self.rate) + 1 - self.sent)
        for _ in range(min(due, len(self.requests))):
            connection = self.idle.pop()
            connection.due = start + self.sent / self.rate if self.rate else now
            connection.socket.send(self.requests.pop())
            self.sent += 1
            self.flying += 1

    def receive(self, connection: Connection) -> bool:
        """Take what has come; False when the other side closed."""
        data = connection.socket.recv(65536)
        if not data:
            self.flying -= 1
            self.statuses["closed"] += 1
            return False
        connection.buffer += data
        head, end, body = connection.buffer.partition(b"\r\n\r\n")
        if not end or not whole(head.lower(), body):
            return True
        status = head[9:12].decode()
        self.statuses[status] += 1
        if status == "200":
            self.latency.append(perf_counter() - connection.due)
        elif not self.sample:
            self.sample = body[:200].decode("latin-1")
        connection.buffer = b""
        self.flying -= 1
        self.idle.append(connection)
        return True

    def quantile(self, share: float) -> float:
        return self.latency[min(len(self.latency) - 1, int(len(self.latency) * share))] if self.latency else 0.0

    def report(self, seconds: float) -> dict[str, object]:
        self.latency.sort()
        p50, p99 = (self.quantile(share) * 1000 for share in (0.5, 0.99))
        return {
            "answers": sum(self.statuses.values()),
            "sent": self.sent,
            "statuses": dict(self.statuses),
            "rate": sum(self.statuses.values()) / seconds,
            "p50_ms": p50,
            "p99_ms": p99,
            "sample": self.sample,
        }


def request(path: str, body: bytes) -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), TYPE, len(body)) + body


def whole(head: bytes, body: bytes) -> bool:
    _, found, length = head.partition(b"content-length:")
    return len(body) >= int(length.split(b"\r\n", 1)[0]) if found else body.endswith(b"0\r\n\r\n")


def main(argv: list[str]) -> None:
    port, path, bodies, connections, seconds, *more = argv
    groups = [Group(path, bodies, float(more[0]) if more else 0.0)]
    if len(more) == 3:
        groups.append(Group(path, more[1], float(more[2])))
    selector = selectors.DefaultSelector()

    def connect(group: Group, source: str) -> None:
        connection = Connection(int(port), group, source)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        group.idle.append(connection)

    for group in groups:
        flood = len(groups) == 2 and group is groups[0]
        for _ in range(int(connections)):
            connect(
                group,
                f"127.{random.randint(1, 254)}.{random.randint(1, 254)}.{random.randint(1, 254)}" if flood else "",
            )
    start = perf_counter()
    end = start + float(seconds)
    while (now := perf_counter()) < end + 3:
        if now < end:
            for group in groups:
                group.send(now, start)
        if (now >= end or not any(group.requests for group in groups)) and not any(group.flying for group in groups):
            break
        for key, _ in selector.select(0.0005 if more else 0.02):
            connection: Connection = key.data
            try:
                alive = connection.group.receive(connection)
            except ConnectionError:
                alive = False
                connection.group.flying -= 1
                connection.group.statuses["closed"] += 1
            if not alive:
                selector.unregister(connection.socket)
                connect(connection.group, "")
    took = min(perf_counter(), end) - start
    names = ["all"] if len(groups) == 1 else ["flood", "honest"]
    print(json.dumps({name: group.report(took) for name, group in zip(names, groups, strict=True)}))


if __name__ == "__main__":
    main(sys.argv[1:])
