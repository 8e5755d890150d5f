"""Client credentials with a key (RFC 7523 section 2.2, RFC 10070), RSA devices, resources and rules."""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any
from urllib.parse import urlencode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from fleet.conftest import approve
from fleet.support import BOARD, ISSUER, Pi, Reply, ask, claims_of, exchange, register
from pi_agent import jws
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import AccessRule, AuditEvent, Device, DeviceKey, DeviceTag, UsedAssertion
from pi_agent.oauth import CLIENT_ASSERTION_TYPE

RSA = rsa.generate_private_key(65537, 2048)
FORM = "application/x-www-form-urlencoded"


class RsaPi(Pi):
    """A device with an RSA key that is pinned to ``pinned``."""

    pinned = "RS256"

    @property
    def alg(self) -> str:
        return self.pinned

    def sign(self, header: Any, claims: Any) -> str:
        return jws.serialize(dict(header), dict(claims), sign=jws.signer(self.key, header["alg"]))


def client_form(pi: Pi, assertion: str | None = None, **more: str) -> bytes:
    signed = assertion or pi.assertion(header={"typ": "client-authentication+jwt"})
    fields = {
        "grant_type": "client_credentials",
        "client_assertion_type": CLIENT_ASSERTION_TYPE,
        "client_assertion": signed,
    }
    return urlencode(fields | more).encode()


def refused(reply: Reply, error: str, status: int = 401) -> None:
    assert (reply.status, reply.json.get("error")) == (status, error), reply.body


def test_a_device_authenticates_as_a_client(app: Application, pi: Pi) -> None:
    """Its client assertion buys a token, which is like the one that the other grant gives."""
    reply = ask(app, client_form(pi))
    assert reply.status == 200, reply.body
    assert claims_of(reply.json["access_token"])["sub"] == pi.client_id


@pytest.mark.parametrize("typ", ["client-authentication+jwt", "JWT", None])
def test_b07_a_client_assertion_has_its_own_type(app: Application, pi: Pi, typ: str | None) -> None:
    """RFC 10070: its own type, the general one, or none."""
    assert ask(app, client_form(pi, pi.assertion(header={"typ": typ}))).status == 200


def test_b07_a_grant_assertion_is_no_client_assertion(app: Application, pi: Pi) -> None:
    """And the other way round: neither type is taken for the other (RFC 8725 section 3.11)."""
    refused(ask(app, client_form(pi, pi.assertion())), "invalid_client")
    refused(ask(app, pi.form(pi.assertion(header={"typ": "client-authentication+jwt"}))), "invalid_grant", 400)


@pytest.mark.parametrize("aud", [f"{ISSUER}/oauth/token", f"{ISSUER}/", [ISSUER, "https://other.test"], ISSUER.upper()])
def test_b09_the_audience_is_the_issuer_alone(app: Application, pi: Pi, aud: Any) -> None:
    """RFC 10070 forbids the token endpoint and any second value."""
    refused(ask(app, client_form(pi, pi.assertion(header={"typ": "JWT"}, aud=aud))), "invalid_client")


def test_b31_spent_in_one_place_is_spent_in_all(app: Application, pi: Pi) -> None:
    """One assertion of the general type: a token by the first grant, nothing by the second, nothing at revocation."""
    signed = pi.assertion(header={"typ": "JWT"})
    assert ask(app, pi.form(signed)).status == 200
    refused(ask(app, client_form(pi, signed)), "invalid_client")
    body = client_form(pi, signed, token="x")
    refused(exchange(app, "POST", "/oauth/revoke", body, {"content-type": FORM}), "invalid_client")


@pytest.mark.parametrize(
    ("more", "without", "error", "status"),
    [
        ({}, "client_assertion", "invalid_client", 401),
        ({}, "client_assertion_type", "invalid_client", 401),
        ({"client_assertion_type": "urn:other"}, "", "invalid_request", 400),
        ({"client_secret": "hunter2"}, "", "invalid_client", 401),
        ({"assertion": "a.b.c"}, "", "invalid_request", 400),
        ({"client_id": "pi-0000000000000000"}, "", "invalid_client", 401),
        ({"scope": "admin"}, "", "invalid_scope", 400),
    ],
)
def test_a_client_assertion_stands_alone(
    app: Application, pi: Pi, more: dict[str, str], without: str, error: str, status: int
) -> None:
    """Anything missing, doubled or contradictory is refused, and burns nothing but a scope that was asked too wide."""
    fields = {
        "grant_type": "client_credentials",
        "client_assertion_type": CLIENT_ASSERTION_TYPE,
        "client_assertion": pi.assertion(header={"typ": "JWT"}),
    } | more
    fields.pop(without, None)
    refused(ask(app, urlencode(fields).encode()), error, status)
    assert UsedAssertion.objects.count() == 1 + (error == "invalid_scope")  # the enrollment proof is one


