"""How a board becomes known, at servers that keep the rules and at servers that do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device.registrar import Registrar, registering
from device.servers import reply, says, serving
from pi_agent import jws
from pi_agent.device import enroll
from pi_agent.device.discovery import discover, metadata_urls
from pi_agent.device.keys import file
from pi_agent.device.transport import Transport
from pi_agent.errors import ConfigError, OAuthError, PiAgentError, TransportError

NOW = 1_800_000_000
BOARD = {"serial": "00000000c3a91e5f", "revision": "a01041", "model": "Raspberry Pi 2 Model B", "memory_mib": 1024}


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    with registering(NOW) as registrar:
        yield registrar


def client() -> Transport:
    return Transport(loopback_http=True)


def register(
    registrar: Registrar, state: Path, *, enrollment_token: str = "", alg: str = "ES256"
) -> enroll.Registration:
    metadata = discover(client(), registrar.issuer, loopback_http=True)
    key = file.load_or_create(state, alg)
    agent = {"version": "0.1.0", "key": "file"}
    return enroll.register(
        client(), metadata, key, board=BOARD, agent=agent, name="kitchen", enrollment_token=enrollment_token, now=NOW
    )


# Discovery


def test_the_metadata_of_the_server_is_read(registrar: Registrar) -> None:
    """Issuer and endpoints as the server names them."""
    found = discover(client(), registrar.issuer, loopback_http=True)
    assert (found.issuer, found.token_endpoint) == (registrar.issuer, registrar.issuer + "/oauth/token")
    assert found.registration_endpoint == registrar.issuer + "/oauth/register"


def test_rfc_8414_3_1_the_well_known_words_stand_before_the_issuers_path() -> None:
    """An issuer with a path has its metadata where the standard puts it."""
    assert metadata_urls("https://fleet.example/tenant/1", "oauth") == [
        "https://fleet.example/.well-known/oauth-authorization-server/tenant/1"
    ]
    assert metadata_urls("https://fleet.example", "oauth") == [
        "https://fleet.example/.well-known/oauth-authorization-server"
    ]


@pytest.mark.parametrize("issuer", ["https://evil.example", "", None, 5, ["x"], "HTTP://127.0.0.1"])
def test_a18_a_server_that_calls_itself_something_else_is_refused(registrar: Registrar, issuer: Any) -> None:
    """The issuer in the metadata must be the one we asked, byte for byte (RFC 8414 section 3.3)."""
    registrar.metadata["issuer"] = issuer
    with pytest.raises(TransportError) as caught:
        discover(client(), registrar.issuer, loopback_http=True)
    assert caught.value.reason == "issuer"


def test_a18_a_slash_at_the_end_makes_another_issuer(registrar: Registrar) -> None:
    """A-18: the names are compared as they are (RFC 8414 section 3.3), and not as addresses."""
    registrar.metadata["issuer"] = registrar.issuer + "/"
    with pytest.raises(TransportError, match="does not call itself that"):
        discover(client(), registrar.issuer, loopback_http=True)
    registrar.metadata["issuer"] = registrar.issuer
    with pytest.raises(TransportError, match="does not call itself that"):
        discover(client(), registrar.issuer + "/", loopback_http=True)


def test_a18_the_name_a_server_gives_itself_is_shown_harmlessly(registrar: Registrar) -> None:
    """The hint quotes it, short and without control characters."""
    registrar.metadata["issuer"] = "https://evil.example/\x1b[2J" + "a" * 10_000
    with pytest.raises(TransportError) as caught:
        discover(client(), registrar.issuer, loopback_http=True)
    hint = caught.value.hint or ""
    assert hint.isprintable()
    assert len(hint) < 300


@pytest.mark.parametrize("name", ["token_endpoint", "registration_endpoint"])
@pytest.mark.parametrize(
    "url",
    [
        "http://fleet.example/token",
        "https://u:p@fleet.example/token",
        "javascript:1",
        "/oauth/token",
        "https://fleet.example/\n",
    ],
)
def test_a13_a18_an_endpoint_that_may_not_have_an_assertion_is_refused(
    registrar: Registrar, name: str, url: str
) -> None:
    """Endpoints go through the same gate as the issuer."""
    registrar.metadata[name] = url
    with pytest.raises(ConfigError):
        discover(client(), registrar.issuer, loopback_http=True)


@pytest.mark.parametrize("value", [None, 5, [], {}])
def test_an_endpoint_that_is_no_text_is_refused(registrar: Registrar, value: Any) -> None:
    """Nothing is asked of a number."""
    registrar.metadata["token_endpoint"] = value
    with pytest.raises(TransportError):
        discover(client(), registrar.issuer, loopback_http=True)


@pytest.mark.parametrize(
    "answer", [reply({}, status=404), reply(b"<html>", media="text/html"), reply([1]), reply(b""), b"junk\r\n\r\n"]
)
def test_a_server_without_metadata_is_told_as_it_is(answer: bytes) -> None:
    """A login page, another service, or nothing: TransportError."""
    with serving(says(answer)) as server, pytest.raises(TransportError):
        discover(client(), server.url, loopback_http=True)


# Registration


@pytest.mark.parametrize("alg", ["ES256", "EdDSA", "RS256", "PS256"])
def test_f01_the_new_key_proves_itself(registrar: Registrar, state: Path, alg: str) -> None:
    """The proof is signed by the key it introduces, for this server, and holds the board."""
    found = register(registrar, state, alg=alg)
    (proof,) = registrar.proofs
    assert proof.kid == file.load(state, alg).public_key().kid
    assert proof.board is not None
    assert proof.board["revision"] == "a01041"
    assert (found.status, found.client_id[:3]) == ("pending", "pi-")


def test_f01_the_servers_nonce_is_signed(registrar: Registrar, state: Path) -> None:
    """Asked for a nonce, the proof is made again with it, and with another jti."""
    registrar.nonce = "n-4711"
    register(registrar, state)
    assert registrar.proofs[0].claims["nonce"] == "n-4711"
    sent = [request for request in registrar.server.requests if "register" in request.line]
    assert len(sent) == 2


def test_a_server_that_asks_for_nonces_without_end_is_given_up(registrar: Registrar, state: Path) -> None:
    """Two attempts; then it is a refusal."""
    registrar.registration = reply({"error": "use_enrollment_nonce", "nonce": "again"}, status=400)
    with pytest.raises(OAuthError, match="use_enrollment_nonce"):
        register(registrar, state)
    assert len([request for request in registrar.server.requests if "register" in request.line]) == 2


def test_registering_again_names_the_same_device(registrar: Registrar, state: Path) -> None:
    """A lost answer costs nothing: the same key is the same client."""
    assert register(registrar, state).client_id == register(registrar, state).client_id


def test_a19_the_audience_is_the_issuer_we_were_told(registrar: Registrar, state: Path) -> None:
    """Whatever endpoint the metadata names, what is signed there is for the configured issuer only."""
    with serving(says(reply({"client_id": "x"}, status=201))) as other:
        registrar.metadata["registration_endpoint"] = other.url + "/register"
        register(registrar, state)
        proof = jws.parse(json.loads(other.requests[0].body)["proof"])
    assert proof.claims["aud"] == registrar.issuer


def test_an_enrollment_token_goes_to_registration_only(registrar: Registrar, state: Path) -> None:
    """As a Bearer header there, and nowhere else."""
    register(registrar, state, enrollment_token="once-4711")
    sent = {request.line.split(" ")[1]: request.headers.get("authorization") for request in registrar.server.requests}
    assert sent == {"/.well-known/oauth-authorization-server": None, "/oauth/register": "Bearer once-4711"}


def test_g01_an_enrollment_token_is_never_quoted(registrar: Registrar, state: Path) -> None:
    """Not by a server that repeats it, nor when it cannot stand in a header."""
    token = "once-" + "4711" * 20
    registrar.registration = reply({"error": "invalid_token", "error_description": f"not {token}"}, status=401)
    for given in (token, token + "\n" + token):
        with pytest.raises(PiAgentError) as caught:
            register(registrar, state, enrollment_token=given)
        assert "4711" not in f"{caught.value} {caught.value.hint}"


def test_a_refusal_comes_back_in_the_servers_words(registrar: Registrar, state: Path) -> None:
    """Closed registration, a spent token: code and sentence."""
    registrar.registration = reply(
        {"error": "access_denied", "error_description": "registration is closed"}, status=403
    )
    with pytest.raises(OAuthError, match="access_denied: registration is closed"):
        register(registrar, state)


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_that_fails_is_no_refusal(registrar: Registrar, state: Path, status: int) -> None:
    """The board may come again later: exit code 5, not 4."""
    registrar.registration = reply({"error": "server_error"}, status=status)
    with pytest.raises(TransportError) as caught:
        register(registrar, state)
    assert caught.value.exit_code == 5


NO_REGISTRATIONS: list[dict[str, Any]] = [
    {},
    {"client_id": ""},
    {"client_id": None},
    {"client_id": 5},
    {"client_id": "a" * 129},
    {"client_id": "pi-\x1b[2J"},
    {"client_id": "pi-1\nstatus approved"},
    {"client_id": "pi-\u00e9"},
    {"client_id": "pi-1", "status": "\x1b]0;x\x07"},
    {"client_id": "pi-1", "status": 5},
    {"client_id": "pi-1", "status": ["approved"]},
]


@pytest.mark.parametrize("members", NO_REGISTRATIONS)
def test_d07_g05_a_registration_that_cannot_be_shown_is_none(
    registrar: Registrar, state: Path, members: dict[str, Any]
) -> None:
    """What a server calls us is short, printable text, or it is no registration."""
    registrar.registration = reply(members, status=201)
    with pytest.raises(TransportError, match="no usable"):
        register(registrar, state)


def test_d07_g05_a_refusal_cannot_speak_to_the_terminal(registrar: Registrar, state: Path) -> None:
    """Escape sequences in the server's sentence are not printed."""
    registrar.registration = reply({"error": "x\x1b[2J", "error_description": "\x1b]0;owned\x07 \u202e no"}, status=400)
    with pytest.raises(OAuthError) as caught:
        register(registrar, state)
    assert str(caught.value).isprintable()
