"""A fleet server for the boards under test: ``pi-fleet serve`` on loopback, with TLS in front of it and a CA of its own."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

HOST = "host.test"
# A board without a clock of its own believes that it is the day its systemd was built.
NOT_BEFORE = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
NOT_AFTER = datetime.datetime(2037, 1, 1, tzinfo=datetime.UTC)
PATIENCE = 60.0


class Fleet:
    """``url`` is the issuer; ``ca`` the file that boards trust; ``command`` runs ``pi-fleet`` on its data."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.ca = home / "ca.pem"
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[Fleet]:
        make_certificates(self._home)
        front = socket.create_server(("127.0.0.1", 0))
        inner = free_port()
        self.url = f"https://{HOST}:{front.getsockname()[1]}"
        log = (self._home / "fleet.log").open("wb")
        command = [*self._program(), "serve", "--bind", f"127.0.0.1:{inner}", "--issuer", self.url, "--no-rate-limit"]
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        threading.Thread(target=terminate_tls, args=(front, self._home, inner), daemon=True).start()
        try:
            self._await(inner, server)
            yield self
        finally:
            server.terminate()
            server.wait(20)
            front.close()
            log.close()

    def command(self, *words: str) -> str:
        done = subprocess.run([*self._program(), *words], capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise AssertionError(f"pi-fleet {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def approve(self, client_id: str) -> None:
        self.command("approve", client_id, "--yes", "--reason", "boot test")

    def enrollment_token(self, uses: int) -> str:
        return str(json.loads(self.command("enrollment-token", "--uses", str(uses), "--json"))["token"])

    def _program(self) -> list[str]:
        return [str(Path(sys.executable).parent / "pi-fleet"), "--data", str(self._home / "fleet")]

    def _await(self, port: int, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the fleet server did not come up: " + (self._home / "fleet.log").read_text())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def make_certificates(home: Path) -> None:
    """``ca.pem``, and ``server.pem`` with its key in the same file."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "boot test CA")])
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, SHA256())
    )
    server = (
        _certificate(name, ca_name, key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, SHA256())
    )
    (home / "ca.pem").write_bytes(ca.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (home / "server.pem").write_bytes(server.public_bytes(Encoding.PEM) + private)


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    named = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    dated = named.not_valid_before(NOT_BEFORE).not_valid_after(NOT_AFTER)
    return dated.serial_number(x509.random_serial_number())


def terminate_tls(front: socket.socket, home: Path, inner: int) -> None:
    """Hand every connection on to the server behind, until ``front`` is closed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.pem")
    while True:
        try:
            outside, _ = front.accept()
        except OSError:
            return
        threading.Thread(target=_splice, args=(context, outside, inner), daemon=True).start()


def _splice(context: ssl.SSLContext, outside: socket.socket, inner: int) -> None:
    """One connection in both directions; whichever end goes takes the other with it."""
    try:
        outside.settimeout(60)
        with (
            context.wrap_socket(outside, server_side=True) as tls,
            socket.create_connection(("127.0.0.1", inner)) as behind,
        ):
            back = threading.Thread(target=_copy, args=(behind, tls), daemon=True)
            back.start()
            _copy(tls, behind)
            back.join(60)
    except OSError:
        return


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(16384):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
