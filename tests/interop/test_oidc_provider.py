"""node oidc-provider 9, unchanged, gives a board its tokens: client_credentials with private_key_jwt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from device.living import eventually
from device.servers import free_port
from interop.conftest import FOLDER, Board, has_token, listening
from pi_agent import client, jws
from pi_agent.errors import TransportError

SERVER = Path(__file__).with_name("oidc_provider.mjs")


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "EdDSA"])
@pytest.mark.parametrize("audience", ["issuer", "token_endpoint"])
def test_a_token_from_oidc_provider(board: Board, node: str, algorithm: str, audience: str) -> None:
    """Both values of ``aud`` are taken, each algorithm signs, and a refresh is no replay (a new jti each time)."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    more = f'assertion_audience = "{audience}"\n[key]\nalgorithm = "{algorithm}"\n[token]\nscope = "telemetry"\n'
    more += 'resource = "urn:api:telemetry"\n'
    jwks = board.set_up(issuer, preset="oidc-provider", endpoint=f"{issuer}/token", more=more)
    (board.home / "jwks.json").write_text(jwks)
    command = [node, str(SERVER), str(port), str(board.home / "jwks.json"), str(FOLDER)]
    with listening(command, port), board.running() as runtime:
        eventually(lambda: has_token(runtime), "a token")
        first = client.token(runtime=runtime)
        assert client.renew(runtime=runtime) != first
        other = client.token(audience="urn:api:other", scope="telemetry", runtime=runtime)
        assert other != first
        status = client.ask("/v1/status", runtime=runtime)
        assert (status["state"], status["refreshes"]) == ("ok", 3)


def test_discovery_and_doctor(board: Board, node: str) -> None:
    """The metadata is found (OpenID Connect's place), and doctor gets a token of its own."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    jwks = board.set_up(issuer, preset="oidc-provider", endpoint=f"{issuer}/token")
    (board.home / "jwks.json").write_text(jwks)
    command = [node, str(SERVER), str(port), str(board.home / "jwks.json"), str(FOLDER)]
    with listening(command, port):
        found = json.loads(board.run("doctor", "--json").stdout)["findings"]
        verdicts = {each["name"]: each["verdict"] for each in found}
        assert (verdicts["metadata"], verdicts["token"]) == ("ok", "ok"), found


def test_sign_out_is_revoked_at_oidc_provider(board: Board, node: str) -> None:
    """RFC 7009 at a real server, with the client's assertion."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    (board.home / "jwks.json").write_text(board.set_up(issuer, preset="oidc-provider", endpoint=f"{issuer}/token"))
    command = [node, str(SERVER), str(port), str(board.home / "jwks.json"), str(FOLDER)]
    with listening(command, port), board.running() as runtime:
        eventually(lambda: has_token(runtime), "a token")
        assert "revoked at the server" in board.run("sign-out").stderr


def test_a_key_that_the_server_does_not_know(board: Board, node: str, tmp_path: Path) -> None:
    """Another board's key: refused, and said so in the server's word."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    other = Board(tmp_path / "other")
    jwks = other.set_up(issuer, preset="oidc-provider", endpoint=f"{issuer}/token")
    board.set_up(issuer, preset="oidc-provider", endpoint=f"{issuer}/token")
    (board.home / "jwks.json").write_text(jwks)
    command = [node, str(SERVER), str(port), str(board.home / "jwks.json"), str(FOLDER)]
    with listening(command, port), board.running() as runtime:
        status = eventually(lambda: refused(runtime), "a refusal")
        assert status["failure"]["reason"] == "invalid_client"  # type: ignore[index]


def refused(runtime: str) -> dict[str, object] | None:
    try:
        status = client.ask("/v1/status", runtime=runtime)
    except TransportError:
        return None
    return status if status["state"] == "refused" else None


def test_claims_are_those_of_rfc_7523(board: Board) -> None:
    """What a foreign server sees: no claim of ours, typ JWT, iss and sub the client."""
    from device.test_clock import fields_of  # the same fields
    from pi_agent.device import identity, request, worker
    from pi_agent.device.keys import file

    board.set_up("http://127.0.0.1:1", preset="oidc-provider", endpoint="http://127.0.0.1:1/token")
    state = board.home / "state"
    key = file.load(state)

    class Folders:
        home, runtime = board.home, str(board.home / "run")

    profile = worker.profile(fields_of(Folders()), identity.load(state), key, {})  # type: ignore[arg-type]
    token = jws.parse(request.client_fields(profile, key, now=1)["client_assertion"])
    assert token.header["typ"] == "JWT"
    assert set(token.claims) == {"iss", "sub", "aud", "iat", "nbf", "exp", "jti"}
    assert (token.claims["iss"], token.claims["sub"]) == ("board-1", "board-1")
