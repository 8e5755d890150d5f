"""oidc-agent (indigo-dc) with one account at a provider on loopback, for the comparison in ``agent.py``."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import json
import os
import re
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ACCOUNT, SECRET = "bench", "nothing-to-hide"
REQUEST = json.dumps({"request": "access_token", "account": ACCOUNT, "min_valid_period": 60}).encode()


class Provider(BaseHTTPRequestHandler):
    """Discovery and a token endpoint; every grant is good."""

    def do_GET(self) -> None:
        issuer = f"https://{self.headers['Host']}/"
        names = ("authorization", "token", "registration", "revocation", "device_authorization", "userinfo")
        metadata: dict[str, object] = {f"{name}_endpoint": issuer + name for name in names}
        metadata |= {"issuer": issuer, "jwks_uri": issuer + "jwks", "scopes_supported": ["openid", "offline_access"]}
        metadata |= {"grant_types_supported": ["refresh_token"], "response_types_supported": ["code"]}
        self._answer(metadata)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"access_token": "t" * 768, "token_type": "Bearer", "expires_in": 3600, "refresh_token": "rt"})

    def _answer(self, members: dict[str, object]) -> None:
        body = json.dumps(members).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def running(home: Path) -> Iterator[tuple[list[int], str, bytes] | None]:
    """Its process ids, its socket, and a request for a token; None when it could not be set up."""
    home.mkdir()
    (home / ".config" / "oidc-agent").mkdir(parents=True)
    with provider(home) as (issuer, ca_file):
        started = subprocess.run(["oidc-agent"], capture_output=True, text=True, check=False, env=variables(home))
        found = re.search(r"OIDC_SOCK=([^;]+);.*?OIDCD_PID=(\d+)", started.stdout, re.DOTALL)
        if not found:
            print(f"oidc-agent does not start: {started.stderr.strip()[:200]}")
            yield None
            return
        path, pid = found[1], int(found[2])
        try:
            yield (processes(home), path, REQUEST) if account(home, path, issuer, ca_file) else None
        finally:
            os.kill(pid, 15)


def account(home: Path, path: str, issuer: str, ca_file: Path) -> bool:
    command = ["oidc-gen", ACCOUNT, "--iss", issuer, "--client-id", "bench", "--client-secret", "x", "--rt", "rt"]
    command += ["--flow", "refresh", "--cp", str(ca_file), "--pw-env", "--confirm-default", "--prompt", "none", "-m"]
    command += ["--scope", "openid"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env=variables(home) | {"OIDC_SOCK": path}
    )
    if done.returncode:
        print(f"oidc-gen: {(done.stdout + done.stderr).strip()[-300:]}")
    return done.returncode == 0


def variables(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"], "OIDC_ENCRYPTION_PW": SECRET, "TMPDIR": str(home)}


def processes(home: Path) -> list[int]:
    """It is two processes, of which one keeps the secrets: whatever runs under its home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"HOME={home}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


@contextlib.contextmanager
def provider(home: Path) -> Iterator[tuple[str, Path]]:
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (home / "ca.pem").write_bytes(pem)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (home / "server.pem").write_bytes(pem + private)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home / "server.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}/", home / "ca.pem"
    finally:
        server.shutdown()
        server.server_close()
