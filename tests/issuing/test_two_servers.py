"""Enrollment, rotation and the clone alarm where several servers share one PostgreSQL (requirements F-01 to F-12).

First the same tests as on SQLite; then the moments in which two servers meet: a device's row is held from here until
both wait for it, so that each has read what the other is about to change.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.live import LiveFleet
from fleet.support import BOARD, Pi, Reply
from issuing.cluster import Cluster
from issuing.conftest import start
from issuing.test_replay import ask
from pi_agent.device import rotate
from pi_agent.device.identity import Identity
from pi_agent.device.keys.file import FileKey
from pi_agent.device.transport import Transport
from pi_agent.errors import OAuthError
from pi_agent.jwk import public_key

JSON = {"content-type": "application/json"}
FLEET_TESTS = Path(__file__).parents[1] / "fleet"
THE_SAME = (
    "test_assertion_spent.py", "test_clones.py", "test_enrollment.py", "test_forget.py", "test_preauthorise.py", "test_rotation.py",
)  # fmt: skip


def test_the_same_on_postgresql(cluster: Cluster) -> None:
    """What ``tests/fleet`` proves on SQLite holds on PostgreSQL, test by test."""
    files = [str(FLEET_TESTS / name) for name in THE_SAME]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *files],
        env=os.environ | {"PI_FLEET_TESTS_DATABASE": cluster.database()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@dataclass
class Pair:
    """Two servers with one name on one database, whose URL is ``url``."""

    first: LiveFleet
    second: LiveFleet
    url: str

    def sql(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def meet(self, table: str, condition: str, *calls: Callable[[], Any]) -> list[Any]:
        """What ``calls`` answer, which all wait for the same row, in their order, before the first goes on."""
        import psycopg

        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with psycopg.connect(self.url) as holder, ThreadPoolExecutor(len(calls)) as pool:
            holder.execute(f"SELECT 1 FROM {table} WHERE {condition} FOR UPDATE".encode())
            pending = []
            for number, call in enumerate(calls, 1):
                pending.append(pool.submit(call))
                while self.sql(waiting) != [(number,)]:
                    time.sleep(0.01)
            holder.commit()
            return [each.result() for each in pending]

    def events(self, action: str) -> int:
        return int(self.sql("SELECT count(*) FROM fleet_auditevent WHERE action = %s", action)[0][0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> Iterator[Pair]:
    home, url = tmp_path_factory.mktemp("pair"), cluster.database()
    first = start(home / "a", url)
    second = start(home / "b", url, "--issuer", first.issuer)
    second.issuer = first.issuer
    yield Pair(first, second, url)
    first.stop()
    second.stop()


@pytest.fixture
def pi(pair: Pair) -> Pi:
    """An approved device with a serial of its own."""
    return pair.first.enroll(board=board())


def board() -> dict[str, Any]:
    return BOARD | {"serial": secrets.token_hex(8)}


def with_another_key(pi: Pi) -> Pi:
    return replace(pi, key=ec.generate_private_key(ec.SECP256R1()))


def sign_in(server: LiveFleet, old: Pi, new: Pi) -> None:
    """The agent's own rotation, at ``server``."""

    class Route(Transport):
        """To this server, under the name that both have."""

        def post_json(self, url: str, *arguments: Any, **named: Any) -> Any:
            return super().post_json(url.replace(old.issuer, f"http://127.0.0.1:{server.port}"), *arguments, **named)

    known = Identity(issuer=old.issuer, client_id=old.client_id, token_endpoint="", kid="", serial="")
    transport = Route(ca_file="", proxy="", loopback_http=True)
    keys = (FileKey(each.key, "ES256") for each in (old, new))
    rotate.sign_in(transport, known, *keys, loopback_http=True, now=int(time.time()))


def nonce(server: LiveFleet, pi: Pi) -> str:
    reply = server.request("POST", "/oauth/register", json.dumps(pi.registration(None)).encode(), JSON)
    return str(reply.json["nonce"])


def register(server: LiveFleet, body: bytes, token: str = "") -> Reply:
    bearer = {"authorization": f"Bearer {token}"} if token else {}
    return server.request("POST", "/oauth/register", body, JSON | bearer)


def registration(pair: Pair, pi: Pi) -> bytes:
    return json.dumps(pi.registration(nonce(pair.first, pi))).encode()


def test_f03_of_fifty_devices_at_two_servers_one_gets_the_last_use(pair: Pair) -> None:
    """F-03: fifty at once, a nonce of the one server and the proof at the other: one enrolls, the others leave nothing."""
    token = pair.first.cli("enrollment-token", "--uses", "1").stdout.strip()
    bodies = [registration(pair, Pi(issuer=pair.first.issuer, board=board())) for _ in range(50)]
    before = pair.sql("SELECT count(*) FROM fleet_device")[0][0]
    posts = [partial(register, (pair.first, pair.second)[n % 2], body, token) for n, body in enumerate(bodies)]
    with ThreadPoolExecutor(50) as pool:
        assert Counter(pool.map(lambda post: post().status, posts)) == {201: 1, 401: 49}
    assert pair.sql("SELECT count(*) FROM fleet_device") == [(before + 1,)]


