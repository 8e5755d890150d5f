"""The connection itself: the short way of token requests, slow and strange clients, proxies, TLS (requirements RS-06, RS-07, B-26)."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import sqlite3
import ssl
import subprocess
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fleet.live import LiveFleet, closed_within, run
from fleet.support import FORM, Pi
from issuing.conftest import start


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """One server with short times."""
    data = tmp_path_factory.mktemp("protocol") / "data"
    found = start(data, "", "--body-seconds", "0.4", "--header-seconds", "0.4", "--trusted-proxy", "127.0.0.1")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def pi(server: LiveFleet) -> Pi:
    return server.enroll()


def post(body: bytes, *lines: str, path: str = "/oauth/token", version: str = "1.1") -> bytes:
    head = [f"POST {path} HTTP/{version}", "Host: x", f"Content-Type: {FORM}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def answers(connection: socket.socket) -> list[tuple[int, bytes]]:
    """All whole answers until the server closes, or says nothing more for a moment."""
    connection.settimeout(2)
    data = b""
    try:
        while chunk := connection.recv(65536):
            data += chunk
            connection.settimeout(0.3)
    except TimeoutError:
        pass
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        found.append((int(head.split()[1]), rest[:length]))
        data = rest[length:]
    return found


def wait_for_token(connection: socket.socket) -> None:
    connection.settimeout(5)
    data = b""
    while b"access_token" not in data:
        chunk = connection.recv(65536)
        assert chunk, data
        data += chunk


def test_a_connection_is_used_again(server: LiveFleet, pi: Pi) -> None:
    """Token after token, and other paths in between."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    for path in ("/oauth/token", "/healthz", "/oauth/token", "/oauth/jwks", "/oauth/token"):
        body = pi.form() if path == "/oauth/token" else b""
        connection.request("POST" if body else "GET", path, body or None, {"content-type": FORM} if body else {})
        answer = connection.getresponse()
        assert (answer.status, answer.getheader("x-content-type-options")) == (200, "nosniff")
        assert answer.getheader("date") and answer.read()
    connection.close()


@pytest.mark.parametrize("lines", [("Connection: close",), ("Expect: 100-continue",)])
def test_a_request_may_want_something_else(server: LiveFleet, pi: Pi, lines: tuple[str, ...]) -> None:
    """The token comes all the same."""
    with server.connect() as connection:
        connection.sendall(post(pi.form(), *lines))
        wait_for_token(connection)


@pytest.mark.parametrize("lines", [("Connection: close",), ("connection: keep-alive, Close",)])
def test_a_client_that_wants_to_close_is_closed(server: LiveFleet, pi: Pi, lines: tuple[str, ...]) -> None:
    """With its answer, which says so (RFC 9112 section 9.6); not after a time of waiting."""
    with server.connect() as connection:
        connection.sendall(post(pi.form(), *lines))
        connection.settimeout(10)
        data = b""
        while chunk := connection.recv(65536):  # until the server ends it
            data += chunk
    assert b"access_token" in data and b"\r\nconnection: close\r\n" in data.lower()


def test_the_bound_of_headers_is_that_of_one_request(server: LiveFleet, pi: Pi) -> None:
    """A connection that is used again may bring more of them in all than one request may (64 KiB)."""
    with server.connect() as connection:
        for _ in range(10):
            request = post(pi.form(), "X-Long: " + "x" * 9000)
            connection.sendall(request[:9000])
            time.sleep(0.05)  # so that its headers come in two pieces, and are waited for
            connection.sendall(request[9000:])
            wait_for_token(connection)


def test_http_1_0_is_answered_and_closed(server: LiveFleet, pi: Pi) -> None:
    """As it was in that version."""
    with server.connect() as connection:
        connection.sendall(post(pi.form(), version="1.0"))
        assert [status for status, _ in answers(connection)] == [200]
        assert closed_within(connection, 2)


def test_a_body_in_pieces_is_one_body(server: LiveFleet, pi: Pi) -> None:
    """Byte by byte, and in chunks (RFC 9112 section 7.1)."""
    whole = post(pi.form())
    with server.connect() as connection:
        for start_at in range(0, len(whole), 200):
            connection.sendall(whole[start_at : start_at + 200])
        assert [status for status, _ in answers(connection)] == [200]
    body = pi.form()
    head = f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(
            head.encode()
            + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:]))
            + b"0\r\n\r\n"
        )
        assert [status for status, _ in answers(connection)] == [200]


