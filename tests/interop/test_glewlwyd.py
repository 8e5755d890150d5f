"""Glewlwyd 2.7, as Debian ships it, gives a board its tokens: client_credentials with private_key_jwt."""

from __future__ import annotations

import contextlib
import http.cookiejar
import json
import shutil
import sqlite3
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from device.living import eventually
from device.servers import free_port
from interop.conftest import Board, has_token, listening
from pi_agent import client

SCHEMA = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
pytestmark = pytest.mark.skipif(
    not (shutil.which("glewlwyd") and SCHEMA.exists()), reason="glewlwyd is not installed: apt install glewlwyd"
)
PLUGIN = {
    "jwt-type": "ecdsa",
    "jwt-key-size": "256",
    "access-token-duration": 600,
    "refresh-token-duration": 3600,
    "code-duration": 60,
    "allow-non-oidc": True,
    "auth-type-client-enabled": True,
    "auth-type-code-enabled": False,
    "auth-type-token-enabled": False,
    "auth-type-id-token-enabled": False,
    "auth-type-password-enabled": False,
    "auth-type-refresh-enabled": False,
    "auth-type-none-enabled": False,
    "request-parameter-allow": True,
    "request-uri-allow-https-non-secure": False,
    "request-maximum-exp": 300,
    "client-jwks-parameter": "jwks",
    "client-pubkey-parameter": "pubkey",
    "client-jwks_uri-parameter": "jwks_uri",
    "introspection-revocation-allowed": True,
    "introspection-revocation-allow-target-client": True,
}


@contextlib.contextmanager
def glewlwyd(folder: Path, port: int) -> Iterator[None]:
    """Glewlwyd on a database of its own, listening on ``port``."""
    with contextlib.closing(sqlite3.connect(folder / "glewlwyd.db")) as database:
        database.executescript(SCHEMA.read_text())
    text = Path("/etc/glewlwyd/glewlwyd.conf").read_text().replace("port=4593", f"port={port}")
    text = text.replace("http://localhost:4593/", f"http://127.0.0.1:{port}")
    text = text.replace("/var/log/glewlwyd.log", str(folder / "glewlwyd.log"))
    text = text.replace(
        '@include "/etc/glewlwyd/glewlwyd-db.conf"',
        f'database = {{ type = "sqlite3"; path = "{folder}/glewlwyd.db"; }};',
    )
    text = text.replace('log_level="INFO"', 'log_level="DEBUG"')
    (folder / "glewlwyd.conf").write_text(text)
    with listening([str(shutil.which("glewlwyd")), "-c", str(folder / "glewlwyd.conf")], port):
        yield


class Admin:
    """The administrator's API, signed in."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}/api"
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        self.post("/auth/", {"username": "admin", "password": "password"})

    def post(self, path: str, members: dict[str, Any]) -> None:
        request = urllib.request.Request(
            self._base + path, json.dumps(members).encode(), {"Content-Type": "application/json"}
        )
        try:
            self._opener.open(request, timeout=10).close()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read()[:500]!r}") from None


def test_a_token_from_glewlwyd(board: Board, tmp_path: Path) -> None:
    """The preset is enough; a refresh is no replay; another key is refused."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}/api/oidc"
    jwks = board.set_up(issuer, preset="glewlwyd", endpoint=f"{issuer}/token", more='[token]\nscope = "telemetry"\n')
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with glewlwyd(tmp_path, port):
        admin = Admin(port)
        admin.post(
            "/scope/", {"name": "telemetry", "display_name": "telemetry", "password_required": False, "scheme": {}}
        )
        parameters = PLUGIN | {"iss": issuer, "key": private, "cert": public}
        admin.post("/mod/plugin/", {"module": "oidc", "name": "oidc", "display_name": "oidc", "parameters": parameters})
        admin.post(
            "/client/",
            {
                "client_id": "board-1",
                "name": "board-1",
                "enabled": True,
                "confidential": True,
                "authorization_type": ["client_credentials"],
                "token_endpoint_auth_method": ["private_key_jwt"],
                "scope": ["telemetry"],
                "jwks": json.loads(jwks),
            },
        )
        with board.running() as runtime:
            eventually(lambda: has_token(runtime), "a token")
            first = client.token(runtime=runtime)
            assert client.renew(runtime=runtime) != first