def test_b28_an_unknown_client_and_a_bad_signature_look_alike(app: Application, pi: Pi) -> None:
    """The same status, code and words, for each algorithm there is."""
    stranger = Pi(client_id="pi-0123456789abcdef")
    forged = Pi(key=ec.generate_private_key(ec.SECP256R1()), client_id=pi.client_id)
    signed = forged.sign(pi.header(typ="JWT"), pi.claims())
    bodies = {
        ask(app, client_form(p, a)).body
        for p, a in ((pi, signed), (stranger, stranger.assertion(header={"typ": "JWT"})))
    }
    assert len(bodies) == 1


@pytest.mark.parametrize("alg", ["RS256", "PS256"])
def test_rsa_devices_are_pinned_to_their_algorithm(app: Application, alg: str) -> None:
    """A key of 2048 bits enrolls for the algorithm that its JWK names, and the other one is a bad signature."""
    pi = RsaPi(key=RSA)
    pi.pinned = alg
    approve(app, pi)
    assert ask(app, pi.form()).status == 200
    other = {"RS256": "PS256", "PS256": "RS256"}[alg]
    refused(ask(app, pi.form(pi.assertion(header={"alg": other}))), "invalid_grant", 400)


def test_v01_a_public_key_is_no_hmac_secret(app: Application) -> None:
    """HS256 with the RSA public key as its secret is not even looked at."""
    pi = RsaPi(key=RSA)
    approve(app, pi)
    header, claims = pi.header(alg="HS256"), pi.claims()
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = jws.serialize(header, claims, sign=lambda data: hmac.digest(pem, data, hashlib.sha256))
    refused(ask(app, pi.form(forged)), "invalid_grant", 400)


def test_f02_small_rsa_keys_do_not_enroll(app: Application) -> None:
    """1024 bits are refused at registration."""
    pi = RsaPi(key=RSA)
    small = rsa.generate_private_key(65537, 1024).public_key().public_numbers()
    jwk = {"kty": "RSA", "n": jws.b64url(small.n.to_bytes(128, "big")), "e": "AQAB"}
    reply = register(app, pi, jwks={"keys": [jwk]})
    assert (reply.status, reply.json["error"]) == (400, "invalid_client_metadata")


def test_rsa_without_a_kid_is_found(app: Application) -> None:
    """oauthlib's client sends none; with one RSA key it is clear which one is meant. Other kinds must name it."""
    pi = RsaPi(key=RSA)
    approve(app, pi)
    assert ask(app, pi.form(pi.assertion(header={"kid": None}))).status == 200
    other = approve(app, Pi(key=ed25519.Ed25519PrivateKey.generate()))
    refused(ask(app, other.form(other.assertion(header={"kid": None}))), "invalid_grant", 400)


def test_rsa_without_a_kid_is_the_only_key_in_use(app: Application) -> None:
    """Of two it is not clear which one is meant, so neither is; once one of them is retired it is clear again."""
    old, new = RsaPi(key=RSA), RsaPi(key=rsa.generate_private_key(65537, 2048))
    approve(app, old)
    new.client_id = old.client_id
    jwk = json.dumps(new.public.jwk)
    DeviceKey.objects.create(device=Device.objects.get(), kid=new.public.kid, alg="RS256", jwk=jwk, created_at=0)

    def unnamed(pi: RsaPi) -> int:
        return ask(app, pi.form(pi.assertion(header={"kid": None}))).status

    assert [unnamed(old), unnamed(new), ask(app, new.form()).status] == [400, 400, 200]
    DeviceKey.objects.filter(kid=old.public.kid).update(retired_at=1)
    assert [unnamed(old), unnamed(new)] == [400, 200]


def test_a_basic_header_without_a_password_only_names_the_client(app: Application, pi: Pi) -> None:
    """requests-oauthlib sends it by itself. With a password, or another name, it is refused."""
    headers = {"authorization": "Basic " + base64.b64encode(f"{pi.client_id}:".encode()).decode()}
    assert ask(app, pi.form(), **headers).status == 200
    for text in (f"{pi.client_id}:secret", "pi-0000000000000000:", "x"):
        headers = {"authorization": "Basic " + base64.b64encode(text.encode()).decode()}
        refused(ask(app, pi.form(), **headers), "invalid_client")
    refused(ask(app, pi.form(), authorization="Bearer x"), "invalid_client")


# Resources and rules.


