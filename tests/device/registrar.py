"""A scripted authorization server with the three roads that enrollment takes: metadata, registration, token."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from device.servers import Request, Server, reply, serving
from pi_agent import assertion, jwk, jws


@dataclass
class Registrar:
    """``metadata`` and ``registration`` replace parts of the usual answers; ``proofs`` holds every proof that verified."""

    server: Server
    now: int
    metadata: dict[str, Any] = field(default_factory=dict)
    registration: bytes | None = None
    nonce: str = ""
    status: str = "pending"
    proofs: list[assertion.VerifiedAssertion] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def issuer(self) -> str:
        return self.server.url

    def answer(self, request: Request) -> bytes:
        path = request.line.split(" ")[1]
        if path.startswith("/.well-known/oauth-authorization-server"):
            usual = {"issuer": self.issuer, "token_endpoint": self.issuer + "/oauth/token"}
            return reply(usual | {"registration_endpoint": self.issuer + "/oauth/register"} | self.metadata)
        if path == "/oauth/register":
            return self.registration or self._register(json.loads(request.body))
        return (
            reply({"error": "authorization_pending"}, status=400) if path == "/oauth/token" else reply({}, status=404)
        )

    def _register(self, members: dict[str, Any]) -> bytes:
        self.names += [members.get("client_name", "")] if "proof" in members else []
        (key,) = members["jwks"]["keys"]
        public = jwk.load_jwk(key)
        token = jws.parse(members["proof"])
        proof = assertion.verify(
            token, public, alg=key["alg"], kind=assertion.ENROLLMENT, audience=self.issuer, now=self.now
        )
        if self.nonce and proof.claims.get("nonce") != self.nonce:
            return reply({"error": "use_enrollment_nonce", "nonce": self.nonce}, status=400)
        self.proofs.append(proof)
        return reply({"client_id": "pi-" + public.kid[:12].lower().strip("-_"), "status": self.status}, status=201)


@contextlib.contextmanager
def registering(now: int) -> Iterator[Registrar]:
    made: list[Registrar] = []

    def script(channel: socket.socket, request: Request) -> None:
        channel.sendall(made[0].answer(request))

    with serving(script) as server:
        made.append(Registrar(server, now))
        yield made[0]