def test_fifty_devices_with_a_token_for_fifty_all_enroll_at_once(pair: Pair) -> None:
    """A whole shelf switched on: nobody is sent away because somebody else was writing the audit log."""
    token = pair.first.cli("enrollment-token", "--uses", "50").stdout.strip()
    bodies = [registration(pair, Pi(issuer=pair.first.issuer, board=board())) for _ in range(50)]
    posts = [partial(register, (pair.first, pair.second)[n % 2], body, token) for n, body in enumerate(bodies)]
    with ThreadPoolExecutor(50) as pool:
        assert Counter(pool.map(lambda post: post().status, posts)) == {201: 50}
    assert pair.first.cli("audit", "verify").returncode == 0


def test_f02_a_key_that_comes_to_two_servers_at_once_is_one_device(pair: Pair) -> None:
    """F-02, RA-35: the same registration again by way of the other server, before the first was answered."""
    pi = Pi(issuer=pair.first.issuer, board=board())
    bodies = [registration(pair, pi) for _ in range(8)]
    posts = [partial(register, (pair.first, pair.second)[n % 2], body) for n, body in enumerate(bodies)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda post: post(), posts))
    assert Counter(reply.status for reply in replies) == {201: 1, 200: 7}
    assert len({reply.json["client_id"] for reply in replies}) == 1


def test_f09_one_serial_with_two_keys_at_two_servers_at_once(pair: Pair) -> None:
    """F-09: of two that claim a serial at the same moment, one gets in and the other waits, flagged."""
    token = pair.first.cli("enrollment-token", "--uses", "8").stdout.strip()
    same = board()
    bodies = [registration(pair, Pi(issuer=pair.first.issuer, board=same)) for _ in range(8)]
    posts = [partial(register, (pair.first, pair.second)[n % 2], body, token) for n, body in enumerate(bodies)]
    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(lambda post: post().json["status"], posts)) == {"approved": 1, "pending": 7}
    flagged = "SELECT count(*) FROM fleet_device WHERE serial = %s AND flag <> ''"
    assert pair.sql(flagged, same["serial"]) == [(7,)]


def test_rs13_a_token_that_comes_behind_a_revocation_is_refused(pair: Pair, pi: Pi) -> None:
    """RS-13, B-25: the device is read when it is its turn, and not as it was when the request came."""
    revoke = partial(pair.first.cli, "revoke", pi.client_id, "--yes", "--reason", "lost")
    done, asked = pair.meet("fleet_device", f"client_id = '{pi.client_id}'", revoke, partial(ask, pair.second, pi))
    assert (done.returncode, asked.status) == (0, 400), (done.stderr, asked.body)
    assert "revoked" in asked.json["error_description"]


def test_f04_the_first_use_of_a_key_at_two_servers_is_one(pair: Pair, pi: Pi) -> None:
    """F-04: both get a token, the rotation is noted once, and from then on the old key is refused at both."""
    new = with_another_key(pi)
    sign_in(pair.first, pi, new)
    before = pair.events("device.key-rotated")
    posts = [partial(ask, server, new) for server in (pair.first, pair.second)]
    replies = pair.meet("fleet_device", f"client_id = '{pi.client_id}'", *posts)
    assert [reply.status for reply in replies] == [200, 200]
    assert pair.events("device.key-rotated") == before + 1
    for server in (pair.first, pair.second):
        assert "retired" in ask(server, pi).json["error_description"]


def test_f04_a_key_retired_while_its_first_use_waited_locks_nobody_out(pair: Pair, pi: Pi) -> None:
    """F-04: a second rotation at one server overtakes the first use at the other: that is refused, the old key goes on."""
    late, latest = with_another_key(pi), with_another_key(pi)
    sign_in(pair.first, pi, late)
    calls = (partial(sign_in, pair.first, pi, latest), partial(ask, pair.second, late))
    _, reply = pair.meet("fleet_device", f"client_id = '{pi.client_id}'", *calls)
    assert (reply.status, reply.json["error"]) == (400, "invalid_grant")
    assert ask(pair.first, pi).status == 200
    assert ask(pair.second, latest).status == 200
    assert ask(pair.first, pi).status == 400
    with pytest.raises(OAuthError, match="make another"):
        sign_in(pair.first, latest, late)


