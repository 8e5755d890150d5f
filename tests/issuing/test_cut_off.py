"""Enrollment and rotation with the server killed, or its disk full, at every step of its own (RS-02, RS-03, F-04).

The steps are the system calls by which the server writes its database; strace kills it, or fails the call, at the n-th,
for n = 1, 2, ... until a run has no such call left. The device's own steps are cut in ``fleet/test_rotation.py`` and
``device/chaos.py``. After each: the device's next try succeeds, there is one device with one speaking key, and the audit
log is whole.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fleet.board import BOARD
from fleet.live import LiveFleet
from fleet.support import FORM, Pi, Reply
from issuing.conftest import start
from issuing.test_client_credentials import client_form
from pi_agent import jws
from pi_agent.device import enroll, identity, joining, rotate, worker
from pi_agent.device.discovery import discover
from pi_agent.device.keys import stores
from pi_agent.device.transport import Transport
from pi_agent.errors import PiAgentError

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")

# Each wait for the disk; of the many page writes, every eleventh.
CUTS = {
    ("fdatasync", "signal=KILL"): range(1, 100),
    ("pwrite64", "signal=KILL"): range(1, 200, 11),
    ("pwrite64", "error=ENOSPC"): range(1, 200, 11),
}
SERIAL = "00000000c0ffee01"


class Device:
    """A board that enrolls and rotates with the agent's own code, over HTTP."""

    def __init__(self, state: Path, issuer: str) -> None:
        state.mkdir(mode=0o700)
        self.state = state
        self.issuer = issuer
        self.transport = Transport(ca_file="", proxy="", loopback_http=True)

    def set_up(self) -> None:
        known, key = joining.begin(self.state, issuer=self.issuer, serial=SERIAL, store="file", algorithm="ES256")
        found = discover(self.transport, self.issuer, loopback_http=True)
        registration = enroll.register(
            self.transport,
            found,
            key,
            board=BOARD | {"serial": SERIAL},
            agent=worker.agent_claims(key, simulated=True),
            name="",
            enrollment_token="",
            now=int(time.time()),
        )
        joining.complete(self.state, known, key, client_id=registration.client_id, token_endpoint=found.token_endpoint)

    def turn(self, ask: Callable[[Any, str], int]) -> None:
        """One rotation, to its end: signed in, used, finished."""
        known = identity.load(self.state)
        known = rotate.begin(self.state, known, known.next_key or stores.successor(known.key))
        key = rotate.next_key(self.state, known, self.transport, loopback_http=True, now=int(time.time()))
        if ask(key, known.client_id) != 200:
            raise PiAgentError("no token")
        rotate.finish(self.state, known, key)


def bought(server: LiveFleet) -> Callable[[Any, str], int]:
    """Asks for a token with a key, and gives the status."""

    def ask(key: Any, client_id: str) -> int:
        pi = Pi(key=None, board=BOARD | {"serial": SERIAL}, issuer=server.issuer, client_id=client_id)
        header = {"alg": key.alg, "kid": key.public_key().kid, "typ": "pi-device-grant+jwt"}
        return server.ask(pi.form(jws.serialize(header, pi.claims(), sign=key.sign))).status

    return ask


@contextmanager
def traced(server: LiveFleet, log: Path, *words: str) -> Iterator[None]:
    """The server under strace."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(server.process.pid), *words, "-o", str(log)], stderr=subprocess.PIPE, text=True
    )
    assert tracer.stderr is not None
    assert "attached" in tracer.stderr.readline()
    try:
        yield
    finally:
        tracer.kill()  # asked to leave, strace may wait for ever for a thread of a process that is gone
        tracer.communicate()


@contextmanager
def disturbed(server: LiveFleet, call: str, fault: str, n: int, log: Path) -> Iterator[Callable[[], bool]]:
    """The server with a fault at the ``n``-th ``call`` of each of its threads; tells whether one met it."""
    with traced(server, log, "-e", f"trace={call}", "-e", f"inject={call}:{fault}:when={n}"):
        yield lambda: "INJECTED" in log.read_text() or "killed by SIGKILL" in log.read_text()


def test_b23_an_answer_waits_for_the_disk(tmp_path: Path) -> None:
    """A token, a registration, a revocation: each is answered after SQLite's log was put on disk, which kill -9 cannot show."""
    server = start(tmp_path / "data", "")
    try:
        pi = server.enroll()
        log, head = tmp_path / "strace", {"content-type": FORM}
        with traced(server, log, "-y", "-e", "trace=fdatasync,fsync"):

            def waits(ask: Callable[[], Reply]) -> int:
                before = log.read_text().count("fleet.sqlite3-wal")
                assert ask().status in (200, 201)
                return log.read_text().count("fleet.sqlite3-wal") - before

            tokens = [server.ask(pi.form()).json["access_token"] for _ in range(20)]
            assert log.read_text().count("fleet.sqlite3-wal") >= len(tokens)
            revoking = [client_form(pi, token=token) for token in tokens]
            asked = [partial(server.request, "POST", "/oauth/revoke", form, head) for form in revoking]
            assert min(map(waits, asked)) >= 2  # the assertion is spent, and the token is over
            assert waits(lambda: Reply(201, {}, server.enroll(approved=False, board=None).client_id.encode())) >= 1
    finally:
        server.stop()


def whole(data: Path) -> None:
    """One device, one key that speaks, and an unbroken audit log."""
    with sqlite3.connect(data / "fleet.sqlite3") as database:
        assert database.execute("SELECT count(*) FROM fleet_device").fetchone() == (1,)
        speaking = "SELECT count(*) FROM fleet_devicekey WHERE retired_at IS NULL AND pending_until IS NULL"
        assert database.execute(speaking).fetchone() == (1,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(("call", "fault"), CUTS)
@pytest.mark.parametrize("work", ["enrollment", "rotation"])
def test_nothing_is_half_wherever_the_server_is_cut_off(tmp_path: Path, work: str, call: str, fault: str) -> None:
    """RS-02, RS-03, F-04: whatever write of the server is its last, or fails, the next try goes through, as one device."""
    data = tmp_path / "data"
    server = start(data, "")
    met = 0
    for n in CUTS[call, fault]:
        device = Device(tmp_path / f"state-{n}", server.issuer)
        with sqlite3.connect(data / "fleet.sqlite3") as database:
            for table in ("deviceboot", "devicekey", "device"):
                database.execute(f"DELETE FROM fleet_{table}")
        if work == "rotation":
            device.set_up()
            with sqlite3.connect(data / "fleet.sqlite3") as database:
                database.execute("UPDATE fleet_device SET status = 'approved'")
        log = tmp_path / f"strace-{n}"
        with disturbed(server, call, fault, n, log) as hit, suppress(PiAgentError, OSError):
            device.set_up() if work == "enrollment" else device.turn(bought(server))
        if fault == "signal=KILL" and hit():
            server.process.communicate()
            server = start(data, "", bind=f"127.0.0.1:{server.port}")
        if not hit():
            break
        met += 1
        device.set_up() if work == "enrollment" else device.turn(bought(server))
        known = identity.load(device.state)
        assert joining.load_key(device.state, known).public_key().kid == known.kid
        whole(data)
    assert server.cli("audit", "verify").returncode == 0
    server.stop()
    print(f"{work}: {met} runs met {fault} at {call}")
    assert met > 0
