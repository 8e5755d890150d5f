"""One refresh, as the worker does it: whatever stands in the way is an answer with a sentence, and nothing else leaks."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

import pi_agent
from device.resident import SOURCE, Home, a_home, tokens
from device.servers import Request, Script, Server, reply, says, serving
from pi_agent import assertion, jwk, jws
from pi_agent.device import frames, worker
from pi_agent.device.keys import file


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(says(reply(tokens(1)))) as server:
        yield server


@pytest.fixture
def home(server: Server) -> Iterator[Home]:
    with a_home(server.url + "/token") as home:
        yield home


def refresh(home: Home, **more: str) -> dict[str, str | int]:
    """The answer to one refresh, as ``pi-agent run`` and the resident would ask for it."""
    asked = {"action": "token", "audience": "", "scope": "", "refresh_token": "", "anchor": ""}
    return worker.refresh(home.fields() | asked | more)


def claims(server: Server) -> dict[str, Any]:
    return jws.parse(server.requests[-1].form["assertion"]).claims


def test_a_token_comes_back_as_a_ready_answer(home: Home) -> None:
    """Head, seconds and tail together are the JSON that callers get."""
    fields = refresh(home)
    assert (fields["outcome"], fields["expires_in"]) == ("token", 1800)
    assert json.loads(f"{fields['head']}1234{fields['tail']}") == tokens(1, expires_in=1234)
    assert frames.unpack_answer(frames.pack(fields))["outcome"] == "token"


def test_a01_a02_a03_the_assertion_is_the_documented_one(home: Home, server: Server) -> None:
    """Signed by our key with its kid, for the issuer alone, for a minute, with board, boot and agent and nothing else."""
    refresh(home)
    token = jws.parse(server.requests[0].form["assertion"])
    key = file.load(home.state)
    assert token.header == {"alg": "ES256", "kid": key.public_key().kid, "typ": "pi-device-grant+jwt"}
    found = assertion.verify(
        token,
        jwk.load_jwk(key.public_key().jwk),
        alg="ES256",
        kind=assertion.GRANT,
        audience="https://fleet.example",
        now=token.claims["iat"],
    )
    assert set(token.claims) == {"iss", "sub", "aud", "iat", "exp", "jti", "board", "boot", "agent"}
    assert found.expires_at - found.issued_at == 60
    assert found.agent == {"version": pi_agent.__version__, "key": "file", "simulated": True, "flags": []}


@pytest.mark.parametrize("seconds", [10, 300])
def test_a03_the_life_of_an_assertion_is_a_setting(home: Home, server: Server, seconds: int) -> None:
    """Between ten seconds and five minutes."""
    home.variables["PI_AGENT_TOKEN_ASSERTION_LIFETIME"] = str(seconds)
    refresh(home)
    assert claims(server)["exp"] - claims(server)["iat"] == seconds


def test_the_boot_claim_names_the_boot_and_not_its_id(home: Home, server: Server) -> None:
    """A digest over boot id and issuer: the same until the next boot, another for another server, gone without an id."""
    refresh(home)
    boot_id = home.root / "proc/sys/kernel/random/boot_id"
    text = boot_id.read_text().strip() + "https://fleet.example"
    assert claims(server)["boot"] == jws.b64url(hashlib.sha256(text.encode()).digest())
    assert worker.boot_claim(home.root, "https://other.example") != claims(server)["boot"]
    boot_id.unlink()
    assert worker.boot_claim(home.root, "https://fleet.example") is None


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (reply({"error": "authorization_pending"}, status=400), "pending", "authorization_pending"),
        (reply({"error": "invalid_grant"}, status=400), "refused", "invalid_grant"),
        (reply({"error": "invalid_client"}, status=401), "refused", "invalid_client"),
        (reply({"error": "slow_down"}, status=400), "failed", "slow_down"),
        (reply({"error": "temporarily_unavailable"}, status=400), "failed", "temporarily_unavailable"),
        (reply({"error": "anything"}, status=429), "failed", "anything"),
        (reply({"error": "invalid_grant"}, status=503), "failed", "answer"),
        (reply(b"<html>", media="text/html"), "failed", "answer"),
        (reply(b"", status=302, Location="https://login.example"), "failed", "redirect"),
    ],
)
def test_ra14_what_the_server_says_is_one_of_three_outcomes(answer: bytes, outcome: str, reason: str) -> None:
    """Pending and refused are about this device and asked about slowly; everything else is a failed attempt."""
    with serving(says(answer)) as server, a_home(server.url) as home:
        fields = refresh(home)
    assert (fields["outcome"], fields["reason"]) == (outcome, reason)
    assert frames.unpack_answer(frames.pack(fields))


def test_ra04_a_pause_that_the_server_asks_for_is_handed_on() -> None:
    """Retry-After of an error answer and of a failing server alike."""
    for status in (429, 503):
        with (
            serving(says(reply({"error": "slow_down"}, status=status, Retry_After="77"))) as server,
            a_home(server.url) as home,
        ):
            assert refresh(home)["retry_after"] == 77


def test_a_refusal_that_the_clock_does_not_explain_is_not_tried_again() -> None:
    """The server's Date agrees with ours, so another assertion would say the same: one request, and one refusal."""
    date = formatdate(time.time(), usegmt=True)
    with (
        serving(says(reply({"error": "invalid_grant"}, status=400, Date=date))) as server,
        a_home(server.url + "/token") as home,
    ):
        assert refresh(home)["reason"] == "invalid_grant"
        assert len(server.requests) == 1


