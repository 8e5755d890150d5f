"""``pi-agent key rotate`` and ``key move`` at a server that gives tokens to the keys it knows, and to no others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from device.living import Living, living
from device.rotating import Rotating
from device.servers import Request, reply
from pi_agent.device import cli, identity, joining, rotate
from pi_agent.device.keys import KeyStore, stores
from pi_agent.errors import KeyFileError, KeyStoreError


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[Living]:
    with living(tmp_path / "pi") as board:
        yield board


@pytest.fixture
def server(pi: Living) -> Rotating:
    """Knows the board's key, and rotates it."""
    state = pi.home / "state"
    server = Rotating(joining.load_key(state, identity.load(state)).public_key(), pi.server.url)
    pi.answers.instead_of_metadata = reply(server.metadata)
    pi.answers.now = server
    return server


def begun(pi: Living, location: str = "file:key-next.pem") -> None:
    """A rotation to ``location`` has been written down."""
    state = pi.home / "state"
    rotate.begin(state, identity.load(state), location)


def move(pi: Living) -> int:
    folders = [f"--{name}={pi.home / name}" for name in ("state", "root")]
    options = [f"--config={pi.home / 'config.toml'}", f"--runtime={pi.runtime}"]
    return cli.main([*options, *folders, "key", "move", "--to", "file"])


def test_f04_a_move_keeps_the_key_that_the_server_may_already_have_turned_to(pi: Living, server: Rotating) -> None:
    """F-04: the answer to the first use of a new key was lost; key move first finishes that rotation, and is then known."""
    begun(pi)

    def first_use_unanswered(channel: socket.socket, request: Request) -> None:
        server.given = 0
        server(Silent(channel) if request.line.startswith("POST /token") else channel, request)  # type: ignore[arg-type]

    pi.answers.now = first_use_unanswered
    assert pi.run("key", "rotate").returncode != 0
    state = pi.home / "state"
    retired = identity.load(state).kid
    assert retired not in server.keys  # and still the key in use, as far as the board knows
    pi.answers.now = server
    done = pi.run("key", "move", "--to", "file", "--json")
    assert done.returncode == 0, done.stderr
    known = identity.load(state)
    assert [known.kid] == list(server.keys) == [json.loads(done.stdout)["kid"]]
    assert known.next_key == ""


def test_f04_a_rotation_that_is_answered_for_another_key_is_none(pi: Living, server: Rotating) -> None:
    """F-04: the server says that it took a key, but not ours: ours is not used, and the key in use stays."""

    def mixed_up(channel: socket.socket, request: Request) -> None:
        if "/rotate" in request.line:
            channel.sendall(reply({"kid": "another"}))
        else:
            server(channel, request)

    pi.answers.now = mixed_up
    before = identity.load(pi.home / "state")
    done = pi.run("key", "rotate")
    assert (done.returncode, "some other key" in done.stderr) == (5, True), done.stderr
    assert identity.load(pi.home / "state").kid == before.kid
    assert server.given == 0


class Silent:
    """A connection on which the answer is lost."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def sendall(self, _: bytes) -> None:
        self._channel.shutdown(socket.SHUT_RDWR)


def test_a_move_gives_up_a_key_that_the_server_never_takes(pi: Living, server: Rotating) -> None:
    """Another rotation overtook the one under way: it is dropped, and the key that the move makes is signed in."""
    begun(pi)
    refused: list[str] = []

    def refuses_the_first(channel: socket.socket, request: Request) -> None:
        if "/rotate" in request.line and not refused:
            refused.append(request.line)
            channel.sendall(reply({"error": rotate.KEY_UNUSABLE}, status=400))
        else:
            server(channel, request)

    pi.answers.now = refuses_the_first
    done = pi.run("key", "move", "--to", "file")
    assert (done.returncode, len(refused)) == (0, 1), done.stderr
    known = identity.load(pi.home / "state")
    assert (known.next_key, list(server.keys)) == ("", [known.kid])
    assert not (pi.home / "state/key-next.pem").exists()


def test_a_move_gives_up_a_key_that_cannot_be_made(
    pi: Living, server: Rotating, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store of the rotation under way makes no keys: there is nothing to lose, and the move is the way out."""
    begun(pi)
    make = stores.load_or_create

    def refusing(location: str, state: Path) -> KeyStore:
        if location == "file:key-next.pem":
            raise KeyStoreError("the token refuses: CKR_MECHANISM_INVALID", path=location)
        return make(location, state)

    monkeypatch.setattr(stores, "load_or_create", refusing)
    assert move(pi) == 0
    known = identity.load(pi.home / "state")
    assert (known.next_key, list(server.keys)) == ("", [known.kid])