def rule(query: str, scopes: str, audience: str = "https://api.test") -> None:
    AccessRule.objects.create(audience=audience, query=query, scopes=scopes, created_at=0, created_by="test")


def test_c03_a_resource_is_given_by_a_rule(app: Application, pi: Pi) -> None:
    """No rule, no token for it; with one, its audience is in the token and its scopes are what may be asked."""
    refused(ask(app, pi.form(resource="https://api.test")), "invalid_target", 400)
    rule("model:2b", "read write")
    reply = ask(app, pi.form(resource="https://api.test"))
    claims = claims_of(reply.json["access_token"])
    assert (claims["aud"], claims["scope"]) == ("https://api.test", "read write")
    assert ask(app, pi.form(resource="https://api.test", scope="read")).json["scope"] == "read"
    refused(ask(app, pi.form(resource="https://api.test", scope="device")), "invalid_scope", 400)


def test_c03_rules_are_for_the_devices_of_their_query(app: Application, pi: Pi) -> None:
    """By tag, by model, by name; whoever is not meant gets invalid_target."""
    rule("tag:kitchen", "read")
    refused(ask(app, pi.form(resource="https://api.test")), "invalid_target", 400)
    DeviceTag.objects.create(device=Device.objects.get(client_id=pi.client_id), tag="kitchen", tag_key="kitchen")
    assert ask(app, pi.form(resource="https://api.test")).status == 200
    rule("model:5", "admin")
    approve(app, Pi(board=BOARD | {"serial": "5", "model": "5"}))  # whom it is for is there
    assert Device.objects.filter(model_key="5").exists()
    refused(ask(app, pi.form(resource="https://api.test", scope="admin")), "invalid_scope", 400)
    rule("tag:kitchen", "elsewhere", audience="https://other.test")
    refused(ask(app, pi.form(resource="https://api.test", scope="elsewhere")), "invalid_scope", 400)


def test_c03_a_rule_widens_the_own_audience(app: Application, pi: Pi) -> None:
    """Scopes at the fleet's own audience are those of the device and those of its rules."""
    rule("id:*", "telemetry", audience=ISSUER)
    assert ask(app, pi.form()).json["scope"] == "device telemetry"
    assert ask(app, pi.form(resource=ISSUER, scope="telemetry")).json["scope"] == "telemetry"


def test_c10_a_token_stays_below_4_kb(app: Application, pi: Pi) -> None:
    """Whatever rules add up to: with the longest names there can be it still fits, and what would not is refused."""
    audience = "https://" + "a" * 248
    Device.objects.update(**dict.fromkeys(("serial", "revision", "model", "soc", "pcb_revision"), "x" * 64))
    pi.board = None
    for number, letter in enumerate("abc"):
        rule("id:*", letter * 511, audience)
        reply = ask(app, pi.form(resource=audience))
        assert reply.status == 200 and len(reply.json["access_token"]) <= 4096, number
    rule("id:*", "d", audience)
    refused(ask(app, pi.form(resource=audience)), "invalid_scope", 400)
    assert ask(app, pi.form(resource=audience, scope="d")).status == 200


def test_a_rule_that_cannot_be_read_is_for_nobody(app: Application, pi: Pi) -> None:
    """It is as if it were not there."""
    rule("modle:2b", "read")
    refused(ask(app, pi.form(resource="https://api.test")), "invalid_target", 400)


def test_b19_another_board_is_refused_and_told(app: Application, pi: Pi) -> None:
    """The same by this grant as by the other: refused, and an audit line with both values."""
    board = dict(pi.board or {}, serial="00000000deadbeef")
    reply = ask(app, client_form(pi, pi.assertion(header={"typ": "JWT"}, board=board)))
    refused(reply, "invalid_client")
    assert AuditEvent.objects.filter(device=pi.client_id, detail__contains="deadbeef").exists()


def test_pyjwt_and_a_form_are_enough(app: Application, pi: Pi) -> None:
    """A client written with nothing but PyJWT, as in the documentation, gets a token that PyJWT verifies."""
    import time

    now = int(time.time())
    claims = {
        "iss": pi.client_id,
        "sub": pi.client_id,
        "aud": ISSUER,
        "iat": now,
        "exp": now + 60,
        "jti": secrets.token_urlsafe(16),
    }
    signed = jwt.encode(claims, pi.key, algorithm="ES256", headers={"kid": pi.public.kid})
    token = ask(app, pi.form(signed)).json["access_token"]
    key = jwt.PyJWK(exchange(app, "GET", "/oauth/jwks").json["keys"][0])
    assert jwt.decode(token, key, algorithms=["ES256"], audience=ISSUER)["client_id"] == pi.client_id
