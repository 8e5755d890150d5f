"""Which assertions the token endpoint believes: requirements B-02 to B-14 and B-28, through the real application."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Collection
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import Algorithm

from fleet.conftest import approve
from fleet.support import FORM, ISSUER, Pi, Reply, ask
from pi_agent import assertion, jws
from pi_agent.fleet import clients, grants, ledger
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import UsedAssertion
from pi_agent.fleet.web import Answer, Request

anything_goes = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(reply: Reply) -> str:
    """The description of an invalid_grant; nothing may be spent by it."""
    assert (reply.status, reply.json["error"]) == (400, "invalid_grant"), reply.body
    return str(reply.json["error_description"])


def raw(pi: Pi, header: bytes, claims: bytes) -> str:
    """A compact JWS of bytes that are not what a JSON writer would write, well signed."""
    signing_input = f"{jws.b64url(header)}.{jws.b64url(claims)}".encode()
    return f"{signing_input.decode()}.{jws.b64url(jws.signer(pi.key, pi.alg)(signing_input))}"


def raw_claims(pi: Pi, text: str) -> str:
    return raw(pi, json.dumps(pi.header()).encode(), text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
def test_b03_es256_and_eddsa_are_believed(app: Application, key: Any) -> None:
    """Both algorithms of the allow list work from enrollment to token."""
    assert ask(app, approve(app, Pi(key=key)).form()).status == 200


@pytest.mark.parametrize(
    "alg", ["none", "HS256", "RS256", "PS256", "ES384", "ES256K", "es256", "EdDSA", "", None, 5, ["ES256"]]
)
def test_b03_no_other_alg_is_believed(app: Application, pi: Pi, alg: Any) -> None:
    """Whatever the header says, the key is one for ES256."""
    refused(ask(app, pi.form(pi.assertion(header={"alg": alg}))))


def test_b03_the_public_key_is_no_hmac_secret(app: Application, pi: Pi) -> None:
    """CVE-2022-29217: HS256 keyed with the public key, in any of its spellings."""
    public = pi.key.public_key()
    spellings = (
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(pi.public.jwk).encode(),
    )
    hs256 = jwt.PyJWS(algorithms=["HS256"]).get_algorithm_by_name("HS256")
    for secret in spellings:
        token = jws.serialize(pi.header(alg="HS256"), pi.claims(), sign=partial(_mac, hs256, secret))
        refused(ask(app, pi.form(token)))


def test_b04_a_key_in_the_header_is_not_read(app: Application, pi: Pi) -> None:
    """CVE-2026-27962: the key comes from the registry, whatever jwk, jku, x5u or x5c say."""
    thief = Pi(client_id=pi.client_id)
    for bait in (
        {"jwk": thief.public.jwk},
        {"jku": "http://127.0.0.1:9/jwks"},
        {"x5u": "http://127.0.0.1:9/"},
        {"x5c": ["AA=="]},
    ):
        refused(ask(app, pi.form(thief.assertion(header={"kid": pi.public.kid, **bait}))))
        refused(ask(app, pi.form(thief.assertion(header=bait))))


def _mac(algorithm: Algorithm, key: bytes, data: bytes) -> bytes:
    return algorithm.sign(data, key)


def test_requests_that_come_together_are_answered_each_by_its_own_key(
    app: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are looked up together: good ones, a forgery, a stranger, somebody else's kid, a request that is none."""
    good = [approve(app, Pi()) for _ in range(3)]
    stranger = Pi(client_id="pi-stranger")
    bodies = [each.form() for each in good]
    bodies += [good[0].form(Pi(client_id=good[0].client_id).assertion(header={"kid": good[0].public.kid}))]
    liar = Pi(key=good[1].key, client_id=good[0].client_id)
    bodies += [stranger.form(), liar.form(), b"grant_type=nothing"]
    requests = [Request("POST", body, FORM) for body in bodies]
    clients._remembered.clear()
    asked: list[set[str]] = []
    look_up = ledger.look_up_keys

    def count(names: Collection[str]) -> list[ledger.KeyRow]:
        asked.append(set(names))
        return look_up(names)

    monkeypatch.setattr(ledger, "look_up_keys", count)
    found = grants.read(requests, now=int(time.time()), authority=app.authority)
    believed = [each.verified.kid if isinstance(each, grants.Claim) else None for each in found]
    assert believed == [*(each.public.kid for each in good), None, None, None, None]
    assert asked == [{each.client_id for each in (*good, stranger)}]


