"""Dynamic client registration (RFC 7591) with an initial access token, at a server that is not ours: node oidc-provider 9."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.living import eventually
from device.servers import free_port
from interop.conftest import FOLDER, Board, has_token, listening

SERVER = Path(__file__).with_name("oidc_registration.mjs")
TOKEN = "initial-access-token-canary"


@contextlib.contextmanager
def registrar(node: str, board: Board) -> Iterator[str]:
    """The server; the value is its issuer. The board's settings and its token file are there."""
    port = free_port()
    (board.home / "config.toml").write_text("[server]\nloopback_http = true\n")
    (board.home / "token").write_text(TOKEN + "\n")
    with listening([node, str(SERVER), str(port), TOKEN, str(FOLDER)], port):
        yield f"http://127.0.0.1:{port}"


def test_a_board_registers_itself_and_gets_a_token(board: Board, node: str) -> None:
    """setup with the server's preset and its initial access token is all there is to it; again, it is the same client."""
    with registrar(node, board) as issuer:
        words = ("setup", issuer, "--preset", "oidc-provider", "--json")
        done = board.run(*words, f"--enrollment-token-file={board.home / 'token'}")
        assert done.returncode == 0, done.stderr
        first = json.loads(done.stdout)
        assert json.loads(board.run(*words).stdout)["client_id"] == first["client_id"]
        with board.running() as runtime:
            eventually(lambda: has_token(runtime), "a token")
    kept = [path.read_text() for path in board.home.rglob("*") if path.is_file() and path.name != "token"]
    assert not any(TOKEN in text for text in kept)


@pytest.mark.parametrize("token", ["", "wrong"])
def test_without_the_token_nobody_registers(board: Board, node: str, token: str) -> None:
    """The server's refusal is said in its own words, and the board stays as it was."""
    with registrar(node, board) as issuer:
        (board.home / "token").write_text(token)
        done = board.run(
            "setup", issuer, "--preset", "oidc-provider", f"--enrollment-token-file={board.home / 'token'}"
        )
    assert done.returncode == 4
    assert "invalid_token" in done.stderr or "no access token provided" in done.stderr
    assert board.run("status").returncode == 3