def test_rs07_a_client_that_does_not_wait_is_answered_once(server: LiveFleet, pi: Pi) -> None:
    """Three requests in one write: one answer, then the end of the connection; nothing of the others is spent."""
    bodies = [pi.form() for _ in range(3)]
    with server.connect() as connection:
        connection.sendall(b"".join(post(body) for body in bodies))
        assert [status for status, _ in answers(connection)] == [200]
        assert closed_within(connection, 2)
    assert [server.ask(body).status for body in bodies] == [400, 200, 200]


def test_rs07_an_upgrade_is_refused_and_hides_no_request(server: LiveFleet, pi: Pi) -> None:
    """After an Upgrade the parser reads no further: one refusal that says so, and the end; what follows is not looked at."""
    for path in ("/oauth/token", "/healthz"):
        hidden = post(pi.form())
        with server.connect() as connection:
            connection.sendall(post(pi.form(), "Connection: Upgrade", "Upgrade: h2c", path=path) + hidden)
            ((status, said),) = answers(connection)
            assert status == 400 and b"Upgrade" in said
            assert closed_within(connection, 2)


def test_rs07_an_upgrade_behind_another_request_waits_for_its_answer(server: LiveFleet) -> None:
    """What was asked before is answered; the upgrade is not, and the connection ends."""
    first = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(first + post(b"x", "Connection: Upgrade", "Upgrade: h2c"))
        assert [status for status, _ in answers(connection)] == [200]
        assert closed_within(connection, 2)


@pytest.mark.parametrize("host", ["", "Host: a\r\nHost: b\r\n"])
def test_rs07_a_request_has_one_host(server: LiveFleet, host: str) -> None:
    """None, or two, is a 400 and the end (RFC 9112 section 3.2): who stands in front may have read another one."""
    with server.connect() as connection:
        connection.sendall(f"GET /healthz HTTP/1.1\r\n{host}\r\n".encode())
        assert [status for status, _ in answers(connection)] == [400]
        assert closed_within(connection, 2)


@pytest.mark.parametrize("path", ["/oauth/token", "/healthz"])
@pytest.mark.parametrize("lines", [["X: " + "y" * 70_000], [f"X{number}: y" for number in range(9000)]])
def test_rs07_long_headers_are_refused_also_in_one_piece(server: LiveFleet, path: str, lines: list[str]) -> None:
    """431 and the end, however they arrive."""
    with server.connect() as connection:
        connection.sendall(post(b"x", *lines, path=path))
        assert {status for status, _ in answers(connection)} <= {431}
        assert closed_within(connection, 2)


def test_rs07_only_so_many_requests_wait_behind_another(server: LiveFleet) -> None:
    """Ten in one write, on the way that takes them in turn: a few are answered, and the connection ends."""
    with server.connect() as connection:
        connection.sendall(b"GET /oauth/jwks HTTP/1.1\r\nHost: x\r\n\r\n" * 10)
        found = [status for status, _ in answers(connection)]
        assert set(found) == {200} and len(found) < 10
        assert closed_within(connection, 2)


@pytest.mark.parametrize("path", ["/oauth/token", "/healthz"])
def test_rs07_many_small_headers_are_refused(server: LiveFleet, path: str) -> None:
    """431, since each of them takes far more memory than it has bytes."""
    with server.connect() as connection:
        connection.sendall(post(b"x", *(f"X{number}: y" for number in range(150)), path=path))
        assert [status for status, _ in answers(connection)] == [431]
        assert closed_within(connection, 2)


