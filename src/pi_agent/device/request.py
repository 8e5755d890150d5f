"""What goes into a token request at the server that the settings describe: grant and client authentication are two
independent choices (RFC 7521, RFC 7523, RFC 6749), and servers differ in the words around them.

Pure but for the random jti: time, key and settings come in, a form goes out. Every form is for one HTTP attempt.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pi_agent import assertion, jws, oauth
from pi_agent.device.keys import KeyStore


@dataclass(frozen=True, slots=True)
class Profile:
    """How a server wants to be asked. ``device_claims`` go into every assertion; ``secret`` is the client secret or ""."""

    issuer: str
    client_id: str
    token_endpoint: str
    grant: str = "jwt-bearer"
    client_auth: str = "none"
    client_id_parameter: bool = False
    subject: str = ""
    assertion_audience: str = "issuer"
    assertion_type: str = ""
    key_id: str = ""
    certificate_thumbprint: str = ""
    audience_parameter: str = "resource"
    scope_in: str = "form"
    lifetime: int = assertion.LIFETIME
    secret: str = field(default="", repr=False)
    device_claims: Mapping[str, Any] = field(default_factory=dict)


def token_form(
    profile: Profile, key: KeyStore, *, now: int, audience: str = "", scope: str = "", refresh_token: str = ""
) -> str:
    """The body of a token request; with a ``refresh_token`` that is used, else the profile's grant. ``now``: NumericDate."""
    fields: dict[str, str] = {"scope": scope if profile.scope_in == "form" else ""}
    if profile.audience_parameter != "none":
        fields[profile.audience_parameter] = audience
    if refresh_token:
        fields |= {"grant_type": oauth.REFRESH_TOKEN, "refresh_token": refresh_token}
    elif profile.grant == oauth.CLIENT_CREDENTIALS:
        fields["grant_type"] = oauth.CLIENT_CREDENTIALS
    else:
        more = {"scope": scope} if profile.scope_in == "assertion" and scope else {}
        grant = _sign(profile, key, assertion.GRANT, now, sub=profile.subject or profile.client_id, **more)
        fields |= {"grant_type": oauth.JWT_BEARER, "assertion": grant}
    return oauth.form(fields | client_fields(profile, key, now=now))


def revocation_form(profile: Profile, key: KeyStore, token: str, *, now: int) -> str:
    """The body of a revocation request (RFC 7009 section 2.1).

    No grant speaks for the client there, so one that has nothing but grants shows its key as a client does.
    """
    if profile.client_auth == "none":
        profile = replace(profile, client_auth="private_key_jwt")
    return oauth.form({"token": token} | client_fields(profile, key, now=now))


def client_fields(profile: Profile, key: KeyStore, *, now: int) -> dict[str, str]:
    """The parameters that say who the client is, and prove it where that is done by parameters."""
    fields = {"client_id": profile.client_id} if profile.client_id_parameter else {}
    if profile.client_auth == "private_key_jwt":
        signed = _sign(profile, key, assertion.CLIENT, now, sub=profile.client_id)
        fields |= {"client_assertion_type": oauth.CLIENT_ASSERTION_TYPE, "client_assertion": signed}
    elif profile.client_auth == "client_secret_post":
        fields |= {"client_id": profile.client_id, "client_secret": profile.secret}
    return fields


def authorization(profile: Profile) -> str:
    """The Authorization header for ``client_secret_basic``, else "" (requirement A-17)."""
    if profile.client_auth != "client_secret_basic":
        return ""
    return oauth.basic_credentials(profile.client_id, profile.secret)


def _sign(profile: Profile, key: KeyStore, kind: assertion.Kind, now: int, **more: Any) -> str:
    named = {"issuer": profile.issuer, "token_endpoint": profile.token_endpoint}
    members = assertion.claims(
        issuer=profile.client_id,
        audience=named.get(profile.assertion_audience, profile.assertion_audience),
        now=now,
        jti=secrets.token_urlsafe(16),
        lifetime=profile.lifetime,
        **{**profile.device_claims, **more, **({"nbf": now} if profile.assertion_type else {})},  # Entra asks for it
    )
    kid = profile.key_id or key.public_key().kid
    header = {"alg": key.alg, "kid": kid, "typ": profile.assertion_type or kind.types[0]}
    if profile.certificate_thumbprint:
        header["x5t#S256"] = profile.certificate_thumbprint  # RFC 7515 section 4.1.8
    return jws.serialize(header, members, sign=key.sign)
