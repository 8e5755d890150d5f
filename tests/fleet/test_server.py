"""The server as it runs: a real process, real sockets, a real database file. Requirements B-21, B-23, E-12, G-01, RS-01 to RS-07."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from device.living import eventually
from fleet.live import CLEAN, COMMAND, LiveFleet, closed_within, run
from fleet.support import FORM, Pi, exchange
from pi_agent.fleet import protocol, server
from pi_agent.fleet.asgi import Application


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """One server for the tests that only talk to it."""
    fleet = LiveFleet(tmp_path_factory.mktemp("live") / "data", "--no-rate-limit")
    yield fleet
    if fleet.process.poll() is None:
        fleet.stop()


def test_the_greeting_says_all_that_is_needed(live: LiveFleet) -> None:
    """Where it listens, the issuer, the data folder, how to sign in, and the command for the first device."""
    way = f"pi-fleet --data {live.data} sign-in-link"
    for part in (live.issuer, str(live.data), way, f"pi-agent setup {live.issuer}", "devices status:pending"):
        assert part in live.greeting
    assert "/sign-in/" in live.cli(*way.split()[3:]).stdout


def test_the_link_is_only_for_a_terminal(live: LiveFleet, tmp_path: Path) -> None:
    """A person who starts the server has it before them; a log, which others read, never has it."""
    assert "/sign-in/" not in live.greeting
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--data", str(tmp_path / "data"), "serve", "--bind", "127.0.0.1:0"], stderr=theirs, env=CLEAN
    )
    os.close(theirs)
    said = ""
    while "status:pending" not in said:
        said += os.read(ours, 4096).decode()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    os.close(ours)
    assert re.search(r"http://127\.0\.0\.1:\d+/sign-in/\S+  \(works once, for 15 minutes\)", said)


def test_the_data_folder_is_private(live: LiveFleet) -> None:
    """The folder 0700; everything in it 0600, the socket too."""
    assert stat.S_IMODE(live.data.stat().st_mode) == 0o700
    for path in live.data.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_a_device_is_served(live: LiveFleet) -> None:
    """Enrolled, approved by the command, and given a token; all over real HTTP."""
    pi = live.enroll(approved=False)
    assert live.ask(pi.form()).json["error"] == "authorization_pending"
    assert live.cli("approve", pi.client_id, "--yes", "--reason", "known").stdout == f"{pi.client_id}\n"
    assert live.ask(pi.form()).status == 200


def test_rs06_slow_clients_hold_up_nobody(live: LiveFleet) -> None:
    """A hundred half requests, in headers and in bodies, while a device gets its token."""
    pi = live.enroll(board=None)
    slow = [live.connect() for _ in range(100)]
    for number, connection in enumerate(slow):
        head = f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\n"
        connection.sendall((head + ("Content-Length: 999\r\n\r\ngrant_type=" if number % 2 else "X-Slow: ")).encode())
    try:
        begin = time.monotonic()
        assert live.ask(pi.form()).status == 200
        assert time.monotonic() - begin < protocol.Protocol.header_seconds
    finally:
        for connection in slow:
            connection.close()


def test_rs06_one_host_cannot_hold_all_connections(tmp_path: Path) -> None:
    """Beyond its share a host gets 503, others and a trusted proxy are served, and it is served again when it let go."""
    server = LiveFleet(tmp_path, "--address-connections", "3", "--trusted-proxy", "127.0.0.9")

    def status(source: str) -> bytes:
        with socket.create_connection(("127.0.0.1", server.port), 20, (source, 0)) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return connection.recv(4096)[9:12]

    def hold(source: str, number: int) -> list[socket.socket]:
        return [socket.create_connection(("127.0.0.1", server.port), 20, (source, 0)) for _ in range(number)]

    held = hold("127.0.0.1", 3) + hold("127.0.0.9", 4)
    try:
        assert status("127.0.0.2") == status("127.0.0.9") == b"200"
        assert status("127.0.0.1") == b"503"
        held.pop(0).close()
        assert eventually(lambda: status("127.0.0.1") == b"200", patience=60)
    finally:
        for connection in held:
            connection.close()
        server.stop()


def test_rs07_malformed_http_is_closed(live: LiveFleet) -> None:
    """Garbage, two lengths, a length with chunks, an endless header: one refusal at most, then the end."""
    head = b"POST /oauth/token HTTP/1.1\r\nHost: x\r\n"
    for hostile in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), b"GET\r\n\r\n", b"GET /healthz HTTP/9.9\r\n\r\n",
        head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx", head + b"Content-Length: -1\r\n\r\n",
        head + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n",
        head + b"X: " + b"y" * (protocol.MAX_HEADER_BYTES + 300_000),
    ):  # fmt: skip
        with live.connect() as connection:
            try:
                connection.sendall(hostile)
            except OSError:
                continue  # it hung up while we were still talking
            assert closed_within(connection, 5), hostile[:60]
    assert live.request("GET", "/healthz").status == 200


def test_b01_an_endless_body_ends(live: LiveFleet) -> None:
    """Chunks without end get 413 after 64 KiB, announced lengths at once."""
    with live.connect() as connection:
        connection.sendall(
            f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(80):
            try:
                connection.sendall(b"400\r\n" + b"a" * 1024 + b"\r\n")
            except OSError:
                break
        assert closed_within(connection, 5)


def test_the_local_socket_knows_its_peer(live: LiveFleet) -> None:
    """SO_PEERCRED opens the API to the owner of the folder on the socket; over TCP nothing opens it."""
    assert live.request("GET", "/api/v1/devices").status == 401
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(live.data / "fleet.sock"))
    connection.request("GET", "/api/v1/devices")
    answer = connection.getresponse()
    assert (answer.status, b"meaning" in answer.read()) == (200, True)
    connection.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_no_operator(app: Application) -> None:
    """A peer on the local socket that neither owns the folder nor is root gets 401."""
    assert exchange(app, "GET", "/api/v1/devices", client=("uid", 12345)).status == 401
    assert exchange(app, "GET", "/api/v1/devices", client=("uid", os.geteuid())).status == 200


def test_e12_a_second_server_is_told_of_the_first(live: LiveFleet) -> None:
    """The folder is locked; the live socket stays where it is."""
    second = run("--data", str(live.data), "serve", "--bind", "127.0.0.1:0")
    assert second.returncode == 6
    assert f"(process {live.process.pid})" in second.stderr
    assert live.cli("devices").returncode == 0


def test_an_address_in_use_is_said(live: LiveFleet, tmp_path: Path) -> None:
    """With the setting to change; and not as a wrong setting, since the port may be free in a minute."""
    second = run("--data", str(tmp_path / "other"), "serve", "--bind", f"127.0.0.1:{live.port}")
    assert second.returncode == 5
    assert "cannot listen" in second.stderr and "--bind" in second.stderr


def test_an_open_address_needs_an_issuer(tmp_path: Path) -> None:
    """Beyond loopback the server's name cannot be guessed."""
    refused = run("--data", str(tmp_path / "data"), "serve", "--bind", "0.0.0.0:0")
    assert refused.returncode == 2
    assert "--issuer https://" in refused.stderr


