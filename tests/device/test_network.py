"""The network goes and comes: in a network namespace of its own the agent says so, and tries again the moment it is there."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from device.resident import Agent, Home, a_home, until

UNSHARE = ("unshare", "--net")
PATIENT = "from pi_agent.device import schedule; schedule.retry_at = lambda now, *_, **__: now + 500"


def _why_not() -> str:
    if not all(map(shutil.which, ("unshare", "nsenter", "ip"))):
        return "util-linux or iproute2 is not installed"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return f"no network of our own: {tried.stderr.strip()}" if tried.returncode else ""


pytestmark = pytest.mark.skipif(bool(_why_not()), reason=_why_not())


@pytest.fixture
def home() -> Iterator[Home]:
    with a_home("http://127.0.0.1:9/token") as home:
        yield home


def renew(agent: Agent, seconds: int) -> None:
    """Prolong an address, as a router's advertisement or a lease does it."""
    inside = ["nsenter", f"--target={agent.process.pid}", "--net"]
    lifetime = ["valid_lft", str(2 * seconds), "preferred_lft", str(seconds)]
    subprocess.run([*inside, "ip", "address", "change", "10.9.0.2/24", "dev", "lo", *lifetime], check=True)


def link(agent: Agent, state: str) -> None:
    inside = ["nsenter", f"--target={agent.process.pid}", "--net"]
    subprocess.run([*inside, "ip", "link", "set", "lo", state], check=True)


def failed(agent: Agent, reason: str, *, after: int) -> dict[str, Any]:
    """The status once an attempt beyond those ``after`` which there were has failed for ``reason``."""

    def found() -> dict[str, Any] | None:
        status = agent.status() or {}
        ours = status and status["attempts"] > after and (status["failure"] or {}).get("reason") == reason
        return status if ours else None

    return until(found) or {}


def settled(agent: Agent) -> dict[str, Any]:
    """The status once nothing is tried any more: what came up may be told in parts, each a reason to try."""
    before: dict[str, Any] = {}
    while True:
        status = agent.status() or {}
        is_idle = status.get("next_attempt_in") is not None
        if is_idle and before.get("attempts") == status["attempts"]:
            return status
        before = status if is_idle else {}
        time.sleep(0.5)


def test_ra02_ra34_the_network_comes_up(home: Home) -> None:
    """No route is said as it is; a new address is reason to try at once, long before the back-off ends."""
    with home.start(first=PATIENT, wrapper=UNSHARE) as agent:
        status = failed(agent, "unreachable", after=0)
        assert (status["attempts"], "unreachable" in status["failure"]["message"]) == (1, True)
        assert status["next_attempt_in"] > 400
        link(agent, "up")
        status = failed(agent, "refused", after=1)
        link(agent, "down")
        link(agent, "up")
        failed(agent, "refused", after=status["attempts"])


def test_ra01_an_address_that_is_prolonged_is_no_new_one(home: Home) -> None:
    """The kernel tells of every router advertisement as of a new address; a server that is down is not asked for it."""
    with home.start(first=PATIENT, wrapper=UNSHARE) as agent:
        link(agent, "up")
        status = failed(agent, "refused", after=0)
        renew(agent, 1000)
        failed(agent, "refused", after=status["attempts"])
        status = settled(agent)
        for seconds in (900, 1000, 1100):
            renew(agent, seconds)
            time.sleep(0.7)
        assert (agent.status() or {})["attempts"] == status["attempts"]
        link(agent, "down")
        link(agent, "up")
        failed(agent, "refused", after=status["attempts"])
