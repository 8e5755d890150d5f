"""More than a server can do, and what is left behind: queues, floods, full logs (requirements RS-05, RS-08, RS-12, RS-15, RS-16)."""

from __future__ import annotations

import http.client
import os
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from unittest.mock import Mock

import pytest
from django.db import connection

from fleet.live import CLEAN, COMMAND, LiveFleet
from fleet.support import FORM, Pi, Reply, ask, exchange
from issuing.conftest import start
from pi_agent.assertion import MAX_LIFETIME, SKEW
from pi_agent.fleet import clerk, housekeeper, ledger, limits, webhooks
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.line import Known, Line
from pi_agent.fleet.models import UsedAssertion
from pi_agent.fleet.web import RETRY_SPREAD, Answer, Request

HEAD = f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LiveFleet]:
    found = start(tmp_path / "data", "", "--busy-timeout", "20")
    yield found
    if found.process.poll() is None:
        found.stop()


def read(connection: socket.socket) -> Reply:
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())


def test_rs05_who_is_let_in_is_served_and_the_rest_come_later(server: LiveFleet) -> None:
    """The disk stands still while 600 ask: 512 wait and get a token, the others are sent away at once, to different times."""
    pi, more = server.enroll(), 88
    with closing(sqlite3.connect(server.data / "fleet.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        connections = [server.connect() for _ in range(clerk.MAX_WAITING + more)]
        for each in connections[: clerk.MAX_WAITING]:
            body = pi.form()
            each.sendall((HEAD % len(body)).encode() + body)
        end = time.monotonic() + 60
        while waiting(server) < clerk.MAX_WAITING:
            assert time.monotonic() < end
            time.sleep(0.05)
        for each in connections[clerk.MAX_WAITING :]:
            body = pi.form()
            each.sendall((HEAD % len(body)).encode() + body)
        refused = [read(each) for each in connections[clerk.MAX_WAITING :]]
        other.execute("ROLLBACK")
        served = [read(each) for each in connections[: clerk.MAX_WAITING]]
    for each in connections:
        each.close()
    assert {reply.status for reply in served} == {200}
    assert {(reply.status, reply.json["error"]) for reply in refused} == {(503, "temporarily_unavailable")}
    waits = {int(reply.headers["retry-after"]) for reply in refused}
    assert waits <= set(RETRY_SPREAD) and len(waits) > 3


def test_rs05_the_other_endpoints_have_a_line_of_their_own(app: Application, pi: Pi) -> None:
    """When it is full, the next one is sent away with Retry-After, and tokens are issued all the same."""
    app.waiting = clerk.MAX_WAITING
    try:
        reply = exchange(app, "POST", "/oauth/introspect", b"token=x", {"content-type": FORM})
        assert (reply.status, reply.json["error"]) == (503, "temporarily_unavailable")
        assert int(reply.headers["retry-after"]) in RETRY_SPREAD
        assert ask(app, pi.form()).status == 200
    finally:
        app.waiting = 0
    assert exchange(app, "POST", "/oauth/introspect", b"token=x", {"content-type": FORM}).status == 401


def waiting(server: LiveFleet) -> int:
    """How many token requests wait, by the server's own metrics."""
    text = server.request("GET", "/metrics").body.decode()
    return sum(
        int(float(line.split()[-1])) for line in text.splitlines() if line.startswith("pi_fleet_token_requests_waiting")
    )


def test_rs08_who_is_known_goes_before_strangers() -> None:
    """However many strangers are in the line, what comes from a known address is taken next."""
    line: Line[str] = Line()
    for number in range(1000):
        line.put(f"stranger {number}")
    line.put("known", first=True)
    assert line.take(3) == ["known", "stranger 0", "stranger 1"]


def test_rs08_an_address_is_known_by_a_token_alone(app: Application, pi: Pi) -> None:
    """Forgeries make nobody known, who is known goes first, and the names that are kept are few."""
    found = Application(app.authority)
    try:
        ask(found, pi.form(Pi(client_id=pi.client_id).sign(pi.header(), pi.claims())))
        assert "192.0.2.1" not in found.clerk.known
        assert ask(found, pi.form()).status == 200
        assert "192.0.2.1" in found.clerk.known
        stranger = clerk.Asker(Mock(), Mock(), "192.0.2.3", known=False)
        found.clerk.waiting[False] += 2
        found.clerk._answer([(stranger, Answer(200))] * 2)
        assert found.clerk.waiting == [0, 0]  # both were strangers when they came, and the first has made it known
        line, found.clerk.asked = found.clerk.asked, Line()
        try:
            for source in ("192.0.2.2", "192.0.2.1"):
                found.clerk.submit(Request("POST", source=source), Mock(), Mock())
            assert [request.source for request, _ in found.clerk.asked.take(2)] == ["192.0.2.1", "192.0.2.2"]
        finally:
            found.clerk.asked = line
    finally:
        found.close()
    names = Known(3)
    for number in range(9):
        names.add(str(number))
    assert list(names.names) == ["6", "7", "8"]


def test_rs12_used_assertions_are_forgotten_in_small_steps(app: Application) -> None:
    """Those that nobody would believe any more, by an index, at most PURGE_ROWS at a time; the others stay."""
    UsedAssertion.objects.all().delete()
    now, old = 2_000_000_000, 2 * ledger.PURGE_ROWS + 5
    UsedAssertion.objects.bulk_create(
        UsedAssertion(issuer="pi-1", jti=f"jti-{number:012}", expires_at=now - (0 if number >= old else 10_000))
        for number in range(old + 7)
    )
    assert [ledger.purge(now) for _ in range(4)] == [ledger.PURGE_ROWS, ledger.PURGE_ROWS, 5, 0]
    assert UsedAssertion.objects.count() == 7
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN QUERY PLAN " + ledger.PURGE, [now, 10])
        plan = " ".join(row[3] for row in cursor.fetchall())
    assert "expires_at" in plan and "SCAN" not in plan, plan
    UsedAssertion.objects.all().delete()


def test_b23_an_assertion_is_not_forgotten_while_it_would_be_believed(app: Application, pi: Pi) -> None:
    """Until its end and the skew, and by a clock that was put back as far as this server still issues (RS-09)."""
    now = int(time.time())
    assert ask(app, pi.form(pi.assertion(iat=now, exp=now + MAX_LIFETIME))).status == 200
    for at, left in ((now + MAX_LIFETIME + SKEW + limits.MAX_STEP, 1), (now + 2 * ledger.KEEP_USED, 0)):
        ledger.purge(at)
        assert UsedAssertion.objects.filter(issuer=pi.client_id).count() == left


def test_a_long_log_is_begun_anew(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied is on disk before requests have to wait, by a descriptor of SQLite's own, which stays open."""
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL looks after its own log")
    synced: list[Path] = []

    def fdatasync(number: int, wait: Callable[[int], None] = os.fdatasync) -> None:
        synced.append(Path(f"/proc/self/fd/{number}").readlink())
        wait(number)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    monkeypatch.setattr(housekeeper, "MAX_LOG_PAGES", 3)
    for number in range(5):
        UsedAssertion.objects.create(issuer="pi-1", jti=f"jti-{number:012}", expires_at=1)
    housekeeper.checkpoint(0)
    assert set(synced) == {Path(connection.settings_dict["NAME"]).resolve()}
    UsedAssertion.objects.create(issuer="pi-1", jti="jti-after-that-one", expires_at=1)
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA wal_checkpoint(PASSIVE)")
        _, pages, _ = cursor.fetchone()
    assert pages <= 8
    UsedAssertion.objects.all().delete()


def test_chores_with_nothing_to_do_take_no_lock(app: Application) -> None:
    """The signing keys are loaded again and webhooks are looked after while another process writes."""
    name = connection.settings_dict["NAME"]
    with closing(sqlite3.connect(name, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        app.reload()
        assert webhooks.deliver(2_000_000_000, webhooks.post_once) == 0
        other.execute("ROLLBACK")


@pytest.mark.parametrize("sink", ["/dev/full", "a pipe that nobody reads"])
def test_rs15_a_log_that_cannot_be_written_stops_nothing(tmp_path: Path, sink: str) -> None:
    """What the server would say is lost; tokens are issued, and refused while the database is locked, as ever."""
    server = start(tmp_path / "data", "", "--busy-timeout", "0.2")
    port, pi = server.port, server.enroll()
    server.stop()
    reading, writing = (None, os.open(sink, os.O_WRONLY)) if sink.startswith("/") else os.pipe()
    command = [
        *COMMAND,
        "--data",
        str(tmp_path / "data"),
        "serve",
        "--bind",
        f"127.0.0.1:{port}",
        "--busy-timeout",
        "0.2",
    ]
    server.process = subprocess.Popen(command, stderr=writing, env=CLEAN)  # type: ignore[assignment]  # no text this time
    os.close(writing)
    if reading is not None:
        os.close(reading)
    try:
        end = time.monotonic() + 60
        while not answers(server):
            assert time.monotonic() < end and server.process.poll() is None
            time.sleep(0.1)
        with closing(sqlite3.connect(tmp_path / "data" / "fleet.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert server.ask(pi.form()).status == 503
            other.execute("ROLLBACK")
        assert server.ask(pi.form()).status == 200
    finally:
        server.process.terminate()
        assert server.process.wait(20) == 0


def answers(server: LiveFleet) -> bool:
    try:
        return server.request("GET", "/healthz").status == 200
    except OSError:
        return False


def test_rs16_a_client_that_left_can_come_again(server: LiveFleet) -> None:
    """It hung up before its answer: that assertion is spent, the next one is served, and nothing waits for it."""
    pi = server.enroll()
    bodies = [pi.form() for _ in range(20)]
    for body in bodies:
        with server.connect() as connection:
            connection.sendall((HEAD % len(body)).encode() + body)
    end = time.monotonic() + 60
    while waiting(server):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert {server.ask(body).json["error"] for body in bodies} == {"invalid_grant"}
    assert server.ask(pi.form()).status == 200


def test_a_server_that_only_issues_tokens_is_small(tmp_path: Path) -> None:
    """What the REST interface needs, a sixth of the memory, is loaded when somebody first asks for it."""
    server = start(tmp_path / "data", "")
    try:
        pi = Pi(issuer=server.issuer, client_id="pi-0123456789abcdef")
        assert server.ask(pi.form()).status == 400
        maps = Path(f"/proc/{server.process.pid}/maps")
        assert "pydantic" not in maps.read_text()
        server.request("GET", "/api/v1/devices")
        assert "pydantic" in maps.read_text()
    finally:
        server.stop()