def test_f08_a_boot_that_returns_at_two_servers_is_one_alarm(pair: Pair, pi: Pi) -> None:
    """F-08: the boot before comes back at both servers at once, beside the present one: one alarm, everybody answered."""
    earlier, present = (secrets.token_urlsafe(32) for _ in range(2))
    for boot in (earlier, present):
        assert pair.first.ask(pi.form(pi.assertion(boot=boot))).status == 200
    device = f"client_id = '{pi.client_id}'"
    ago = "- 1000 FROM fleet_device d WHERE d.id = device_id AND d." + device
    pair.sql(f"UPDATE fleet_deviceboot SET first_at = first_at {ago}")
    pair.sql(f"UPDATE fleet_deviceboot SET last_at = last_at {ago}")
    pair.sql(f"UPDATE fleet_device SET boot_first_at = boot_first_at - 500 WHERE {device}")
    before = pair.events("device.clone")
    bodies = [pi.form(pi.assertion(boot=boot)) for boot in (earlier, earlier, present, present)]
    posts = [partial((pair.first, pair.second)[n % 2].ask, body) for n, body in enumerate(bodies)]
    assert [reply.status for reply in pair.meet("fleet_device", device, posts[0], posts[1])] == [200, 200]
    assert [post().status for post in posts[2:]] == [200, 200]
    assert pair.events("device.clone") == before + 1


def test_b24_a_bulk_action_takes_devices_in_the_order_of_tokens(pair: Pair) -> None:
    """B-24: tokens for two devices and an action on both, which each hold one and want the other, would never end."""
    from pi_agent.fleet import ledger

    older = pair.first.enroll(board=board())
    while (newer := pair.first.enroll(board=board())).client_id > older.client_id:
        pass
    names = [newer.client_id, older.client_id]
    kids = [public_key(each.key.public_key()).kid for each in (newer, older)]

    def read() -> int:
        return len(pair.sql(ledger.READ_ALL, names, kids))

    def quarantine() -> int:
        query = " OR ".join(f"id:{name}" for name in names)
        return pair.second.cli("quarantine", query, "--yes", "--max", "2", "--reason", "test").returncode

    found = pair.meet("fleet_device", f"client_id = '{newer.client_id}'", read, quarantine)
    assert found == [2, 0]


def test_b24_rhythms_are_kept_in_the_order_of_tokens(pair: Pair) -> None:
    """B-24: the housekeeper and a batch of tokens, which each hold one device and want the other, would never end."""
    from pi_agent.fleet import ledger

    low, high = sorted((pair.first.enroll(board=board()) for _ in range(2)), key=lambda pi: pi.client_id)
    kids = [public_key(each.key.public_key()).kid for each in (low, high)]
    assert [pair.second.ask(each.form()).status for each in (high, low)] == [200, 200]
    pair.sql("UPDATE fleet_device SET auth_at = auth_at - 5, rhythm_at = NULL WHERE client_id = %s", high.client_id)
    pair.sql("UPDATE fleet_device SET rhythm_at = NULL WHERE client_id = %s", low.client_id)
    unkept = "SELECT count(*) FROM fleet_device WHERE client_id IN (%s, %s) AND rhythm_at IS NULL"

    def read() -> int:
        return len(pair.sql(ledger.READ_ALL, [low.client_id, high.client_id], kids))

    def keep() -> int:
        pair.first.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 10
        while pair.sql(unkept, low.client_id, high.client_id) != [(0,)] and time.monotonic() < end:
            time.sleep(0.05)
        return int(pair.sql(unkept, low.client_id, high.client_id)[0][0])

    assert pair.meet("fleet_device", f"client_id = '{low.client_id}'", read, keep) == [2, 0]


@pytest.mark.parametrize("way", ["token", "rotation", "registration"])
def test_a_device_that_is_forgotten_at_one_server_is_a_stranger_at_the_other(pair: Pair, pi: Pi, way: str) -> None:
    """Also at the moment in which the other server has read its key, and waits for its row. Its key may enroll anew."""
    import psycopg

    def rotate_there() -> str:
        try:
            sign_in(pair.second, pi, with_another_key(pi))
        except OAuthError as error:
            return error.error
        return "done"

    body = registration(pair, pi) if way == "registration" else b""
    calls: dict[str, Callable[[], Any]] = {
        "token": lambda: ask(pair.second, pi).json["error_description"],
        "rotation": rotate_there,
        "registration": lambda: register(pair.second, body).status,
    }
    row = f"SELECT id FROM fleet_device WHERE client_id = '{pi.client_id}'"
    with psycopg.connect(pair.url) as holder, ThreadPoolExecutor(1) as pool:
        for table, column in (("devicekey", "device_id"), ("devicetag", "device_id"), ("device", "id")):
            holder.execute(f"DELETE FROM fleet_{table} WHERE {column} IN ({row})".encode())
        answer = pool.submit(calls[way])
        while pair.sql("SELECT count(*) FROM pg_locks WHERE NOT granted") != [(1,)]:
            assert not answer.done(), answer.result()
            time.sleep(0.01)
        holder.commit()
    expected = {"token": "the signature is not good", "rotation": "invalid_grant", "registration": 201}
    assert answer.result() == expected[way]
