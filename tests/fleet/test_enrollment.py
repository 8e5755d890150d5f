"""Enrollment: requirements F-01 to F-03, F-09, D-04, D-07, D-10, D-11, and the form of RFC 7591's answers."""

from __future__ import annotations

import hashlib
import json
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.support import BOARD, Pi, Reply, ask, exchange, register
from pi_agent import jws
from pi_agent.fleet import enrollment
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.limits import Limit, Limits
from pi_agent.fleet.models import AuditEvent, Device, DeviceKey, EnrollmentToken
from pi_agent.fleet.tokens import Authority
from pi_agent.jwk import public_key
from pi_agent.oauth import JWT_BEARER

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
anything_goes = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def post(app: Application, members: Any, token: str = "", kind: str = "application/json") -> Reply:
    """One registration request as it stands."""
    headers = {"content-type": kind} | ({"authorization": token} if token else {})
    return exchange(app, "POST", "/oauth/register", json.dumps(members).encode(), headers)


def nonce_of(app: Application) -> str:
    return str(post(app, Pi().registration(None)).json["nonce"])


def token_for(uses: int = 1, serial: str | None = None, expires_in: int = 600) -> str:
    """An enrollment token, as the registry keeps it."""
    now = int(time.time())
    EnrollmentToken.objects.create(
        token_hash=hashlib.sha256(b"the-token").hexdigest(),
        uses_left=uses,
        serial=serial,
        created_at=now,
        created_by="test",
        expires_at=now + expires_in,
    )
    return "the-token"


def refused(reply: Reply, error: str = "invalid_client_metadata", status: int = 400) -> None:
    assert (reply.status, reply.json["error"]) == (status, error), reply.body
    assert reply.json["error_description"]
    assert reply.headers["cache-control"] == "no-store"
    assert not Device.objects.exists()


def test_the_answer_describes_the_device(app: Application) -> None:
    """RFC 7591 section 3.2.1: what was registered, under an id that the server chose, and where it stands."""
    pi = Pi()
    reply = register(app, pi, client_id="pi-i-want-this-one", software_version="3")
    answer = reply.json
    assert reply.status == 201
    assert answer["client_id"].startswith("pi-") and len(answer["client_id"]) == 19
    assert answer["client_id"] != "pi-i-want-this-one"
    assert abs(answer.pop("client_id_issued_at") - time.time()) < 60
    assert answer == {
        "client_id": pi.client_id,
        "client_name": "kitchen",
        "grant_types": [JWT_BEARER],
        "token_endpoint_auth_method": "none",
        "jwks": {"keys": [pi.public.jwk | {"kid": pi.public.kid, "alg": "ES256"}]},
        "status": "pending",
        "scope": "device",
    }


def test_the_registry_knows_the_board(app: Application) -> None:
    """Board, maker, agent and key protection as they were proved, in the forms that queries compare."""
    agent = {"version": "0.1.0", "key": "tpm", "simulated": True}
    pi = Pi(board=BOARD | {"serial": "00000000C0FFEE01"})
    register(app, pi, proof=pi.proof(nonce_of(app), agent=agent))
    device = Device.objects.get()
    assert (device.serial, device.model, device.model_key, device.memory_mib) == ("00000000c0ffee01", "2B", "2b", 1024)
    assert (device.maker, device.agent_version, device.key_protection, device.simulated) == (
        "Sony UK",
        "0.1.0",
        "tpm",
        True,
    )
    assert (device.name, device.status, device.auth_at) == ("kitchen", "pending", None)


def test_a_device_may_come_without_name_and_board(app: Application) -> None:
    """A foreign client goes by its id."""
    pi = Pi(board=None)
    assert register(app, pi, client_name=None).json["client_name"] == pi.client_id


def test_f01_the_proof_needs_our_nonce_and_a_fresh_one(app: Application, authority: Authority) -> None:
    """Without a nonce, with a foreign, a cut or an old one: use_enrollment_nonce, with a new one to use."""
    pi, now = Pi(), int(time.time())
    old = enrollment.make_nonce(authority.nonce_secret, now - enrollment.NONCE_LIFETIME)
    foreign = enrollment.make_nonce(b"x" * 32, now)
    good = enrollment.make_nonce(authority.nonce_secret, now)
    later = enrollment.make_nonce(authority.nonce_secret, now + 3600)
    for nonce in (None, "", "AAAA", "é", 5, ["x"], old, foreign, good[:-4], good + "AAAA", good[1:], later):
        reply = post(app, pi.registration(None, proof=pi.proof(nonce)))  # type: ignore[arg-type]  # hostile types, too
        refused(reply, "use_enrollment_nonce")
        enrollment.check_nonce(authority.nonce_secret, reply.json["nonce"], int(time.time()))
    assert post(app, pi.registration(None, proof=None)).json["error"] == "use_enrollment_nonce"
    assert post(app, pi.registration(good)).status == 201


