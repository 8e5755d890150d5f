"""Signing out: every token that was held is revoked, and what was not is neither forgotten nor called revoked."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading

import pytest

from device.living import Living, eventually, numbered
from device.servers import Request, reply, token
from pi_agent.device import frames, leaving
from pi_agent.device.tokens import FORGOTTEN_AFTER, MAX_SLOTS, MOST_LET_GO, NEVER, Tokens


@pytest.fixture
def pi(pi: Living) -> Living:
    pi.answers.metadata["revocation_endpoint"] = pi.server.url + "/revoke"
    return pi


def revoked(pi: Living) -> list[str]:
    return [request.form["token"] for request in pi.posts() if "/revoke" in request.line]


def big(number: int) -> str:
    return f"{number:04}" + "a" * 8000


def holding(*names: str, refresh_token: str = "") -> Tokens:
    """Tokens of these names, all good until 100."""
    tokens = Tokens("", "", 0.0)
    for name in names:
        slot = tokens.find(name, "", 0.0)
        assert slot
        slot.asked = 0.0
        fields = {"head": f'{{"access_token": "{name}", ', "tail": "}", "expires_in": "100"}
        slot.keep(fields | ({"refresh_token": refresh_token} if refresh_token else {}), 0.5)
    return tokens


def test_tokens_go_out_in_batches_that_fit_a_frame() -> None:
    """Each token is in one batch, a batch fits beside the settings, and the next one waits for the answer to the last."""
    names = [big(number) for number in range(15)]
    out, batches = leaving.Leaving(), []
    out.begin(holding(*names), 1.0)
    while batch := out.next_batch():
        assert out.next_batch() == ""
        batches.append(batch)
        assert (out.said, out.is_done()) == ("not revoked yet", False)
        out.on_answer({"outcome": "revoked", "message": "revoked at the server"})
    assert [name for batch in batches for name in batch.split()] == names
    assert len(batches) > 1
    assert all(len(batch) <= frames.MAX_FRAME // 2 for batch in batches)
    assert (out.said, out.is_done()) == ("revoked at the server", True)


def test_what_was_not_revoked_is_in_the_next_try() -> None:
    """By number when the worker tells which, all of it when the worker broke off; then the sign-out is not done."""
    out = leaving.Leaving()
    out.begin(holding("one", "two", refresh_token="again"), 1.0)
    assert out.next_batch() == "one again two again"
    out.on_answer({"outcome": "failed", "message": "the server answered 503", "left": "0 3"})
    assert (out.next_batch(), out.is_done()) == ("", False)
    assert out.said == "not revoked: the server answered 503; once more with: sudo pi-agent sign-out"
    out.begin(holding(), 2.0)
    assert out.next_batch() == "one again"
    out.on_answer({"outcome": "failed", "message": "the worker broke off"})
    out.begin(holding(), 3.0)
    assert out.next_batch() == "one again"
    out.on_answer({"outcome": "revoked", "message": "revoked at the server"})
    assert (out.said, out.is_done()) == ("revoked at the server", True)
    out.begin(holding(), 4.0)
    assert (out.said, out.is_done()) == ("nothing was held", True)


def test_what_is_left_does_not_grow_for_ever() -> None:
    """At a server that revokes nothing the oldest tokens are given up."""
    out = leaving.Leaving()
    for round_ in range(leaving.MOST_LEFT + 5):
        out.begin(holding(f"token-{round_}"), 1.0)
        out.next_batch()
        out.on_answer({"outcome": "failed", "message": "no"})
    out.begin(holding(), 2.0)
    assert len(out.next_batch().split()) == leaving.MOST_LEFT


def test_a_token_that_made_room_or_was_forgotten_is_revoked_too() -> None:
    """Also one that comes only after that, because a worker was out for it; what is over by then is not."""
    names = [f"token-{number}" for number in range(MAX_SLOTS - 1)]
    tokens = holding(*names)
    in_flight = tokens.find("token-0", "", 0.0)
    assert in_flight
    in_flight.clear(0.0)
    for number in (1, 2):  # of another user
        tokens.find(f"another-{number}", "", 1.0, 1000)
    in_flight.asked = 0.0
    in_flight.keep({"head": '{"access_token": "late", ', "tail": "}", "expires_in": "100"}, 0.5)
    tokens.sweep(2.0)
    out = leaving.Leaving()
    out.begin(tokens, 2.0)
    assert sorted(out.next_batch().split()) == sorted([*names[1:], "late"])
    tokens.each(lambda slot: slot.clear(NEVER))
    again = leaving.Leaving()
    again.begin(tokens, 3.0)
    assert again.said == "nothing was held"


def test_what_was_let_go_does_not_grow_for_ever() -> None:
    """The oldest are given up, and those whose tokens are over first."""
    tokens = holding("over")
    tokens.sweep(FORGOTTEN_AFTER + 1.0)
    assert not tokens.let_go
    for number in range(MOST_LET_GO + 5):
        slot = tokens.find(f"token-{number}", "", 0.0)
        assert slot
        slot.refresh_token = f"again-{number}"
        tokens.sweep(FORGOTTEN_AFTER + 1.0)
    assert [slot.refresh_token for slot in tokens.let_go] == [f"again-{number + 5}" for number in range(MOST_LET_GO)]


def test_who_signs_in_again_meanwhile_is_not_signed_out_by_the_answer() -> None:
    """The tokens are revoked all the same."""
    out = leaving.Leaving()
    out.begin(holding("one"), 1.0)
    assert out.next_batch() == "one"
    out.said = ""
    out.on_answer({"outcome": "revoked", "message": "revoked at the server"})
    assert (out.said, out.is_done()) == ("", True)


def test_sign_out_with_many_large_tokens(pi: Living) -> None:
    """More than one frame of tokens: the agent goes on answering, and every one is revoked."""
    given: list[str] = []

    def script(channel: socket.socket, request: Request) -> None:
        if "/token" in request.line:
            given.append(big(len(given)))
            channel.sendall(reply(token(access_token=given[-1])))
        else:
            channel.sendall(reply({}))

    pi.answers.now = script
    with pi.running():
        pi.state("ok")
        for number in range(4):
            pi.token(audience=f"https://{number}.example")
        done = pi.run("sign-out")
        assert (done.returncode, "revoked at the server" in done.stderr) == (0, True)
        assert sorted(revoked(pi)) == given
        assert len(given) == 5


def test_a_token_that_was_not_revoked_is_revoked_by_the_next_sign_out(pi: Living) -> None:
    """After a 503 for one of two tokens, the other is revoked all the same; the next sign-out is about that one alone."""
    busy: list[str] = ["token-1"]

    def script(channel: socket.socket, request: Request) -> None:
        if "/token" in request.line:
            give(channel, request)
        else:
            channel.sendall(reply({}, status=503 if request.form["token"] in busy else 200))

    give = numbered()
    pi.answers.now = script
    with pi.running():
        pi.state("ok")
        assert pi.token(audience="https://api.example") == "token-2"
        done = pi.run("sign-out")
        assert (done.returncode, "not revoked: the server answered 503; once more with:" in done.stderr) == (1, True)
        assert revoked(pi) == ["token-1", "token-2"]
        busy.clear()
        done = pi.run("sign-out")
        assert (done.returncode, "revoked at the server" in done.stderr) == (0, True)
        assert revoked(pi) == ["token-1", "token-2", "token-1"]


def test_a_token_that_was_under_way_is_revoked_too(pi: Living) -> None:
    """A request that the server has when the agent signs out brings a token yet: the sign-out waits for it."""
    gate, under_way = threading.Event(), threading.Event()
    give = numbered(refresh_token="again")

    def script(channel: socket.socket, request: Request) -> None:
        if "/token" not in request.line:
            channel.sendall(reply({}))
            return
        if under_way.is_set():
            gate.wait(20)
        give(channel, request)

    pi.answers.now = script
    with pi.running() as agent:
        pi.state("ok")
        under_way.set()
        before = len(pi.posts())
        agent.send_signal(signal.SIGUSR1)
        eventually(lambda: len(pi.posts()) > before, "a refresh")
        command = subprocess.Popen(pi.command("sign-out"), stderr=subprocess.PIPE, text=True)
        eventually(lambda: len(revoked(pi)) == 2, "the end of the first token")
        gate.set()
        said = command.communicate(timeout=30)[1]
        assert (command.returncode, "revoked at the server" in said) == (0, True)
        assert revoked(pi) == ["token-1", "again", "token-2", "again"]


def test_nothing_is_asked_for_while_signed_out(pi: Living) -> None:
    """A caller who names another audience gets no token, at once, and nothing goes to the server until it signs in again."""
    pi.answers.now = numbered()
    with pi.running() as agent:
        pi.state("ok")
        assert pi.run("sign-out").returncode == 0
        before = len(pi.posts())
        for number in range(3):
            status, problem = pi.get(f"/v1/token?audience=https://{number}.example&wait=20", timeout=10)
            assert (status, "signed out" in problem["detail"]) == (503, True)
        assert pi.run("token").returncode == 4  # to try again is of no use
        agent.send_signal(signal.SIGHUP)  # after which it looks for what is due
        eventually(lambda: "the settings were read again" in pi.log(), "a look around")
        assert (len(pi.posts()), pi.status()["attempts"]) == (before, 1)
        assert pi.run("refresh").returncode == 0
        assert pi.token(audience="https://1.example")
