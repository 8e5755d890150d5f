"""What ``serve`` says when it starts, and what the folder remembers of it for the commands that come later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet.live import run
from pi_agent.fleet import greeting
from pi_agent.fleet.settings import Settings

TLS = {"tls_cert": Path("/x.pem")}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            {"bind": "0.0.0.0:8443", "issuer": "https://fleet.example", **TLS},
            "else --issuer https://fleet.example:8443",
        ),
        ({"bind": "0.0.0.0:8443", "issuer": "https://[::2]:1", **TLS}, "says port 1, .*--issuer https://[::2]:8443"),
        ({"bind": "0.0.0.0:8080", "issuer": "https://fleet.example"}, "plain HTTP on 0.0.0.0, .*--trusted-proxy"),
        ({"bind": "0.0.0.0:443", "issuer": "https://fleet.example", **TLS}, ""),
        ({"bind": "0.0.0.0:8443", "issuer": "https://fleet.example:8443", **TLS}, ""),
        ({"bind": "0.0.0.0:80", "issuer": "https://fleet.example", "trusted_proxy": ("10.0.0.1/32",)}, ""),
        ({"bind": "127.0.0.1:8080", "issuer": "https://fleet.example"}, ""),
        ({"bind": "[::1]:8080", "issuer": "http://[::1]:8080"}, ""),
    ],
)
def test_what_is_seldom_meant_is_said(wanted: dict[str, Any], said: str) -> None:
    """A port that nobody is sent to, and plain HTTP where others can read it: one line each, and none where all is well."""
    doubts = list(greeting.doubts(Settings(data=Path("/d"), **wanted)))
    assert len(doubts) == bool(said)
    assert all(part in "".join(doubts) for part in said.split(".*"))


@pytest.mark.parametrize("issuer", ["https://x:0", "https://x:99999", "https://x:port", "https://x:"])
def test_an_issuer_has_a_port_that_can_be(tmp_path: Path, issuer: str) -> None:
    """Or none; anything else is named before the start."""
    done = run("--data", str(tmp_path / "data"), "serve", "--bind", "127.0.0.1:0", "--issuer", issuer)
    assert (done.returncode, "issuer must be https://HOST" in done.stderr) == (2, True), done.stderr