def test_f01_a_proof_is_good_once(app: Application) -> None:
    """A recorded proof enrolls nobody a second time, and says so."""
    pi = Pi()
    request = pi.registration(nonce_of(app))
    assert post(app, request).status == 201
    reply = post(app, request)
    assert reply.status == 400 and "used before" in reply.json["error_description"]


@pytest.mark.parametrize(
    "changes",
    [
        {"header": {"kid": None}}, {"header": {"kid": "x"}}, {"header": {"typ": "JWT"}}, {"header": {"typ": None}},
        {"header": {"typ": "pi-device-grant+jwt"}}, {"header": {"alg": "EdDSA"}}, {"iss": "pi-x"}, {"sub": "pi-x"},
        {"iss": "pi-x", "sub": "pi-x"}, {"aud": "https://elsewhere"}, {"exp": 1}, {"iat": None}, {"jti": None}, {"jti": "short"},
        {"board": "2B"}, {"board": {"colour": "red"}}, {"board": {"memory_mib": "1024"}}, {"board": {"serial": "x" * 65}},
        {"board": {"serial": "\x1b[31m"}}, {"agent": {"key": "magic"}}, {"agent": {"version": "x" * 65}},
    ],
)  # fmt: skip
def test_f01_the_proof_is_checked_in_full(app: Application, changes: dict[str, Any]) -> None:
    """Names, kind, audience, times, board and agent: each has to be right."""
    pi = Pi()
    refused(post(app, pi.registration(None, proof=pi.proof(nonce_of(app), **changes))))


def test_f01_the_proof_is_signed_by_the_key_in_the_request(app: Application) -> None:
    """A thief cannot enroll somebody else's public key, nor have a key signed for by another."""
    pi, thief = Pi(), Pi()
    nonce = nonce_of(app)
    refused(post(app, pi.registration(None, proof=thief.proof(nonce))))
    forged = thief.sign(thief.header(typ="pi-enrollment+jwt", kid=pi.public.kid), jws.parse(pi.proof(nonce)).claims)
    refused(post(app, pi.registration(None, proof=forged)))


def ec_jwk(**changes: Any) -> dict[str, Any]:
    return public_key(ec.generate_private_key(ec.SECP256R1()).public_key()).jwk | changes


PUBLISHED = {  # RFC 7515 appendix A.3: its private half is printed there
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}


@pytest.mark.parametrize(
    "jwks",
    [
        None, [], {}, {"keys": []}, {"keys": {}}, {"keys": ["x"]}, {"keys": [ec_jwk(), ec_jwk()]}, {"keys": [ec_jwk(d="AAAA")]},
        {"keys": [ec_jwk(crv="secp256k1")]}, {"keys": [ec_jwk(x="AAAA")]}, {"keys": [ec_jwk(use="enc")]},
        {"keys": [ec_jwk(alg="HS256")]}, {"keys": [{"kty": "oct", "k": "AAAA"}]}, {"keys": [PUBLISHED]},
        {"keys": [public_key(RSA.public_key()).jwk]}, {"keys": [ec_jwk(y=ec_jwk()["y"])]},
    ],
)  # fmt: skip
def test_f02_only_one_good_public_key_is_taken(app: Application, jwks: Any) -> None:
    """P-256 or Ed25519, on its curve, without private members, and not one from a book."""
    refused(post(app, Pi().registration(nonce_of(app), jwks=jwks)))


def test_f02_a_key_enrolls_once(app: Application) -> None:
    """The same key again is the same device: 200 instead of 201, so that a lost answer costs nothing."""
    pi = Pi()
    first, second = register(app, pi), register(app, pi, client_name="another name")
    assert (first.status, second.status) == (201, 200)
    assert first.json == second.json
    assert (Device.objects.count(), DeviceKey.objects.count()) == (1, 1)


@dataclass
class RsaPi(Pi):
    """A board whose key is good for two algorithms."""

    key: Any = field(default_factory=lambda: RSA)
    alg: str = "RS256"


def test_b02_a_key_stays_with_the_algorithm_it_enrolled_with(app: Application) -> None:
    """The same RSA key that comes back for PS256 is refused, and goes on with RS256."""
    pi = RsaPi()
    assert register(app, pi).status == 201
    pi.alg = "PS256"
    assert "enrolled for RS256" in register(app, pi).json["error_description"]
    assert register(app, RsaPi()).status == 200


