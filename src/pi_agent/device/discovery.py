"""Where a server's endpoints are: RFC 8414 first, then OpenID Connect Discovery 1.0.

The server must call itself exactly what we call it (RFC 8414 section 3.3), or its metadata could lead our assertions to
another's endpoint. Endpoints in the settings win over it (requirement A-18).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pi_agent.device import clock
from pi_agent.device.transport import Transport
from pi_agent.device.urls import check_url
from pi_agent.errors import TransportError

OAUTH, OIDC = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class Metadata:
    """Endpoints that the server does not have are ""."""

    issuer: str
    token_endpoint: str
    registration_endpoint: str = ""
    revocation_endpoint: str = ""
    key_rotation_endpoint: str = ""


def metadata_urls(issuer: str, which: str = "both") -> list[str]:
    """Where the metadata of ``issuer`` may be: RFC 8414 puts its words before the issuer's path, OpenID Connect behind it."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    urls = {"oauth": f"{parts.scheme}://{parts.netloc}{OAUTH}{path}", "oidc": issuer.rstrip("/") + OIDC}
    return list(urls.values()) if which == "both" else [urls[which]]


def signing_time(transport: Transport, issuer: str) -> int:
    """The time for a command to sign with: the server's where it differs from ours. A server not heard yet is asked.

    Raises TransportError when neither clock can be right.
    """
    if transport.seen is None:
        transport.get_json(metadata_urls(issuer)[0])
    anchored = clock.anchor(*transport.seen) if transport.seen else None
    now = clock.signing_time(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), anchored)
    if now is None:
        raise TransportError("the clock is wrong, and the server told no time", reason="clock", hint="timedatectl")
    return now


def discover(transport: Transport, issuer: str, *, loopback_http: bool = False, which: str = "both") -> Metadata:
    """The server's endpoints. Raises TransportError when it is not the issuer it was addressed as, or has no metadata."""
    members: dict[str, Any] | None = None
    for url in metadata_urls(issuer, which):
        answer = transport.get_json(url)
        if answer.status == 200:
            members = answer.json_object()
            break
    if members is None:
        raise TransportError(
            f"the server at {issuer} has no metadata (it answered {answer.status})",
            reason="issuer",
            retry_after=answer.retry_after,
            hint="is that the issuer's exact address? else name server.token_endpoint",
        )
    if members.get("issuer") != issuer:
        named = members.get("issuer")
        raise TransportError(
            f"the server at {issuer} does not call itself that",
            reason="issuer",
            hint=f"its own name for itself is {named[:200]!r}" if isinstance(named, str) else None,
        )
    return _metadata(issuer, members, loopback_http=loopback_http)


def _metadata(issuer: str, members: dict[str, Any], *, loopback_http: bool) -> Metadata:
    endpoints: dict[str, str] = {}
    for name in ("token_endpoint", "registration_endpoint", "revocation_endpoint", "key_rotation_endpoint"):
        url = members.get(name, "")
        if not isinstance(url, str) or (name == "token_endpoint" and not url):
            raise TransportError(f"the server's metadata has no {name}", reason="issuer")
        if url:
            check_url(url, loopback_http=loopback_http, what=name)
        endpoints[name] = url
    return Metadata(issuer=issuer, **endpoints)
