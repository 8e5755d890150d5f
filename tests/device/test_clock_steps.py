"""A clock that is set while the agent runs: noticed at once, named, and no token and no refresh is lost (RA-15, RA-16).

The machine's clock is never touched: the resident and its workers read one that a file shifts.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from device.resident import Agent, Home, a_home, until
from device.servers import reply, serving
from pi_agent import jws
from pi_agent.device import alarm, clock

HOUR, YEAR = 3600, 365 * 86400


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
        self._shift, self._bell = folder / "shift", folder / "bell"
        self._shift.write_text("0")
        os.mkfifo(self._bell)
        self.code = (
            f"import time; _real = time.time; time.time = lambda: _real() + float(open({str(self._shift)!r}).read())"
        )

    @property
    def rung(self) -> str:
        """Code for the resident: the kernel's word comes through a pipe, and it does not look for itself."""
        return f"""{self.code}
import os
from pi_agent.device import agent, alarm
agent.LONGEST_NAP = agent.CLOCK_NAP = 600.0
alarm.listen = lambda: os.open({str(self._bell)!r}, os.O_RDWR)
alarm.rang = lambda handle: bool(os.read(handle, 100))
"""

    def set(self, seconds: float) -> None:
        written = self._shift.with_suffix(".new")
        written.write_text(str(seconds))
        written.rename(self._shift)
        handle = os.open(self._bell, os.O_RDWR)
        os.write(handle, b"x")
        os.close(handle)


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
    with home.start(home.bend(shifted.code), first=shifted.rung) as agent:
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
        home.start(home.bend(shifted.code), first=f"{shifted.rung}\n{slow}") as agent,
    ):
        failure: dict[str, str] = until(lambda: (agent.status() or {}).get("failure") or {})
        assert failure["reason"] == "clock"
        assert "the clock is wrong: it says 1970-01-01" in (agent.status() or {})["clock"]["problem"]
        assert not [request for request in server.requests if request.line.startswith("POST")]
        until(lambda: is_asleep(agent))
        shifted.set(0)
        assert until(agent.token)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python tells of it from 3.13 on")
def test_ra15_the_kernels_alarm_is_armed_and_quiet() -> None:
    """A timer that is cancelled by a set clock: while nobody sets it, nothing is told, and reading it harms nobody."""
    handle = alarm.listen()
    assert handle is not None
    assert select.select([handle], [], [], 0) == ([], [], [])
    assert not alarm.rang(handle)
    told = Path(f"/proc/self/fdinfo/{handle}").read_text()
    assert "clockid: 0" in told
    assert "settime flags: 03" in told  # TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET
    os.close(handle)


def test_ra15_without_the_alarm_a_wrong_clock_is_looked_at_every_second() -> None:
    """Before Python 3.13, or where the kernel refuses: polling."""
    from pi_agent.device import agent

    assert agent.CLOCK_NAP <= 1.0 < agent.LONGEST_NAP <= 10.0
    assert clock.STEP <= 2.0
