"""The time that setup and key rotation sign with, on a board whose clock is wrong."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from pi_agent.device import clock
from pi_agent.device.discovery import signing_time
from pi_agent.device.transport import Transport
from pi_agent.errors import TransportError

from .servers import reply, says, serving


@pytest.mark.parametrize("days", [-200, -1, 1, 200])
def test_a_board_with_a_wrong_clock_signs_with_the_servers_time(days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """RA-15: a server whose Date differs from our clock is believed about the time, so that its proof is not expired."""
    ahead = time.time() + days * 86400
    monkeypatch.setattr(clock, "BUILT", int(time.time()) - 400 * 86400)
    with serving(says(reply({}, Date=formatdate(ahead, usegmt=True)))) as server:
        assert abs(signing_time(Transport(loopback_http=True), server.url) - ahead) < 30


def test_a_board_with_a_right_clock_signs_with_its_own_time() -> None:
    """A Date that agrees with our clock changes nothing."""
    with serving(says(reply({}, Date=formatdate(usegmt=True)))) as server:
        assert abs(signing_time(Transport(loopback_http=True), server.url) - time.time()) < 12


def test_without_any_time_nothing_is_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A-06: a clock before the program was built, and a server without a Date, leave nothing to sign with."""
    monkeypatch.setattr(clock, "BUILT", int(time.time()) + 400 * 86400)
    with serving(says(reply({}))) as server, pytest.raises(TransportError, match="the clock is wrong"):
        signing_time(Transport(loopback_http=True), server.url)
