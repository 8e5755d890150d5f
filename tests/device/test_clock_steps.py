"""A clock that is set while the agent runs: noticed at once, named, and no token and no refresh is lost (RA-15, RA-16).

The machine's clock is never touched: the resident and its workers read one that a file shifts.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from device.living import living
from device.resident import Agent, Home, a_home, until
from device.servers import reply, serving
from pi_agent import jws
from pi_agent.device.agent import LONGEST_NAP

HOUR, YEAR = 3600, 365 * 86400
UNSEEN = "\nfrom pi_agent.device import agent; agent.LONGEST_NAP = 600.0"  # it does not look for itself


@pytest.fixture
def home() -> Iterator[Home]:
    """At a server that believes assertions with its own time only."""

    def judging(channel: Any, request: Any) -> None:
        date = formatdate(time.time(), usegmt=True)
        if request.line.startswith("GET"):
            channel.sendall(reply({}, status=404, Date=date))
            return
        fits = abs(jws.parse(request.form["assertion"]).claims["iat"] - time.time()) <= 60
        good, bad = reply(Date=date), reply({"error": "invalid_grant"}, status=400, Date=date)
        channel.sendall(good if fits else bad)

    with serving(judging) as server, a_home(server.url + "/token", issuer=server.url) as home:
        yield home


class Shifted:
    """A clock that reads another time than the machine's, from the moment it is ``set``."""

    def __init__(self, folder: Path) -> None:
        self._shift = folder / "shift"
        self._shift.write_text("0")
        self.alarm, self._bell = os.pipe()
        self.code = (
            f"import time; _real = time.time; time.time = lambda: _real() + float(open({str(self._shift)!r}).read())"
        )

    def set(self, seconds: float) -> None:
        written = self._shift.with_suffix(".new")
        written.write_text(str(seconds))
        written.rename(self._shift)
        os.write(self._bell, b"x")


def is_asleep(agent: Agent) -> bool:
    """It has not been awake for half a second."""
    before = _waking(agent)
    time.sleep(0.5)
    return _waking(agent) == before


def _waking(agent: Agent) -> str:
    lines = Path(f"/proc/{agent.process.pid}/status").read_text().splitlines()
    return next(line for line in lines if line.startswith("voluntary_ctxt_switches"))


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (-YEAR * 50, "set back by"),
        (-YEAR, "set back by 365 days"),
        (-HOUR, "set back by 60 min"),
        (-300, "set back by 5 min"),
        (300, "set forward by 5 min"),
        (YEAR, "set forward by 365 days"),
    ],
    ids=["1970s", "-1y", "-1h", "-5min", "+5min", "+1y"],
)
def test_ra15_ra16_the_clock_is_set_while_it_runs(home: Home, tmp_path: Path, shift: int, words: str) -> None:
    """The kernel's word wakes it, the step is told, the token's life is what it was, and the next refresh succeeds."""
    shifted = Shifted(tmp_path)
    with home.start(home.bend(shifted.code), first=shifted.code + UNSEEN, alarm=shifted.alarm) as agent:
        assert until(agent.token)
        until(lambda: is_asleep(agent))
        shifted.set(shift)
        until(lambda: words in agent.said())
        status, members = agent.ask("/v1/token")
        assert (status, 1700 < members["expires_in"] <= 1800) == (200, True)
        found = agent.status()
        assert found is not None
        assert (found["state"], "the clock is" in found["clock"]["problem"]) == ("ok", True)
        assert found["warnings"] == [found["clock"]["problem"]]
        assert found["clock"]["problem"] in agent.said()
        until(lambda: agent.again() or (agent.status() or {})["refreshes"] >= 2)  # type: ignore[func-returns-value]
        after = agent.status()
        assert after is not None
        assert (after["state"], after["failures"], abs(after["clock"]["offset"] + shift) < 15) == ("ok", 0, True)
        shifted.set(0)
        until(lambda: agent.said().count("the clock was set") == 2)
        assert (agent.status() or {})["warnings"] == []


