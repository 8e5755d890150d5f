"""What the server signs and publishes: requirements C-01, C-03, C-10, C-13, C-14, RS-10."""

from __future__ import annotations

import time

import pytest

from fleet.conftest import SETTINGS
from fleet.support import ISSUER, Pi, ask, claims_of, exchange
from pi_agent import jws
from pi_agent.errors import KeyFileError
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import SigningKey
from pi_agent.fleet.policy import Admitted
from pi_agent.fleet.tokens import Authority, access_token, load_authority
from pi_agent.jwk import PRIVATE_MEMBERS


def test_c01_the_token_follows_rfc_9068(app: Application, pi: Pi) -> None:
    """typ, kid and alg in the header; the claims of section 2.2; half an hour of life."""
    reply = ask(app, pi.form()).json
    token = jws.parse(reply["access_token"])
    key = exchange(app, "GET", "/oauth/jwks").json["keys"][0]
    assert token.header == {"typ": "at+jwt", "alg": "ES256", "kid": key["kid"]}
    claims = token.claims
    assert claims["iss"] == claims["aud"] == ISSUER
    assert claims["sub"] == claims["client_id"] == pi.client_id
    assert claims["exp"] - claims["iat"] == reply["expires_in"] == 1800
    assert abs(claims["iat"] - time.time()) < 60
    assert len(claims["jti"]) >= 22


def test_c01_every_token_has_a_jti_of_its_own(app: Application, pi: Pi) -> None:
    """Two tokens of one second differ."""
    tokens = [claims_of(ask(app, pi.form()).json["access_token"])["jti"] for _ in range(3)]
    assert len(set(tokens)) == 3


def test_c03_the_audience_is_not_copied_from_the_assertion(app: Application, pi: Pi) -> None:
    """An assertion's aud in its other form changes nothing in the token."""
    assert claims_of(ask(app, pi.form(pi.assertion(aud=[ISSUER]))).json["access_token"])["aud"] == ISSUER


def test_c10_the_token_is_small_and_b64token(app: Application, pi: Pi) -> None:
    """RFC 6750 section 2.1, at most 4 kB."""
    assert len(ask(app, pi.form()).json["access_token"]) < 4096


def test_c13_the_jwks_holds_public_signing_keys_only(app: Application) -> None:
    """No private member, no symmetric key, each kid once, and every one to verify signatures with."""
    reply = exchange(app, "GET", "/oauth/jwks")
    keys = reply.json["keys"]
    assert reply.headers["cache-control"] == "public, max-age=300"
    assert len({key["kid"] for key in keys}) == len(keys) > 0
    for key in keys:
        assert not PRIVATE_MEMBERS & key.keys()
        assert (key["kty"], key["use"], key["alg"]) == ("EC", "sig", "ES256")


HOSTILE = {
    "host": "evil.example",
    "x-forwarded-host": "evil.example",
    "x-forwarded-proto": "http",
    "forwarded": "host=evil.example",
}


def test_c14_metadata_is_what_the_settings_say(app: Application) -> None:
    """The exact issuer, endpoints below it, nothing weak, whatever a request says about hosts (RFC 8414 section 6)."""
    path = "/.well-known/oauth-authorization-server"
    plain, hostile = exchange(app, "GET", path), exchange(app, "GET", path, headers=HOSTILE)
    assert plain.body == hostile.body
    members = plain.json
    assert members["issuer"] == ISSUER
    for name in ("token_endpoint", "registration_endpoint", "jwks_uri"):
        assert members[name].startswith(ISSUER + "/oauth/")
    assert b"none" not in plain.body.replace(b'"token_endpoint_auth_methods_supported":["none",', b"")
    assert b"HS" not in plain.body


@pytest.mark.parametrize("path", ["/oauth/jwks", "/.well-known/oauth-authorization-server", "/healthz"])
def test_what_is_published_can_be_read_only(app: Application, path: str) -> None:
    """GET and HEAD; 405 for the rest."""
    body = exchange(app, "GET", path)
    head = exchange(app, "HEAD", path)
    assert (body.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-length"] == str(len(body.body))
    for method in ("POST", "PUT", "DELETE"):
        reply = exchange(app, method, path)
        assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["/oauth/token/", "/oauth//token", "/OAUTH/TOKEN", "/oauth/token;x", "/oauth/../oauth/token"]
)
def test_a_path_is_served_as_it_is_written(app: Application, pi: Pi, path: str) -> None:
    """No other spelling of a path leads to the token endpoint."""
    reply = exchange(
        app, "POST", path, pi.form(), {"content-type": "application/x-www-form-urlencoded", "host": "localhost"}
    )
    assert reply.status in (403, 404)


def test_the_signing_key_is_made_once(app: Application, authority: Authority) -> None:
    """A restart signs with the same key."""
    now = int(time.time())
    both = (authority, load_authority(SETTINGS, now=now))
    admitted = Admitted(ISSUER, "device", None)
    texts = [access_token(each, client_id="pi-1", admitted=admitted, now=now) for each in both]
    assert len({jws.parse(text).header["kid"] for text in texts}) == 1


def test_rs10_a_damaged_signing_key_stops_the_start(app: Application) -> None:
    """No other key takes its place by itself (requirement RS-10)."""
    rows = list(SigningKey.objects.all())  # the present one, and the next where it is published already
    SigningKey.objects.update(private_key=rows[0].private_key.replace("A", "B", 3))
    try:
        with pytest.raises(KeyFileError, match="damaged"):
            load_authority(SETTINGS, now=int(time.time()))
    finally:
        SigningKey.objects.bulk_update(rows, ["private_key"])


def test_no_secret_shows_in_a_repr(authority: Authority) -> None:
    """The authority may end up in a traceback."""
    text = repr(authority)
    assert "PRIVATE" not in text and "nonce_secret" not in text