CHUNKED = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_c14_a_trailer_is_no_header(server: LiveFleet, pi: Pi) -> None:
    """What stands behind a body says neither where a request comes from nor what it is (RFC 9110 section 6.5.1)."""
    body = pi.form()
    trailers = b"Content-Type: text/plain\r\nAuthorization: Basic eDp5\r\nHost: y\r\n"
    with server.connect() as connection:
        head = CHUNKED.format("/oauth/token", FORM).encode()
        connection.sendall(head + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers))
        assert [status for status, _ in answers(connection)] == [200]


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/register"])
def test_rs07_trailers_without_an_end_are_not_kept(server: LiveFleet, path: str) -> None:
    """The connection ends soon, and what came is not remembered."""
    with server.connect() as connection:
        connection.sendall(CHUNKED.format(path, FORM).encode() + b"0\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                connection.sendall(b"a:b\r\n" * 1000)
                time.sleep(0.001)


@pytest.mark.parametrize(
    "more",
    [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Bad Header: x\r\n",
        "X: a\rb\r\n",
    ],
)
def test_rs07_smuggling_ends_the_connection(server: LiveFleet, more: str) -> None:
    """A message that could be read in two ways gets at most one answer, which is an error."""
    hidden = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(f"POST /oauth/token HTTP/1.1\r\nHost: x\r\n{more}\r\n0\r\n\r\n{hidden}".encode())
        found = [status for status, _ in answers(connection)]
    assert len(found) <= 1 and all(400 <= status < 500 for status in found), found


def test_rs06_a_body_that_does_not_come_is_not_waited_for(server: LiveFleet) -> None:
    """408 after the time that is set for it, and the connection ends; on either way into the server."""
    for path in ("/oauth/token", "/oauth/register"):
        with server.connect() as connection:
            connection.sendall(post(b"x" * 50, path=path)[:-20])
            assert [status for status, _ in answers(connection)] == [408]
            assert closed_within(connection, 2)


def test_rs06_headers_that_do_not_come_are_not_waited_for(server: LiveFleet) -> None:
    """The connection ends without a word."""
    with server.connect() as connection:
        connection.sendall(b"POST /oauth/token HTTP/1.1\r\nHost: x\r\n")
        assert closed_within(connection, 3)


def test_b01_a_body_that_is_too_large_is_refused(server: LiveFleet) -> None:
    """413, also when its length was not said before."""
    head = f"POST /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(head.encode() + b"".join(b"1000\r\n" + b"x" * 4096 + b"\r\n" for _ in range(17)))
        assert [status for status, _ in answers(connection)] == [413]


def test_b15_only_the_path_as_it_is_written(server: LiveFleet, pi: Pi) -> None:
    """A query string changes nothing and is no second place for parameters; GET is refused."""
    assert server.request("GET", "/oauth/token").status == 405
    reply = server.request("POST", "/oauth/token?scope=admin", pi.form(), {"content-type": FORM})
    assert (reply.status, reply.json["scope"]) == (200, "device")
    for path in ("/oauth%2ftoken", "/oauth/%74oken", "//oauth/token", "/./oauth/token"):  # a proxy may know it by name
        assert server.request("POST", path, pi.form(), {"content-type": FORM}).status in (403, 404), path


def test_b29_the_limit_is_for_whom_the_proxy_names(tmp_path: Path) -> None:
    """Behind a trusted proxy each client has its own share; without trust the header is only a text."""
    options = ("--request-rate", "0.01", "--request-burst", "2")
    for trust, wanted in ((("--trusted-proxy", "127.0.0.0/8"), [400, 400, 429, 400]), ((), [400, 400, 429, 429])):
        server = LiveFleet(tmp_path / f"data{len(trust)}", *options, *trust)
        try:
            found = [
                server.request("POST", "/oauth/token", b"x=y", {"content-type": FORM, "x-forwarded-for": address})
                for address in ("198.51.100.1, 203.0.113.9", "203.0.113.9", "evil, 203.0.113.9", "203.0.113.10")
            ]
            assert [reply.status for reply in found] == wanted
            limited = [reply for reply in found if reply.status == 429]
            assert all(int(reply.headers["retry-after"]) > 0 for reply in limited)
        finally:
            server.stop()


OPENSSL = (
    *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"),
    *("-addext", "subjectAltName=IP:127.0.0.1"),
)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [*OPENSSL, "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(cert)],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls_is_served_directly_and_its_certificate_is_reloaded(tmp_path: Path) -> None:
    """HTTPS for devices, plain HTTP on the local socket; a renewed certificate comes into use by SIGHUP; no TLS 1.1."""
    cert, key = certificate(tmp_path, "one")
    server = TlsFleet(
        tmp_path / "data", "--issuer", "https://127.0.0.1", "--tls-cert", str(cert), "--tls-key", str(key)
    )
    try:
        assert f"listens on {server.port}: fine behind a proxy" in server.greeting
        before = server.certificate()
        assert server.cli("keys", "list").returncode == 0  # over the local socket
        other, other_key = certificate(tmp_path, "two")
        cert.write_bytes(other.read_bytes())
        key.write_bytes(other_key.read_bytes())
        os.kill(server.process.pid, signal.SIGHUP)
        end = time.monotonic() + 60
        while server.certificate() == before and time.monotonic() < end:
            time.sleep(0.05)
        assert server.certificate() != before
        cert.write_text("nonsense")
        os.kill(server.process.pid, signal.SIGHUP)
        time.sleep(0.2)
        assert server.certificate() != before
        with warnings.catch_warnings(), pytest.raises((ssl.SSLError, OSError)):
            warnings.simplefilter("ignore", DeprecationWarning)  # that it is deprecated is the point
            server.certificate(ssl.TLSVersion.TLSv1_1)
    finally:
        code, said = server.stop()
    assert code == 0
    assert f"there is no certificate in {cert}" in said and "Traceback" not in said


def test_a_certificate_that_is_of_no_use_is_named(tmp_path: Path) -> None:
    """Which of the two files it is, why, and what to do: before anything listens, and nobody is asked for a password."""
    cert, key = certificate(tmp_path, "one")
    _, other = certificate(tmp_path, "two")
    nonsense, locked = tmp_path / "nonsense.pem", tmp_path / "locked.pem"
    nonsense.write_text("nonsense")
    subprocess.run(["openssl", "pkey", "-in", key, "-aes256", "-passout", "pass:x", "-out", locked], check=True)
    for files, said in (
        ((cert, other), f"the private key in {other} is not that of the certificate in {cert}"),
        ((cert,), f"there is no private key in {cert}; it has to be PEM\nhint: name the file"),
        ((key, cert), f"there is no certificate in {key}"),
        ((nonsense, key), f"there is no certificate in {nonsense}"),
        ((cert, locked), f"the private key in {locked} is encrypted"),
        ((cert, tmp_path / "none"), f"cannot read the private key in {tmp_path}/none: No such file"),
    ):
        options = [part for pair in zip(("--tls-cert", "--tls-key"), map(str, files), strict=False) for part in pair]
        serve = ("serve", "--bind", "127.0.0.1:0", "--issuer", "https://fleet.example", *options)
        done = run("--data", str(tmp_path / "data"), *serve)
        assert (done.returncode, done.stderr.startswith("error: ")) == (2, True), done.stderr
        assert said in done.stderr and "_ssl.c" not in done.stderr


def test_rs06_a_handshake_that_does_not_come_is_not_waited_for(tmp_path: Path) -> None:
    """Who connects and says nothing is hung up on as soon as one whose headers do not come, and others are served."""
    cert, key = certificate(tmp_path, "one")
    tls = ("--tls-cert", str(cert), "--tls-key", str(key), "--header-seconds", "0.5")
    server = TlsFleet(tmp_path / "data", "--issuer", "https://127.0.0.1", *tls)
    try:
        with server.connect() as silent:
            assert server.certificate()
            assert closed_within(silent, 10)
    finally:
        server.stop()


def test_rs06_a_connection_takes_its_place_before_the_handshake(tmp_path: Path) -> None:
    """One host that only connects holds as many as it may, is hung up on beyond that, and has all of them back when they end."""
    cert, key = certificate(tmp_path, "one")
    tls = ("--tls-cert", str(cert), "--tls-key", str(key), "--address-connections", "3", "--header-seconds", "60")
    server = TlsFleet(tmp_path / "data", "--issuer", "https://127.0.0.1", *tls)
    try:
        for _ in range(3):
            held = [server.connect() for _ in range(3)]
            with server.connect() as one_more:
                assert closed_within(one_more, 10)
            for channel in held[1:]:
                channel.close()
            with held[0] as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")  # no handshake at all
                assert closed_within(plain, 10)
            assert server.serves_again()
    finally:
        server.stop()


class TlsFleet(LiveFleet):
    """A server that speaks TLS itself."""

    def _greeting(self) -> str:
        said = super()._greeting()
        assert "listening on https://" in said
        return said.replace("https://127.0.0.1:", "http://127.0.0.1:")

    def serves_again(self) -> bool:
        """Whether there is a place within seconds."""
        for _ in range(200):
            with suppress(OSError):
                return bool(self.certificate())
            time.sleep(0.05)
        return False

    def certificate(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> bytes | None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.minimum_version = context.maximum_version = version
        with socket.create_connection(("127.0.0.1", self.port), 5) as plain, context.wrap_socket(plain) as wrapped:
            wrapped.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in wrapped.recv(4096)
            return wrapped.getpeercert(binary_form=True)


def test_a_bad_certificate_stops_the_start(tmp_path: Path) -> None:
    """With the file's name, and without a traceback."""
    done = run(
        "--data",
        str(tmp_path / "data"),
        "serve",
        "--bind",
        "127.0.0.1:0",
        "--issuer",
        "https://x.test",
        "--tls-cert",
        "/nonexistent",
    )
    assert done.returncode == 2
    assert "/nonexistent" in done.stderr and "Traceback" not in done.stderr


def test_sigterm_answers_what_was_let_in(tmp_path: Path) -> None:
    """A request that waits for the database when the server is told to end gets its token."""
    server = start(tmp_path / "data", "")
    pi = server.enroll()
    with server.connect() as connection, closing(sqlite3.connect(tmp_path / "data" / "fleet.sqlite3")) as other:
        other.execute("BEGIN IMMEDIATE")
        connection.sendall(post(pi.form()))
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        other.execute("ROLLBACK")
        assert [status for status, _ in answers(connection)] == [200]
    assert server.process.wait(10) == 0
    server.process.communicate()