def test_f04_a_move_keeps_a_key_whose_file_is_missing(
    pi: Living, server: Rotating, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """F-04: it may have been signed in before it was lost. What cannot be written, or read, now is said instead."""
    begun(pi)
    before, make = identity.load(pi.home / "state"), stores.load_or_create

    def full(location: str, state: Path) -> KeyStore:
        if location == before.next_key:
            raise KeyFileError(f"cannot write {location}: No space left on device", path=location)
        return make(location, state)

    with monkeypatch.context() as patch:
        patch.setattr(stores, "load_or_create", full)
        assert move(pi) == 2
    assert "No space left" in capfd.readouterr().err
    (pi.home / "state/key.pem").rename(pi.home / "key.pem")
    assert move(pi) == 2
    assert "is gone" in capfd.readouterr().err
    assert identity.load(pi.home / "state") == before


def test_f04_a_move_keeps_a_next_key_while_the_token_of_the_present_one_is_away(
    pi: Living, server: Rotating, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F-04: what a token refuses says nothing of a next key that is not in it."""
    begun(pi)
    before, find = identity.load(pi.home / "state"), stores.load

    def away(location: str, state: Path) -> KeyStore:
        if location == before.key:
            raise KeyStoreError("there is no token pi-agent", path=location)
        return find(location, state)

    monkeypatch.setattr(stores, "load", away)
    assert move(pi) == 1
    assert identity.load(pi.home / "state") == before


def test_f04_a_move_keeps_a_key_that_cannot_be_looked_at_now(pi: Living, server: Rotating) -> None:
    """F-04: the next key's store is not there at the moment: nothing is dropped, since the server may know that key alone."""
    begun(pi, "firmware:1")
    before = identity.load(pi.home / "state")
    assert pi.run("key", "move", "--to", "file").returncode == 1
    assert identity.load(pi.home / "state") == before


def test_a_move_to_where_the_rotation_goes_anyway_is_one_rotation(pi: Living, server: Rotating) -> None:
    """The move that was cut off is typed again: the same key, signed in once."""
    begun(pi, "file:key-next.pem")
    known = identity.load(pi.home / "state")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores, "choose", lambda *_, **__: known.next_key)
        assert move(pi) == 0
    assert identity.load(pi.home / "state") == replace(
        known, key=known.next_key, next_key="", previous_key=known.key, kid=list(server.keys)[-1]
    )


def test_g05_the_words_of_the_rotation_endpoint_are_made_harmless(pi: Living, server: Rotating) -> None:
    """G-05: a server that answers with escape codes and our own statement: neither reaches the terminal."""
    statements: list[str] = []

    def rude(channel: socket.socket, request: Request) -> None:
        statements.append(json.loads(request.body)["signed_by_old"])
        words = {"error": "bad\x1b[31m", "error_description": "\x1b]0;canary\x07" + statements[-1][:150]}
        channel.sendall(reply(words, status=400))

    pi.answers.now = rude
    done = pi.run("key", "rotate")
    assert done.returncode == 4
    assert done.stderr.replace("\n", "").isprintable()
    assert statements[0][:64] not in done.stderr