def test_sigterm_ends_it_cleanly_and_nothing_secret_was_said(tmp_path: Path) -> None:
    """Exit 0 within seconds, also with idle and half-open connections, and no socket is left behind (requirement G-01).

    Good, bad and broken requests leave neither assertions nor tokens on stderr, nor a line for each.
    """
    fleet = LiveFleet(tmp_path / "data")
    pi = fleet.enroll()
    assertion = pi.assertion()
    token = fleet.ask(pi.form(assertion)).json["access_token"]
    fleet.ask(pi.form(assertion))
    fleet.request("GET", f"/nowhere?{assertion}", headers={"host": "evil.example"})
    fleet.request("GET", "/devices/%1b", headers={"authorization": f"Bearer {token}"})
    with fleet.connect() as idle, fleet.connect() as half:
        half.sendall(b"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nab")
        idle.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        begin = time.monotonic()
        assert fleet.stop() == (0, "")
        assert time.monotonic() - begin < server.GRACE_SECONDS
    assert not (fleet.data / "fleet.sock").exists()


EARLY = """
import os, signal, sys
class Reload:
    def find_spec(self, name, *rest):
        if name == "pi_agent.fleet.settings":
            print("reload", flush=True)
            os.kill(os.getpid(), signal.SIGHUP)
sys.meta_path.insert(0, Reload())
sys.argv = ["pi-fleet", "serve", "--help"]
from pi_agent.fleet.cli import main
main()
"""