def test_b29_registrations_of_an_address_are_limited(app: Application, authority: Authority) -> None:
    """429 with Retry-After for a proof that would have to be checked, and nobody is enrolled."""
    limits = Limits(requests=Limit(100, 1000), registrations=Limit(rate=0.01, burst=1), device=Limit(1, 10))
    narrow = Application(replace(authority, limits=limits))
    try:
        assert register(narrow, Pi()).status == 201
        reply = register(narrow, Pi())
        assert (reply.status, reply.json["error"], int(reply.headers["retry-after"]) > 0) == (429, "slow_down", True)
        assert Device.objects.count() == 1
        assert nonce_of(narrow), "a question for a nonce costs nothing, so it is not counted"
    finally:
        narrow.close()


def test_f02_a_retired_key_does_not_come_back(app: Application) -> None:
    """What was retired stays so."""
    pi = Pi()
    register(app, pi)
    DeviceKey.objects.update(retired_at=1)
    assert "retired" in register(app, pi).json["error_description"]


def test_f03_an_enrollment_token_approves(app: Application) -> None:
    """Approved at once, the use counted, and the audit log says by what."""
    pi = Pi()
    assert register(app, pi, token=token_for()).json["status"] == "approved"
    assert ask(app, pi.form()).status == 200
    assert EnrollmentToken.objects.get().uses_left == 0
    assert json.loads(AuditEvent.objects.get(action="device.enrolled").detail)["by"] == "enrollment token"


def test_f03_a_lost_answer_does_not_need_a_second_use(app: Application) -> None:
    """The token is used up, and the device that used it asks again: 200, approved."""
    pi, token = Pi(), token_for()
    assert register(app, pi, token=token).status == 201
    again = register(app, pi, token=token)
    assert (again.status, again.json["status"]) == (200, "approved")


def test_f03_a_waiting_device_can_bring_a_token_later(app: Application) -> None:
    """The same key with a token is approved; without a good one it is told so and stays."""
    pi = Pi()
    register(app, pi)
    assert register(app, pi, token="wrong").status == 401
    reply = register(app, pi, token=token_for())
    assert (reply.status, reply.json["status"]) == (200, "approved")


@pytest.mark.parametrize("limits", [{"uses": 0}, {"expires_in": 0}, {"serial": "00000000deadbeef"}])
def test_f03_a_token_that_is_not_good_enrolls_nothing(app: Application, limits: dict[str, Any]) -> None:
    """Used up, expired, for another board: 401, and no trace of the device."""
    reply = register(app, Pi(), token=token_for(**limits))
    refused(reply, "invalid_token", 401)
    assert "invalid_token" in reply.headers["www-authenticate"]


@pytest.mark.parametrize("header", ["Bearer wrong", "Basic dGhlLXRva2Vu", "Bearer", "Bearer  ", "the-token"])
def test_f03_an_authorization_that_is_no_token_enrolls_nothing(app: Application, header: str) -> None:
    """A header that does not authorise is not ignored."""
    token_for()
    refused(post(app, Pi().registration(nonce_of(app)), token=header), "invalid_token", 401)


def test_f03_a_token_may_be_for_one_board(app: Application) -> None:
    """And then it is good for that board."""
    assert register(app, Pi(), token=token_for(serial=BOARD["serial"])).json["status"] == "approved"  # type: ignore[arg-type]


def test_f03_of_fifty_devices_one_gets_the_last_use(app: Application) -> None:
    """Fifty at once with a token for one: one enrolls, the others get 401 and leave nothing (SPIRE 1.14.6)."""
    token = token_for()
    devices = [Pi(board=None) for _ in range(50)]

    def enroll(pi: Pi) -> int:
        while (reply := register(app, pi, token=token)).status == 503:
            """The lock was not to be had in the 0.2 s of these tests: a device asks again."""
        return reply.status

    with ThreadPoolExecutor(16) as pool:
        answers = Counter(pool.map(enroll, devices))
    assert answers == {201: 1, 401: 49}
    assert Device.objects.count() == 1


def test_d04_the_token_is_kept_as_its_hash(app: Application) -> None:
    """The database does not know the token."""
    token = token_for()
    assert token not in str(EnrollmentToken.objects.values_list())


