"""A real counterpart for the fleet: a Pi with a key of its own, and one exchange with the ASGI application."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from pi_agent import jws
from pi_agent.jwk import PublicKey, public_key
from pi_agent.oauth import JWT_BEARER

ISSUER = "https://fleet.test"
FORM = "application/x-www-form-urlencoded"
ME = ("uid", os.geteuid())  # who may do everything, as a peer on the local socket
BOARD = {
    "serial": "00000000c0ffee01",
    "revision": "a01041",
    "model": "2B",
    "memory_mib": 1024,
    "soc": "BCM2836",
    "pcb_revision": "1.1",
}
THUMBPRINT_URI = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value


def exchange(
    app: Any,
    method: str,
    path: str,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    client: tuple[str, int] = ("192.0.2.1", 40000),
) -> Reply:
    """One request to an ASGI application, and its whole answer."""
    bare, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": bare,
        "raw_path": bare.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "scheme": "http",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        "client": client,
        "server": ("127.0.0.1", 8080),
    }
    return asyncio.run(_exchange(app, scope, body))


async def _exchange(app: Any, scope: dict[str, Any], body: bytes) -> Reply:
    sent: list[dict[str, Any]] = []
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    answered = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            answered.set()

    await app(scope, receive, send)
    headers: dict[str, str] = {}
    for name, value in sent[0]["headers"]:
        seen = [headers[name.decode().lower()]] if name.decode().lower() in headers else []
        headers[name.decode().lower()] = "\n".join([*seen, value.decode("latin-1")])  # a cookie a line
    return Reply(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


def rest(
    app: Any, method: str, path: str, members: Any = None, client: tuple[str, int] = ME, /, **headers: str
) -> Reply:
    """One request to the REST interface."""
    body = b"" if members is None else members if isinstance(members, bytes) else json.dumps(members).encode()
    kind = {"host": "localhost", "content-type": "application/json"}
    return exchange(app, method, f"/api/v1{path}", body, kind | headers, client)


@dataclass
class Pi:
    """A board with a key, which signs whatever a test wants signed."""

    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    board: dict[str, Any] | None = field(default_factory=lambda: dict(BOARD))
    issuer: str = ISSUER
    client_id: str = ""

    @property
    def alg(self) -> str:
        return "EdDSA" if isinstance(self.key, ed25519.Ed25519PrivateKey) else "ES256"

    @property
    def public(self) -> PublicKey:
        return public_key(self.key.public_key())

    def sign(self, header: Mapping[str, Any], claims: Mapping[str, Any]) -> str:
        return jws.serialize(dict(header), dict(claims), sign=jws.signer(self.key, self.alg))

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Claims of a grant assertion; a change to None takes the member out."""
        now = int(time.time())
        claims: dict[str, Any] = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": self.issuer,
            "iat": now,
            "exp": now + 60,
            "jti": secrets.token_urlsafe(16),
        }
        claims |= {"board": self.board} if self.board else {}
        return {name: value for name, value in (claims | changes).items() if value is not None}

    def header(self, **changes: Any) -> dict[str, Any]:
        header = {"alg": self.alg, "kid": self.public.kid, "typ": "pi-device-grant+jwt"} | changes
        return {name: value for name, value in header.items() if value is not None}

    def assertion(self, *, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        return self.sign(self.header(**(header or {})), self.claims(**changes))

    def form(self, assertion: str | None = None, **more: str) -> bytes:
        """The body of a token request."""
        fields = {"grant_type": JWT_BEARER, "assertion": assertion or self.assertion()} | more
        return urlencode(fields).encode()

    def proof(self, nonce: str | None, *, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
        subject = THUMBPRINT_URI + self.public.kid
        more = {"iss": subject, "sub": subject, "nonce": nonce} | changes
        members = {"typ": "pi-enrollment+jwt"} | dict(header or {})
        return self.sign(self.header(**members), self.claims(**more))

    def registration(self, nonce: str | None, **more: Any) -> dict[str, Any]:
        """The members of a registration request."""
        request = {
            "client_name": "kitchen",
            "jwks": {"keys": [self.public.jwk | {"alg": self.alg}]},
            "proof": self.proof(nonce),
        } | more
        return {name: value for name, value in request.items() if value is not None}


def register(app: Any, pi: Pi, *, token: str = "", **more: Any) -> Reply:
    """Register as a device does: ask, be given a nonce, and ask again."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    first = exchange(app, "POST", "/oauth/register", json.dumps(pi.registration(None)).encode(), headers)
    assert first.status == 400, first.body
    assert first.json["error"] == "use_enrollment_nonce"
    request = pi.registration(first.json["nonce"], **more)
    reply = exchange(app, "POST", "/oauth/register", json.dumps(request).encode(), headers)
    if reply.status in (200, 201):
        pi.client_id = reply.json["client_id"]
    return reply


def ask(app: Any, body: bytes, **headers: str) -> Reply:
    """One token request."""
    return exchange(app, "POST", "/oauth/token", body, {"content-type": FORM} | headers)


def claims_of(access_token: str) -> dict[str, Any]:
    """The claims of a JWT, unverified."""
    segment = access_token.split(".")[1]
    value = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
    assert isinstance(value, dict)
    return value
