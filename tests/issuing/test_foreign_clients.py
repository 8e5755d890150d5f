"""Clients that we did not write get a token: PyJWT with curl, oauthlib, requests-oauthlib, Authlib."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests_oauthlib
from authlib.integrations.requests_client import AssertionSession, OAuth2Session
from authlib.oauth2.base import OAuth2Error
from authlib.oauth2.rfc7523 import PrivateKeyJWT
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc.jwk import ECKey
from oauthlib.oauth2 import ServiceApplicationClient

from fleet.live import LiveFleet
from pi_agent.jwk import public_key
from pi_agent.oauth import JWT_BEARER


def added(server: LiveFleet, key: Any, folder: Path) -> str:
    """The id of a device that was added by its public key."""
    path = folder / "key.jwk"
    path.write_text(json.dumps(public_key(key.public_key()).jwk))
    done = server.cli("device", "add", "--jwk", str(path), "--approve")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pem(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_pyjwt_and_curl(server: LiveFleet, tmp_path: Path) -> None:
    """As in docs/resource-servers.md."""
    key = ec.generate_private_key(ec.SECP256R1())
    device, kid, now = added(server, key, tmp_path), public_key(key.public_key()).kid, int(time.time())
    claims = {"iss": device, "sub": device, "aud": server.issuer, "iat": now, "exp": now + 60}
    assertion = jwt.encode(claims | {"jti": secrets.token_urlsafe(16)}, key, algorithm="ES256", headers={"kid": kid})
    fields = ["-d", f"grant_type={JWT_BEARER}", "-d", f"assertion={assertion}"]
    done = subprocess.run(["curl", "-s", *fields, f"{server.issuer}/oauth/token"], capture_output=True, check=True)
    assert json.loads(done.stdout)["token_type"] == "Bearer"


def rsa_client(server: LiveFleet, folder: Path) -> Any:
    """oauthlib's client of a device with an RSA key: it signs RS256 and sends no kid."""
    key = rsa.generate_private_key(65537, 2048)
    device = added(server, key, folder)
    return ServiceApplicationClient(device, private_key=pem(key), subject=device, issuer=device, audience=server.issuer)


def soon() -> dict[str, Any]:
    """What its default of an hour without a jti is replaced with."""
    return {"expires_at": time.time() + 120, "issued_at": time.time(), "jwt_id": secrets.token_urlsafe(16)}


def test_oauthlib_with_an_rsa_key(server: LiveFleet, tmp_path: Path) -> None:
    """Its own parser takes the answer."""
    client = rsa_client(server, tmp_path)
    reply = server.ask(client.prepare_request_body(**soon()).encode())
    assert reply.status == 200, reply.body
    assert client.parse_request_body_response(reply.body.decode())["expires_in"] == 1800


def test_requests_oauthlib_with_its_empty_password(
    server: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sends ``Authorization: Basic`` with the client's name by itself."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    with requests_oauthlib.OAuth2Session(client=rsa_client(server, tmp_path)) as session:
        assert session.fetch_token(f"{server.issuer}/oauth/token", **soon())["access_token"]


def test_authlib_assertion_session(server: LiveFleet, tmp_path: Path) -> None:
    """Its second call with the same claims has the same jti, and is refused as the replay it is."""
    key = ec.generate_private_key(ec.SECP256R1())
    device, kid = added(server, key, tmp_path), public_key(key.public_key()).kid
    session = AssertionSession(
        token_endpoint=f"{server.issuer}/oauth/token",
        issuer=device,
        subject=device,
        audience=server.issuer,
        key=ECKey.import_key(pem(key)),
        header={"alg": "ES256", "kid": kid},
        expires_at=int(time.time()) + 200,
        claims={"board": {"model": "2B"}},
    )
    assert session.refresh_token()["token_type"] == "Bearer"
    with pytest.raises(OAuth2Error, match="used before"):
        session.refresh_token()


def test_authlib_private_key_jwt(server: LiveFleet, tmp_path: Path) -> None:
    """Client credentials, with the issuer as the audience of its assertion."""
    key = ec.generate_private_key(ec.SECP256R1())
    device, kid = added(server, key, tmp_path), public_key(key.public_key()).kid
    method = PrivateKeyJWT(
        server.issuer,
        claims={"exp": int(time.time()) + 200, "jti": secrets.token_urlsafe(16)},
        headers={"kid": kid},
        alg="ES256",
    )
    secret = ECKey.import_key(pem(key))
    session = OAuth2Session(device, secret, token_endpoint_auth_method="private_key_jwt")  # a name
    session.register_client_auth_method(method)
    token = session.fetch_token(f"{server.issuer}/oauth/token", grant_type="client_credentials")
    assert token["token_type"] == "Bearer"