def test_ra15_a_board_that_boots_in_1970_asks_as_soon_as_its_clock_is_set(tmp_path: Path) -> None:
    """Nothing is signed in 1970 at a server that tells no time; the step makes it ask at once, not when the back-off ends."""
    shifted = Shifted(tmp_path)
    shifted.set(-time.time() + 1000)
    slow = "from pi_agent.device import schedule; schedule.retry_at = lambda now, *_, **__: now + 500"
    with (
        serving(lambda channel, _: channel.sendall(reply())) as server,
        a_home(server.url + "/token", issuer=server.url) as home,
        home.start(home.bend(shifted.code), first=f"{shifted.code}{UNSEEN}\n{slow}", alarm=shifted.alarm) as agent,
    ):
        failure: dict[str, str] = until(lambda: (agent.status() or {}).get("failure") or {})
        assert failure["reason"] == "clock"
        assert "the clock is wrong: it says 1970-01-01" in (agent.status() or {})["clock"]["problem"]
        assert not [request for request in server.requests if request.line.startswith("POST")]
        until(lambda: is_asleep(agent))
        shifted.set(0)
        assert until(agent.token)


def test_ra15_a_clock_that_is_set_while_an_attempt_is_under_way(tmp_path: Path) -> None:
    """The attempt began in the wrong time and comes to nothing; the next is made at once, not when the back-off ends."""
    shifted, answers = Shifted(tmp_path), threading.Event()
    slow = "from pi_agent.device import schedule; schedule.retry_at = lambda now, *_, **__: now + 500"

    def first_fails(channel: Any, _: Any) -> None:
        is_first = not answers.is_set()
        answers.wait(20)
        channel.sendall(reply(status=503) if is_first else reply())

    with (
        serving(first_fails) as server,
        a_home(server.url + "/token", issuer=server.url) as home,
        home.start(home.bend(shifted.code), first=f"{shifted.code}{UNSEEN}\n{slow}", alarm=shifted.alarm) as agent,
    ):
        until(lambda: server.requests)
        shifted.set(HOUR)
        until(lambda: "the clock was set forward by 60 min" in agent.said())
        answers.set()
        assert until(agent.token)
        assert len(server.requests) == 2


def test_ra15_the_kernel_tells_the_resident_when_the_clock_is_set(tmp_path: Path) -> None:
    """What `pi-agent run` leaves to it is a timer that a set clock cancels, and that no worker and no hook gets.

    That one arming lasts for ever was seen on a kernel whose clock was set nine times; here nobody may set it.
    """
    with living(tmp_path) as board, board.running() as process:
        fds = Path(f"/proc/{process.pid}/fd")
        timers = [fd.name for fd in fds.iterdir() if str(fd.readlink()) == "anon_inode:[timerfd]"]
        assert len(timers) == 1
        told = dict(line.split(":", 1) for line in (fds.parent / "fdinfo" / timers[0]).read_text().splitlines())
        assert told["clockid"].strip() == "0"  # CLOCK_REALTIME
        assert told["settime flags"].strip() == "03"  # TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
        assert int(told["flags"], 8) & (os.O_CLOEXEC | os.O_NONBLOCK) == os.O_CLOEXEC | os.O_NONBLOCK


def test_ra15_without_the_kernels_word_the_clock_is_looked_at(home: Home, tmp_path: Path) -> None:
    """Where there is no such timer, a step is noticed when a nap ends, which is after ten seconds at most."""
    shifted = Shifted(tmp_path)
    assert LONGEST_NAP <= 10.0
    short = "\nfrom pi_agent.device import agent; agent.LONGEST_NAP = 0.2"
    with home.start(home.bend(shifted.code), first=shifted.code + short) as agent:
        assert until(agent.token)
        shifted.set(HOUR)
        until(lambda: "the clock was set forward by 60 min" in agent.said())
