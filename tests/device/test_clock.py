"""The clock: what is signed when it is wrong, how it is named, and what a step does (A-06, A-07, RA-13, RA-15, RA-16)."""

from __future__ import annotations

import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.living import Living, living
from device.servers import Authority, reply, says, serving
from pi_agent import jws
from pi_agent.device import clock, hearsay, worker

NOW = clock.BUILT + 30 * 86400
HOUR, YEAR = 3600, 365 * 86400


@given(wall=st.floats(0, 5e9), boot=st.floats(0, 1e8), server=st.one_of(st.none(), st.floats(-1e6, 5e9)))
def test_no_signature_carries_an_impossible_time(wall: float, boot: float, server: float | None) -> None:
    """A-06: whatever the clocks say, the time to sign with is believable, or there is none."""
    anchored = None if server is None else clock.anchor(server, boot)
    time_to_sign = clock.signing_time(wall, boot, anchored)
    assert time_to_sign is None or clock.is_plausible(time_to_sign + 1)
    if anchored is not None and server is not None:
        assert time_to_sign is not None
        assert abs(time_to_sign - server) <= clock.TOLERANCE + 1


@given(wall=st.floats(clock.BUILT, clock.BUILT + YEAR), step=st.floats(-50 * YEAR, 50 * YEAR), boot=st.floats(0, 1e7))
def test_an_anchor_outlives_every_step_of_the_clock(wall: float, step: float, boot: float) -> None:
    """RA-16: what the server told stays true when the system clock is set to anything."""
    anchored = clock.anchor(NOW, boot)
    assert anchored is not None
    found = clock.signing_time(wall + step, boot + 60, anchored)
    assert found is not None
    assert abs(found - (NOW + 60)) <= clock.TOLERANCE + 1


def test_a06_a_time_of_another_century_is_none() -> None:
    """A-06: a clock that was set to 2099 is as wrong as one of 1970, the server's as well as ours."""
    assert clock.is_plausible(clock.LAST - 1)
    assert not clock.is_plausible(clock.LAST)
    assert clock.anchor(clock.LAST, 10.0) is None
    assert clock.signing_time(clock.LAST, 10.0, None) is None
    assert clock.signing_time(clock.LAST, 10.0, clock.anchor(NOW, 10.0)) == NOW


def test_a_step_is_noticed_once_and_drift_is_not() -> None:
    """A jump of hours is told by its size, once; the drift of a crystal is not a step."""
    watch = clock.Watch(wall=1000.0, boot=10.0)
    assert watch.step(1010.001, 20.0) == 0.0
    assert watch.step(1020.0 + HOUR, 30.0) == pytest.approx(HOUR, abs=0.1)
    assert watch.step(1030.0 + HOUR, 40.0) == 0.0
    assert watch.step(1040.0, 50.0) == pytest.approx(-HOUR, abs=0.1)


@pytest.mark.parametrize(
    "skew", [-YEAR * 50, -YEAR, -HOUR, -300, 300, YEAR], ids=["1970s", "-1y", "-1h", "-5min", "+5min", "+1y"]
)
def test_a_token_is_had_with_a_wrong_clock(pi: Living, monkeypatch: pytest.MonkeyPatch, skew: int) -> None:
    """The server only believes assertions that carry its own time: a board whose clock is off by ``skew`` gets a token.

    An impossible clock signs nothing before the server's time is known; a possible one may be wrong once.
    """
    seen: list[int] = []

    def judging(channel: Any, request: Any) -> None:
        issued = jws.parse(request.form["assertion"]).claims["iat"]
        seen.append(issued)
        date = formatdate(NOW, usegmt=True)
        fits = abs(issued - NOW) <= 60
        channel.sendall(reply(Date=date) if fits else reply({"error": "invalid_grant"}, status=400, Date=date))

    pi.answers.now = judging
    pi.answers.metadata_date = formatdate(NOW, usegmt=True)
    monkeypatch.setattr(time, "time", lambda: NOW + skew + 0.5)
    answer = worker.refresh(fields_of(pi))
    assert answer["outcome"] == "token", answer
    assert len(seen) == (1 if not clock.is_plausible(NOW + skew) else 2)
    anchored = float(str(answer["anchor"]))
    assert abs(anchored + time.clock_gettime(time.CLOCK_BOOTTIME) - NOW) < 5


def test_no_time_no_signature(pi: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """A-06: in 1970, at a server that tells no time, nothing is signed, and the clock is named."""
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    answer = worker.refresh(fields_of(pi))
    assert (answer["outcome"], answer["reason"]) == ("failed", "clock")
    assert "the clock is wrong (it says 1970-01-01)" in str(answer["message"])
    assert pi.posts() == []


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.SystemTimeWarning")
def test_tls_that_fails_because_of_the_clock_says_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RA-08: with an impossible clock, a certificate that cannot be checked is the clock's fault."""
    authority = Authority(tmp_path)
    with living(tmp_path / "pi", tls=authority.context(days=-1)) as pi:
        monkeypatch.setattr(time, "time", lambda: 1000.0)
        answer = worker.refresh(fields_of(pi) | {"server_ca_file": str(authority.ca_file)})
        assert answer["reason"] == "clock"
        assert "timedatectl" in str(answer["hint"])


@pytest.mark.parametrize(
    ("days", "words"), [(-400, "400 days ahead of"), (400, "days behind")], ids=["+400 d", "-400 d"]
)
def test_a_certificate_that_only_our_clock_refuses_is_the_clocks_fault(tmp_path: Path, days: int, words: str) -> None:
    """A-07, RA-08: a possible clock that is a year off makes the certificate look expired; the status says so, and fails closed."""
    authority = Authority(tmp_path)
    with living(tmp_path / "pi", tls=authority.context(days=-1)) as pi:
        pi.environment["PI_AGENT_SERVER_CA_FILE"] = str(authority.ca_file)
        pi.answers.now = lambda channel, _: channel.sendall(reply(Date=formatdate(time.time() + days * 86400)))
        with pi.running():
            status = pi.state("failed")
            assert status["failure"]["reason"] == "clock"
            assert f"{words} what the server says, so the server's certificate" in status["sentence"]
            assert "timedatectl" in status["failure"]["hint"]
            assert status["failure"]["message"] in pi.log()
            assert pi.posts() == []


def test_a07_only_a_server_that_speaks_tls_is_asked_what_time_it_is() -> None:
    """A-07: what is said in plain text is anybody's word, and nobody is asked."""
    with serving(says(reply(Date=formatdate(NOW)))) as server:
        assert hearsay.server_time(server.url) is None
        assert server.connections == 0


def test_status_names_a_clock_that_differs_from_the_servers(pi: Living) -> None:
    """A-07: the offset is in the status, in words and in seconds, and as a metric; the token is good all the same."""
    pi.answers.now = lambda channel, _: channel.sendall(reply(Date=formatdate(time.time() + 7260, usegmt=True)))
    with pi.running():
        status = pi.state("ok")
        assert abs(status["clock"]["offset"] - 2 * HOUR - 60) < 5
        assert "the clock is 2 h behind the server" in status["clock"]["problem"]
        assert "warning    the clock is 2 h behind the server" in pi.run("status").stdout


def fields_of(pi: Living) -> dict[str, str]:
    """What the resident would hand to a worker."""
    from pi_agent.device.preparation import prepare

    flags = {"config": str(pi.home / "config.toml"), "runtime": pi.runtime}
    fields = prepare(flags | {name: str(pi.home / name) for name in ("state", "root")})
    return fields | {"action": "token", "audience": "", "refresh_token": "", "anchor": ""}
