"""Servers on loopback that do exactly what a test says, byte by byte; and a certificate authority for an afternoon."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

TOKEN = "canary-access-token-4711"  # what the tests look for where it must not be
DATE = "Sat, 21 Nov 2026 12:00:00 GMT"
# What Python 3.13 wants to see in a CA's certificate (VERIFY_X509_STRICT).
FOR_SIGNING = (
    x509.BasicConstraints(ca=True, path_length=0),
    x509.KeyUsage(
        False, False, False, False, False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False
    ),
)


@dataclass
class Request:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode("ascii")).items()}


Script = Callable[[socket.socket, Request], None]


@dataclass
class Server:
    """Accepts on 127.0.0.1 and runs ``script`` for each request; ``requests`` and ``connections`` tell what came."""

    port: int
    scheme: str = "http"
    requests: list[Request] = field(default_factory=list)
    connections: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


def reply(body: Any = None, *, status: int = 200, media: str = "application/json", **headers: str) -> bytes:
    """The bytes of an answer; JSON unless ``body`` is bytes. ``Retry_After="5"`` becomes the header of that name."""
    content = body if isinstance(body, bytes) else json.dumps(token() if body is None else body).encode()
    fields = {"Content-Type": media, "Content-Length": str(len(content)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value)
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + content


def token(**more: Any) -> dict[str, Any]:
    return {"access_token": TOKEN, "token_type": "Bearer", "expires_in": 1800} | more


def says(*parts: bytes) -> Script:
    """A script that sends ``parts`` and closes."""

    def script(channel: socket.socket, _: Request) -> None:
        for part in parts:
            channel.sendall(part)

    return script


@contextlib.contextmanager
def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """A server for the time of the ``with`` block. What a script cannot send because the client has left is no error."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        server = Server(port=door.getsockname()[1], scheme="https" if tls else "http")
        open_channels: list[socket.socket] = []

        def serve(channel: socket.socket) -> None:
            with contextlib.suppress(OSError, ValueError):
                if tls:
                    channel = tls.wrap_socket(channel, server_side=True)
                    open_channels.append(channel)
                request = read_request(channel)
                server.requests.append(request)
                script(channel, request)
            with contextlib.suppress(OSError):
                channel.close()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    channel, _ = door.accept()
                    server.connections += 1
                    open_channels.append(channel)
                    threading.Thread(target=serve, args=(channel,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                door.shutdown(socket.SHUT_RDWR)
            for channel in open_channels:
                with contextlib.suppress(OSError):
                    channel.shutdown(socket.SHUT_RDWR)
                    channel.close()
            thread.join(2)


def read_request(channel: socket.socket) -> Request:
    """Raises ValueError when the client hangs up first."""
    received = b""
    while b"\r\n\r\n" not in received:
        if not (chunk := channel.recv(65536)):
            raise ValueError("no request")
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    line, *rows = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    while len(body) < int(headers.get("content-length", "0")):
        body += channel.recv(65536)
    return Request(line, headers, body)


class Authority:
    """A test CA: ``ca_file`` is its certificate, ``context`` a server's TLS context with a certificate it signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Afternoon CA")])
        certificate = self._sign(self._name, self._key.public_key(), *FOR_SIGNING, days=1)
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def context(self, *, name: str = "127.0.0.1", days: int = 1) -> ssl.SSLContext:
        """For an IP address or a host name; negative ``days`` make a certificate that has expired."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        certificate = self._sign(subject, key.public_key(), x509.SubjectAlternativeName([alternative]), days=days)
        pem = self._folder / f"{name}-{days}.pem"
        pem.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        return context

    def _sign(self, subject: x509.Name, key: Any, *extensions: x509.ExtensionType, days: int) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=extension in FOR_SIGNING)
        return builder.sign(self._key, hashes.SHA256())


def free_port() -> int:
    """A port that nobody has at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        return int(door.getsockname()[1])