def test_f09_the_same_serial_with_another_key_waits(app: Application) -> None:
    """A second key for a serial is a new card or a copy: an operator decides, and is told why, token or not."""
    first, second = Pi(), Pi()
    register(app, first, token=token_for(uses=2))
    assert register(app, second, token="the-token").json["status"] == "pending"
    device = Device.objects.get(client_id=second.client_id)
    assert device.flag == f"serial 00000000c0ffee01 is also enrolled as {first.client_id}"
    assert AuditEvent.objects.get(action="device.same-serial").device == second.client_id
    assert register(app, second, token="the-token").json["status"] == "pending"
    assert EnrollmentToken.objects.get().uses_left == 1, "a token that approves nobody is not used up"


def test_f09_the_serial_of_a_revoked_device_is_free(app: Application) -> None:
    """A board whose old identity was revoked may come back with a new key and a token."""
    register(app, Pi())
    Device.objects.update(status="revoked")
    assert register(app, Pi(), token=token_for()).json["status"] == "approved"


@pytest.mark.parametrize(
    "changes",
    [
        {"software_statement": "a.b.c"}, {"grant_types": ["authorization_code"]}, {"grant_types": JWT_BEARER}, {"grant_types": 5},
        {"token_endpoint_auth_method": "client_secret_basic"}, {"client_name": "x" * 65}, {"client_name": 5},
        {"client_name": "a\x1b]0;x"}, {"client_name": "a\u202eb"}, {"client_name": "a\nb"}, {"proof": 5}, {"proof": "a.b.c"},
    ],
)  # fmt: skip
def test_d11_only_what_policy_allows_is_registered(app: Application, changes: dict[str, Any]) -> None:
    """Other grants, other authentication, statements of third parties and unprintable names are refused."""
    error = "unapproved_software_statement" if "software_statement" in changes else "invalid_client_metadata"
    refused(post(app, Pi().registration(nonce_of(app), **changes)), error)


def test_d10_no_url_in_a_request_is_fetched(app: Application) -> None:
    """A listener that is named as jwks_uri, logo_uri and the like sees no connection (RFC 7591 section 5)."""
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/"
        names = (
            "jwks_uri",
            "logo_uri",
            "client_uri",
            "policy_uri",
            "tos_uri",
            "sector_identifier_uri",
            "redirect_uris",
        )
        assert register(app, Pi(), **dict.fromkeys(names, url)).status == 201
        with pytest.raises(BlockingIOError):
            bait.accept()


def test_too_many_waiting_devices_are_sent_away(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue for approval is bounded; a token gets past it."""
    monkeypatch.setattr(enrollment, "MAX_PENDING", 1)
    assert register(app, Pi(board=None)).status == 201
    assert register(app, Pi(board=None)).status == 503
    assert register(app, Pi(board=None), token=token_for()).status == 201


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_only_a_json_post_registers(app: Application, method: str) -> None:
    """Other methods get 405, other content types and larger bodies 400."""
    assert exchange(app, method, "/oauth/register").status == 405
    refused(post(app, Pi().registration(nonce_of(app)), kind="text/plain"), "invalid_request")
    refused(post(app, Pi().registration(nonce_of(app), padding="x" * 17000)))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()])
def test_both_kinds_of_key_enroll(app: Application, key: Any) -> None:
    """P-256 and Ed25519."""
    assert register(app, Pi(key=key)).status == 201


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)
NAMES = ("client_name", "grant_types", "token_endpoint_auth_method", "jwks", "proof", "software_statement", "x")


@anything_goes
@given(st.dictionaries(st.sampled_from(NAMES), json_values, min_size=1, max_size=3))
def test_b26_no_registration_gives_a_5xx(app: Application, changes: dict[str, Any]) -> None:
    """Whatever members are sent beside a good proof, the answer is a registration or a refusal."""
    assert register(app, Pi(board=None), **changes).status in (200, 201, 400)


@anything_goes
@given(st.binary(max_size=200))
def test_b26_no_body_gives_a_5xx(app: Application, body: bytes) -> None:
    """Whatever bytes are sent, the answer is a refusal."""
    assert exchange(app, "POST", "/oauth/register", body, {"content-type": "application/json"}).status == 400


@anything_goes
@given(
    st.dictionaries(
        st.sampled_from(["iss", "aud", "exp", "jti", "nonce", "board", "agent", "boot"]), json_values, max_size=3
    )
)
def test_b26_no_proof_gives_a_5xx(app: Application, claims: dict[str, Any]) -> None:
    """Whatever a proof claims, the answer is a registration or a refusal."""
    pi = Pi()
    members = jws.parse(pi.proof(nonce_of(app))).claims | claims
    proof = pi.sign(pi.header(typ="pi-enrollment+jwt"), members)
    assert post(app, pi.registration(None, proof=proof)).status in (200, 201, 400)
