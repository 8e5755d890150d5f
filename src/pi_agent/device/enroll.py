"""How a board becomes known: discovery (RFC 8414), then registration (RFC 7591) with a proof that it holds its key.

The proof is a statement of the new key over a nonce of the server (``assertion.ENROLLMENT``). Registering again with
the same key answers the same client, so that a lost answer costs nothing.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pi_agent import assertion, oauth
from pi_agent.device.discovery import Metadata
from pi_agent.device.keys import KeyStore
from pi_agent.device.transport import Answer, Transport
from pi_agent.errors import ConfigError, TransportError
from pi_agent.oauth import JWT_BEARER

THUMBPRINT_URI = "urn:ietf:params:oauth:jwk-thumbprint:sha-256:"  # RFC 9278
NONCE_WANTED = "use_enrollment_nonce"


@dataclass(frozen=True, slots=True)
class Registration:
    """``status`` is ``pending`` until somebody approves the device, ``approved`` when that is done."""

    client_id: str
    status: str


def host_name() -> str:
    """What this machine calls itself, for boards that nobody gave a name; "" where it still has the image's."""
    name = socket.gethostname().partition(".")[0]
    return name if name.isprintable() and name not in ("", "localhost", "raspberrypi") else ""


def register(
    transport: Transport,
    metadata: Metadata,
    key: KeyStore,
    *,
    board: dict[str, Any],
    agent: dict[str, Any],
    name: str,
    enrollment_token: str,
    now: int,
) -> Registration:
    """Make the key known, or find that it is. ``now`` is the time that the proof carries, in seconds since 1970.

    Raises OAuthError when the server refuses, TransportError when it makes no sense.
    """
    public = key.public_key()

    def request(nonce: str | None) -> dict[str, Any]:
        claims = assertion.claims(
            issuer=THUMBPRINT_URI + public.kid,
            audience=metadata.issuer,
            now=now,
            jti=secrets.token_urlsafe(16),
            nonce=nonce,
            board=board,
            agent=agent,
        )
        return {
            "client_name": name,
            "grant_types": [JWT_BEARER],
            "token_endpoint_auth_method": "none",
            "jwks": {"keys": [public.jwk | {"alg": key.alg}]},
            "proof": assertion.sign(claims, kind=assertion.ENROLLMENT, alg=key.alg, kid=public.kid, sign=key.sign),
        }

    endpoint = metadata.registration_endpoint
    return _read_registration(*post_over_nonce(transport, endpoint, request, bearer=enrollment_token))


def post_over_nonce(
    transport: Transport, url: str, request: Callable[[str | None], dict[str, Any]], *, bearer: str = ""
) -> tuple[Answer, dict[str, Any]]:
    """The answer to ``request(nonce)`` and its members: the server gives its nonce with the refusal of one without."""
    answer = transport.post_json(url, request(None), bearer=bearer)
    members = answer.json_object()
    nonce = members.get("nonce")
    if answer.status == 400 and members.get("error") == NONCE_WANTED and isinstance(nonce, str):
        answer = transport.post_json(url, request(nonce), bearer=bearer)
        members = answer.json_object()
    return answer, members


def register_client(
    transport: Transport,
    metadata: Metadata,
    key: KeyStore,
    *,
    grant: str,
    client_auth: str,
    name: str,
    initial_access_token: str,
) -> Registration:
    """Make the key known at a server that is not ours (RFC 7591 section 3.1, with its initial access token).

    ``grant`` and ``client_auth`` as in the settings. Not idempotent: such a server makes another client each time.
    Raises ConfigError when the server registers nobody, OAuthError when it refuses, TransportError when it makes no sense.
    """
    if not metadata.registration_endpoint:
        raise ConfigError(
            f"{metadata.issuer} registers no clients", key="server.client_id", hint="pi-agent setup URL --client-id ID"
        )
    public = key.public_key()
    request: dict[str, Any] = {
        "grant_types": [JWT_BEARER if grant == "jwt-bearer" else grant],
        "response_types": [],
        "redirect_uris": [],
        "token_endpoint_auth_method": client_auth,
        "jwks": {"keys": [public.jwk | {"kid": public.kid, "alg": key.alg, "use": "sig"}]},
    }
    request |= {"client_name": name} if name else {}
    request |= {"token_endpoint_auth_signing_alg": key.alg} if client_auth == "private_key_jwt" else {}
    answer = transport.post_json(metadata.registration_endpoint, request, bearer=initial_access_token)
    members = answer.json_object()
    return _read_registration(
        answer,
        {name: members.get(name) for name in ("client_id", "error", "error_description")} | {"status": "approved"},
    )


def _read_registration(answer: Answer, members: dict[str, Any]) -> Registration:
    if answer.status not in (200, 201):
        raise oauth.refusal(answer.status, members, answer.retry_after)
    values = {"client_id": members.get("client_id"), "status": members.get("status", "approved")}
    for name, value in values.items():
        if not isinstance(value, str) or not (value.isascii() and value.isprintable() and 0 < len(value) <= 128):
            raise TransportError(f"the server's registration has no usable {name}", reason="answer")
    return Registration(**values)