def test_a_reload_that_comes_too_early_ends_nothing(tmp_path: Path) -> None:
    """systemd does not start again what SIGHUP has ended, so that the server would stay away."""
    process = subprocess.Popen(
        [*COMMAND, "--data", str(tmp_path / "data"), "serve", "--bind", "127.0.0.1:0"],
        stderr=subprocess.PIPE,
        text=True,
        env=CLEAN,
    )
    assert process.stderr is not None
    while not (tmp_path / "data" / "fleet.lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert "listening" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0


def test_a_reload_while_the_program_is_read_ends_nothing() -> None:
    """SIGHUP is ignored ahead of what ``serve`` imports."""
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, env=CLEAN, check=False)
    assert (done.returncode, done.stdout.startswith("reload\nusage: pi-fleet serve")) == (0, True), done.stderr


def test_b23_a_used_assertion_outlives_kill_9(tmp_path: Path) -> None:
    """Killed and started again on the same port: the stale socket is replaced, and the assertion stays used."""
    fleet = LiveFleet(tmp_path / "data")
    pi = fleet.enroll()
    body = pi.form()
    assert fleet.ask(body).status == 200
    fleet.stop(signal.SIGKILL)
    assert (fleet.data / "fleet.sock").exists()

    again = LiveFleet(fleet.data, bind=f"127.0.0.1:{fleet.port}")
    try:
        refused = again.ask(body)
        assert (refused.status, refused.json["error"]) == (400, "invalid_grant")
        assert "used before" in refused.json["error_description"]
        assert again.ask(pi.form()).status == 200
        assert again.cli("device", pi.client_id).returncode == 0
    finally:
        again.stop()


def test_rs03_what_was_answered_is_in_the_database_after_kill_9(tmp_path: Path) -> None:
    """Every token that was given before the kill has its assertion on disk; the database is sound."""
    fleet = LiveFleet(tmp_path / "data", "--no-rate-limit")
    devices = [fleet.enroll(board=None) for _ in range(3)]
    spent: list[str] = []

    def keep_asking(pi: Pi) -> None:
        for number in range(500):
            jti = f"{pi.client_id}-{number:08}"
            try:
                if fleet.ask(pi.form(pi.assertion(jti=jti))).status == 200:
                    spent.append(jti)
            except (OSError, http.client.HTTPException):
                return

    with ThreadPoolExecutor(3) as pool:
        running = [pool.submit(keep_asking, pi) for pi in devices]
        while len(spent) < 30:
            time.sleep(0.01)
        fleet.stop(signal.SIGKILL)
        for each in running:
            each.result()
    with sqlite3.connect(fleet.data / "fleet.sqlite3") as database:
        known = {row[0] for row in database.execute("SELECT jti FROM fleet_usedassertion")}
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert set(spent) <= known


def test_without_the_extra_the_command_to_install_is_named(tmp_path: Path) -> None:
    """``pi-fleet serve`` where Django is missing."""
    (tmp_path / "django.py").write_text("raise ModuleNotFoundError(\"No module named 'django'\", name='django')\n")
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError(\"No module named 'uvicorn'\", name='uvicorn')\n")
    path = os.pathsep.join(filter(None, [str(tmp_path), CLEAN.get("PYTHONPATH")]))
    refused = run("--data", str(tmp_path / "data"), "serve", env={"PYTHONPATH": path})
    assert refused.returncode == 2
    assert "pip install 'pi-identity-agent[fleet]'" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    "path",
    ["/debug", "/__debug__/", "/admin/", "/api/v1/../../secret", "/static/%2e%2e/views.py", "//devices", "/.git/config",
     "/fleet.sqlite3", "/api/v1/docs", "/%00", "/devices%2f..%2fsettings", "/oauth/token/", "/OAUTH/token"],
)  # fmt: skip
def test_d15_odd_paths_lead_nowhere(live: LiveFleet, path: str) -> None:
    """Nothing to debug with, no file, no other door to an endpoint; and no answer tells how the server is built."""
    reply = live.request("GET", path)
    assert reply.status in (400, 404)
    assert not re.search(rb"Traceback|django|/src/|\.py\b", reply.body)


def test_d15_one_port_on_loopback_is_open(live: LiveFleet) -> None:
    """Unless it is told otherwise, and for everything: devices, pages and REST."""
    sockets = {str(fd.readlink()) for fd in Path(f"/proc/{live.process.pid}/fd").iterdir() if fd.is_symlink()}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_ = fields = line.split()
            if state == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(local)
    assert listening == [f"0100007F:{live.port:04X}"]


def test_the_command_is_there() -> None:
    """The entry point of the package is the function that these tests run."""
    found = shutil.which("pi-fleet", path=str(Path(COMMAND[0]).parent))
    assert found is None or "pi_agent.fleet.cli" in Path(found).read_text()