def test_a_request_that_finds_a_bug_fails_alone(app: Application, pi: Pi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were read together with it are answered as ever."""
    open_ = grants._open

    def stumble(request: Request) -> Any:
        if b"stumble" in request.body:
            raise ZeroDivisionError
        return open_(request)

    monkeypatch.setattr(grants, "_open", stumble)
    requests = [Request("POST", body, FORM) for body in (pi.form(), b"stumble", pi.form())]
    first, second, third = app.clerk._read(requests)
    assert isinstance(first, grants.Claim) and isinstance(third, grants.Claim)
    assert isinstance(second, Answer) and second.status == 500


@pytest.mark.parametrize("kid", [None, "", "../../../etc/passwd", "' OR 1=1 --", 5, "x" * 43])
def test_b04_an_unknown_kid_is_refused(app: Application, pi: Pi, kid: Any) -> None:
    """The key is looked up by (iss, kid) exactly."""
    refused(ask(app, pi.form(pi.assertion(header={"kid": kid}))))


def test_b05_only_the_raw_signature_form_is_read(app: Application, pi: Pi) -> None:
    """CVE-2022-21449 and its kin: r = s = 0, r and s out of range, DER, other lengths."""
    signing_input = pi.assertion().rpartition(".")[0]
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    der = pi.key.sign(signing_input.encode(), ec.ECDSA(hashes.SHA256()))
    for signature in (bytes(64), order.to_bytes(32, "big") * 2, b"\xff" * 64, der, bytes(63), bytes(65), b"x"):
        refused(ask(app, pi.form(f"{signing_input}.{jws.b64url(signature)}")))


@pytest.mark.parametrize(
    "more", [{"crit": ["exp"]}, {"crit": []}, {"b64": False}, {"b64": False, "crit": ["b64"]}, {"zip": "DEF"}]
)
def test_b06_crit_b64_and_zip_are_refused(app: Application, pi: Pi, more: dict[str, Any]) -> None:
    """RFC 7515 section 4.1.11: what is not understood is refused."""
    refused(ask(app, pi.form(pi.assertion(header=more))))


@pytest.mark.parametrize(
    "typ", ["at+jwt", "pi-enrollment+jwt", "client-authentication+jwt", "jwt", "secevent+jwt", 5, [], ""]
)
def test_b07_another_typ_is_refused(app: Application, pi: Pi, typ: Any) -> None:
    """A statement made for something else buys no token (RFC 8725 section 3.11)."""
    refused(ask(app, pi.form(pi.assertion(header={"typ": typ}))))


@pytest.mark.parametrize("typ", ["JWT", None])
def test_b07_a_plain_jwt_is_read(app: Application, pi: Pi, typ: str | None) -> None:
    """Foreign clients write JWT, or nothing."""
    assert ask(app, pi.form(pi.assertion(header={"typ": typ}))).status == 200


@pytest.mark.parametrize(
    "change",
    [str.upper, lambda text: text + " ", lambda text: " " + text, lambda text: text[:-1], lambda text: text + "\0"],
)
@pytest.mark.parametrize("names", [("iss", "sub"), ("iss",), ("sub",)])
def test_b08_names_are_compared_byte_for_byte(app: Application, pi: Pi, names: tuple[str, ...], change: Any) -> None:
    """No folding, no trimming, no prefix (CVE-2024-53861), and sub is iss."""
    refused(ask(app, pi.form(pi.assertion(**{name: change(pi.client_id) for name in names}))))


@pytest.mark.parametrize("value", [None, "", 5, ["x"], {"x": 1}, True, "x" * 129, "\ud800", "naïve"])
@pytest.mark.parametrize("name", ["iss", "sub", "aud", "jti"])
def test_b08_texts_are_texts(app: Application, pi: Pi, name: str, value: Any) -> None:
    """Missing, empty, of another type, too long, or of other characters."""
    refused(ask(app, pi.form(pi.assertion(**{name: value}))))


@pytest.mark.parametrize(
    "audience",
    [ISSUER + "/", ISSUER.upper(), ISSUER + "/oauth/token", "https://fleet", [ISSUER, ISSUER], [ISSUER, "https://x"], []],
)  # fmt: skip
def test_b09_the_audience_is_this_server_alone(app: Application, pi: Pi, audience: Any) -> None:
    """RFC 10070: the issuer identifier, and nobody else beside it."""
    refused(ask(app, pi.form(pi.assertion(aud=audience))))


def test_b09_a_list_of_one_is_an_audience(app: Application, pi: Pi) -> None:
    """RFC 7519 section 4.1.3 allows either form."""
    assert ask(app, pi.form(pi.assertion(aud=[ISSUER]))).status == 200


@pytest.mark.parametrize("value", [None, "soon", "\u0661\u0667", True, [], {}, "1e3"])
@pytest.mark.parametrize("name", ["iat", "exp"])
def test_b10_times_are_numbers(app: Application, pi: Pi, name: str, value: Any) -> None:
    """exp and iat are required, and are JSON numbers."""
    refused(ask(app, pi.form(pi.assertion(**{name: value}))))


def test_b10_nbf_counts_when_it_is_there(app: Application, pi: Pi) -> None:
    """A number, and not in the future."""
    now = int(time.time())
    assert ask(app, pi.form(pi.assertion(nbf=now - 5))).status == 200
    refused(ask(app, pi.form(pi.assertion(nbf=now + 300))))
    refused(ask(app, pi.form(pi.assertion(nbf=str(now)))))


@pytest.mark.parametrize(
    ("iat", "exp"),
    [(-600, -61), (-61, -60), (0, 301), (0, 86400 * 3650), (0, 0), (0, -1), (61, 120), (-10**9, 60), (0, 10**15)],
)  # fmt: skip
def test_b11_an_assertion_lives_now_and_for_minutes(app: Application, pi: Pi, iat: int, exp: int) -> None:
    """Expired, not yet issued, living backwards, or longer than 300 s: 60 s of skew either way and no more."""
    now = int(time.time())
    refused(ask(app, pi.form(pi.assertion(iat=now + iat, exp=now + exp))))


@pytest.mark.parametrize(("iat", "exp"), [(-100, -40), (-300, -10), (40, 100), (0, 300), (0.5, 60.5)])
def test_b11_sixty_seconds_of_skew_are_forgiven(app: Application, pi: Pi, iat: float, exp: float) -> None:
    """A device whose clock is a little off gets its token."""
    now = int(time.time())
    assert ask(app, pi.form(pi.assertion(iat=now + iat, exp=now + exp))).status == 200


@pytest.mark.parametrize("jti", ["short", "x" * 129, "a" * 16 + " ", "a" * 16 + "\n", "a" * 20 + "'", "é" * 20])
def test_b12_a_jti_is_16_to_128_plain_characters(app: Application, pi: Pi, jti: str) -> None:
    """Anything else never reaches the replay table."""
    refused(ask(app, pi.form(pi.assertion(jti=jti))))


def test_b13_json_is_read_strictly(app: Application, pi: Pi) -> None:
    """Repeated members (also by escapes), NaN, Infinity, huge numbers, depth, BOM, UTF-16, surrogates, no object."""
    text = json.dumps(pi.claims())
    deep = "[" * 3000 + "]" * 3000
    for hostile in (
        text[:-1] + f', "aud": "{ISSUER}"}}', text[:-1] + f', "\\u0061ud": "{ISSUER}"}}', text[:-1] + ', "x": NaN}',
        text[:-1] + ', "x": Infinity}', text[:-1] + ', "x": 1e999}', text[:-1] + f', "x": {"9" * 5000}}}',
        text[:-1] + f', "x": {deep}}}', "\ufeff" + text, text[:-1] + ', "x": "\\ud800"}', "[]", "null", "5", '"x"', "", text[:-1],
    ):  # fmt: skip
        refused(ask(app, pi.form(raw_claims(pi, hostile))))
    refused(ask(app, pi.form(raw(pi, json.dumps(pi.header()).encode(), text.encode("utf-16")))))
    doubled = json.dumps(pi.header())[:-1] + ', "alg": "ES256"}'
    refused(ask(app, pi.form(raw(pi, doubled.encode(), text.encode()))))


def test_b14_base64url_is_canonical(app: Application, pi: Pi) -> None:
    """Padding, other alphabets, white space, and stray bits in the last character are refused."""
    good = pi.assertion()
    head, claims, signature = good.split(".")
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    stray = signature[:-1] + last[last.index(signature[-1]) ^ 1]
    for hostile in (
        good + "=", good + "==", f"{head}=.{claims}.{signature}", f"{head}.{claims}.{stray}", good + "\n", " " + good,
        f"{head}.{claims}", f"{head}.{claims}.", f"{good}.{signature}", f".{claims}.{signature}",
        base64.b64encode(b"\xfb\xff").decode() + good,
    ):  # fmt: skip
        refused(ask(app, pi.form(hostile)))
    assert ask(app, pi.form(good)).status == 200


def test_b02_json_serializations_are_no_compact_ones(app: Application, pi: Pi) -> None:
    """RFC 8725: one form is read, so that no second parser can see something else."""
    head, claims, signature = pi.assertion().split(".")
    refused(ask(app, pi.form(json.dumps({"protected": head, "payload": claims, "signature": signature}))))


def test_b28_an_unknown_device_looks_like_a_bad_signature(app: Application, pi: Pi) -> None:
    """Same status, same code, same words, for whoever does not hold the key."""
    thief = Pi(client_id=pi.client_id)
    stranger = Pi(client_id="pi-0000000000000000")
    wrong = [
        thief.assertion(header={"kid": pi.public.kid}), thief.assertion(), stranger.assertion(),
        stranger.assertion(header={"alg": "EdDSA"}), pi.assertion(header={"alg": "EdDSA"}),
        thief.assertion(header={"kid": pi.public.kid}, aud="https://elsewhere"), stranger.assertion(aud="https://elsewhere"),
        thief.assertion(header={"kid": pi.public.kid}, exp=1), stranger.assertion(exp=1),
    ]  # fmt: skip
    assert len({refused(ask(app, pi.form(token))) for token in wrong}) == 1


def test_b28_an_unknown_device_costs_a_verification(app: Application, pi: Pi, monkeypatch: pytest.MonkeyPatch) -> None:
    """One verification runs for every well-formed assertion, whoever it claims to come from."""
    verified: list[Any] = []
    real = assertion.verify

    def counted(*arguments: Any, **more: Any) -> Any:
        verified.append(arguments)
        return real(*arguments, **more)

    monkeypatch.setattr(assertion, "verify", counted)
    ask(app, pi.form(Pi(client_id="pi-0000000000000000").assertion()))
    ask(app, pi.form(Pi(client_id=pi.client_id).assertion(header={"kid": pi.public.kid})))
    assert len(verified) == 2


def test_b22_a_forgery_burns_nothing(app: Application, pi: Pi) -> None:
    """A jti is remembered only when signature, audience and times are good."""
    before = UsedAssertion.objects.count()
    jti = "the-jti-of-a-real-one"
    thief = Pi(client_id=pi.client_id)
    refused(ask(app, pi.form(thief.assertion(header={"kid": pi.public.kid}, jti=jti))))
    refused(ask(app, pi.form(pi.assertion(jti=jti, aud="https://elsewhere"))))
    refused(ask(app, pi.form(pi.assertion(jti=jti, exp=1))))
    assert UsedAssertion.objects.count() == before
    assert ask(app, pi.form(pi.assertion(jti=jti))).status == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
)


@anything_goes
@given(
    header=st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "x"]), json_values, max_size=4),
    claims=st.dictionaries(
        st.sampled_from(["iss", "sub", "aud", "iat", "exp", "nbf", "jti", "board", "boot", "agent"]), json_values, min_size=1, max_size=5
    ),
)  # fmt: skip
def test_b26_no_signed_statement_gives_a_5xx(
    app: Application, pi: Pi, header: dict[str, Any], claims: dict[str, Any]
) -> None:
    """A device that signs nonsense is told invalid_grant, or served when the nonsense did not matter."""
    reply = ask(app, pi.form(pi.sign(pi.header() | header, pi.claims() | claims)))
    assert reply.status == 200 or refused(reply)