def by_grant(answer: bytes, otherwise: bytes) -> Script:
    """``answer`` for a refresh token, ``otherwise`` for the grant."""

    def script(channel: socket.socket, request: Request) -> None:
        channel.sendall(answer if request.form["grant_type"] == "refresh_token" else otherwise)

    return script


def test_a_refresh_token_that_is_refused_is_forgotten() -> None:
    """``invalid_grant``: the grant is tried at once, and when that fails, too, the next attempt begins with it."""
    refused = reply({"error": "invalid_grant"}, status=400)
    with serving(by_grant(refused, reply({}, status=503))) as server, a_home(server.url + "/token") as home:
        fields = refresh(home, refresh_token="old")
        assert (fields["outcome"], fields["reason"], fields["forget_refresh_token"]) == ("failed", "answer", "1")
        assert len(server.requests) == 2


@pytest.mark.parametrize("error", ["invalid_client", "authorization_pending", "slow_down", "invalid_scope"])
def test_another_refusal_is_no_word_about_the_refresh_token(error: str) -> None:
    """It stays, and the grant is not tried behind the server's back."""
    with (
        serving(by_grant(reply({"error": error}, status=400), reply(tokens(1)))) as server,
        a_home(server.url + "/token") as home,
    ):
        fields = refresh(home, refresh_token="old")
        assert (fields["reason"], "forget_refresh_token" in fields) == (error, False)
        assert [request.form["grant_type"] for request in server.requests] == ["refresh_token"]


def break_key(home: Home) -> None:
    (home.state / "key.pem").write_bytes(b"garbage")


def open_key(home: Home) -> None:
    (home.state / "key.pem").chmod(0o644)


def lose_key(home: Home) -> None:
    (home.state / "key.pem").unlink()


def break_identity(home: Home) -> None:
    (home.state / "identity.json").write_text("{")


def deepen_identity(home: Home) -> None:
    (home.state / "identity.json").write_text("[" * 60000)


def open_folder(home: Home) -> None:
    home.state.chmod(0o777)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (break_key, "damaged"),
        (open_key, "open to others"),
        (lose_key, "key.pem"),
        (break_identity, "damaged"),
        (deepen_identity, "damaged"),
        (open_folder, "may be written by others"),
    ],
)
def test_ra23_ra30_f06_what_is_wrong_with_key_or_identity_is_said(
    home: Home, server: Server, harm: Any, words: str
) -> None:
    """One failed attempt with a clear sentence and a next step; nothing is sent, and nothing is repaired behind the owner's back."""
    settings = home.fields()
    harm(home)
    before = {path.name: path.read_bytes() for path in home.state.iterdir()}
    fields = worker.refresh(
        settings | {"action": "token", "audience": "", "scope": "", "refresh_token": "", "anchor": ""}
    )
    assert fields["outcome"] == "failed"
    assert fields["reason"] != "bug"
    assert words in str(fields["message"])
    assert fields["hint"]
    assert server.requests == []
    assert {path.name: path.read_bytes() for path in home.state.iterdir()} == before


def test_a09_ra25_on_another_board_nothing_is_signed(home: Home, server: Server) -> None:
    """A card that moved: the identity is bound to a serial."""
    settings = home.fields()
    path = home.state / "identity.json"
    path.write_text(path.read_text().replace('"serial": ""', '"serial": "00000000deadbeef"'))
    fields = worker.refresh(
        settings | {"action": "token", "audience": "", "scope": "", "refresh_token": "", "anchor": ""}
    )
    assert "belongs to the board with serial 00000000deadbeef" in str(fields["message"])
    assert server.requests == []


def test_g04_a_fault_of_our_own_is_an_answer_without_details(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kind of the exception, and not its text, which could hold anything."""

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("canary-4711")

    monkeypatch.setattr(file.FileKey, "sign", fail)
    fields = refresh(home)
    assert fields["reason"] == "bug"
    assert "ZeroDivisionError" in str(fields["message"])
    assert "canary" not in str(fields)


def test_the_worker_is_a_process_that_ends(home: Home, server: Server) -> None:
    """Settings in, an answer out, exit code 0, and nothing on stderr, in a bare interpreter with a clean environment."""
    fields = home.fields() | {"action": "token", "audience": "", "scope": "", "refresh_token": "", "anchor": ""}
    code = f"import sys; sys.path[:0] = {[str(SOURCE), *sys.path]!r}; from pi_agent.device.worker import main; main()"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code],
        input=frames.pack(fields),
        capture_output=True,
        env={"LANG": "C.UTF-8"},
        timeout=30,
        check=True,
    )
    assert frames.unpack_answer(done.stdout)["outcome"] == "token"
    assert done.stderr == b""
    assert len(server.requests) == 1


def test_the_fields_of_a_refresh_hold_no_secret(home: Home) -> None:
    """What lies in the resident's memory and on the pipe between the processes is no key."""
    secret = (home.state / "key.pem").read_text().splitlines()[1]
    assert secret not in json.dumps(home.fields())
    assert Path(home.fields()["state"]) == home.state
