"""An assertion is good once: in a race, between servers, over crashes (requirements B-21 to B-24, RS-03)."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from fleet.live import LiveFleet
from fleet.support import Pi, Reply
from issuing.cluster import Cluster
from issuing.conftest import start

POSTS, ROUNDS = 50, 20


def race(posts: Sequence[Callable[[], Reply]]) -> Counter[int]:
    """What became of posts that were sent all at once; every refusal is an invalid_grant."""
    gate = threading.Barrier(len(posts))

    def run(post: Callable[[], Reply]) -> int:
        gate.wait()
        reply = post()
        assert reply.status == 200 or reply.json["error"] == "invalid_grant", reply.body
        return reply.status

    with ThreadPoolExecutor(len(posts)) as pool:
        return Counter(pool.map(run, posts))


def ask(server: LiveFleet, pi: Pi) -> Reply:
    return server.ask(pi.form())


def two_servers(home: Path, url: str) -> tuple[LiveFleet, LiveFleet]:
    """Behind one name, which a load balancer would have."""
    servers = tuple(start(home / name, url, "--issuer", "https://fleet.test") for name in "ab")
    for server in servers:
        server.issuer = "https://fleet.test"
    return servers[0], servers[1]


def test_b21_of_fifty_parallel_posts_one_is_served(live: LiveFleet) -> None:
    """Twenty rounds of fifty parallel posts of one assertion, on each database: exactly one token a round."""
    pi = live.enroll()
    for _ in range(ROUNDS):
        body = pi.form()
        assert race([partial(live.ask, body)] * POSTS) == {200: 1, 400: POSTS - 1}


def test_b24_two_servers_on_one_database_serve_one(tmp_path: Path, cluster: Cluster) -> None:
    """The same through two servers that share nothing but a PostgreSQL."""
    url = cluster.database()
    first, second = two_servers(tmp_path, url)
    try:
        pi = first.enroll()
        for _ in range(ROUNDS):
            body = pi.form()
            posts = [partial(server.ask, body) for server in (first, second)]
            assert race(posts * (POSTS // 2)) == {200: 1, 400: POSTS - 1}
    finally:
        first.stop()
        second.stop()


def test_b24_many_devices_through_two_servers_do_not_block_each_other(tmp_path: Path, cluster: Cluster) -> None:
    """Batches of the same devices in another order, on two servers: no deadlock, everybody is served."""
    url = cluster.database()
    first, second = two_servers(tmp_path, url)
    try:
        pis = [first.enroll(approved=False) for _ in range(8)]
        assert first.cli("approve", "status:pending", "--yes", "--max", "8", "--reason", "test").returncode == 0
        posts = [partial(ask, server, pi) for pi in pis for server in (first, second)]
        for _ in range(5):
            assert race(posts) == {200: 16}
    finally:
        first.stop()
        second.stop()


def test_rs03_kill_9_under_load_loses_nothing(tmp_path: Path, database: str) -> None:
    """Killed in the middle of requests, again and again: no used assertion is good again, no enrollment or revocation is lost."""
    data, rounds = tmp_path / "data", 4
    server = start(data, database)
    port, pis, used = server.port, [], []
    for number in range(rounds):
        pi = server.enroll(approved=False)
        assert server.cli("approve", pi.client_id, "--yes", "--reason", "test").returncode == 0
        pis.append(pi)
        served = storm(server, pi, kill_after=5 + number)
        used += [(pi, body) for body in served]
        server = start(data, database, bind=f"127.0.0.1:{port}")
        for device, body in used[-20:]:
            assert server.ask(body).json.get("error") == "invalid_grant", device.client_id
        assert server.ask(pi.form()).status == 200  # enrolled and approved before the kill
    revoked = pis[0]
    assert server.cli("revoke", revoked.client_id, "--yes", "--reason", "lost").returncode == 0
    server.process.send_signal(signal.SIGKILL)
    server.process.communicate()
    server = start(data, database, bind=f"127.0.0.1:{port}")
    try:
        assert "revoked" in server.ask(revoked.form()).json["error_description"]
        said = server.cli("audit", "verify")
        assert said.returncode == 0 and "whole" in said.stdout, said
        lines = server.cli("audit", "--all", "-o", "jsonl").stdout
        assert lines.count('"device.enrolled"') == rounds
        assert lines.count('"device.revoke"') == 1
    finally:
        server.stop()


def storm(server: LiveFleet, pi: Pi, *, kill_after: int) -> list[bytes]:
    """Post from four sides, kill the server after so many answers, and say which assertions had bought a token by then."""
    served: list[bytes] = []

    def post() -> None:
        while server.process.poll() is None:
            body = pi.form()
            try:
                reply = server.ask(body)
            except OSError:
                return
            if reply.status == 200:
                served.append(body)
            if len(served) >= kill_after and server.process.poll() is None:
                server.process.send_signal(signal.SIGKILL)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(post)
    server.process.communicate()
    return served
