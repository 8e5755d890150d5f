"""A week without a server, a night asleep: the resident's own loop, schedule and journal, with a clock that the test winds."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from device.resident import Home, a_home
from pi_agent.device import agent, api, clock, schedule
from pi_agent.device.allow import Peer
from pi_agent.device.local import Request
from pi_agent.device.tokens import Slot

WEEK = 7 * 86400.0
FAULTS = (
    ("dns", "the server's name is not known to DNS"),
    ("refused", "nothing listens at the server's address (connection refused)"),
    ("timeout", "no answer within 30 s"),
    ("answer", "the server answered 503"),
)
TOKEN = {"outcome": "token", "head": '{"access_token": "t", "expires_in": ', "tail": "}", "expires_in": "1800"}


class Wound(agent.Agent):
    """Lives in boot time that the test winds on; its workers answer at once, as ``answer`` says."""

    def __init__(self, settings: dict[str, str], rng: random.Random) -> None:
        self.now = 5000.0
        self.rng = rng
        self.is_down = True
        self.moments: list[float] = []
        super().__init__(settings)

    def _spawn(self, module: str, request: dict[str, str], now: float, purpose: object) -> None:
        assert isinstance(purpose, Slot)
        self.moments.append(now)
        reason, message = self.rng.choice(FAULTS)
        failure = {"outcome": "failed", "reason": reason, "message": message}
        self._finish(purpose, failure if self.is_down else TOKEN, now)

    def live(self, until: float) -> None:
        """The loop of ``run``, where nobody calls and nothing happens but time."""
        while self.now < until:
            self._on_time(self.now)
            self.now += max(self._nap(self.now), 0.001)


@pytest.fixture
def home() -> Iterator[Home]:
    with a_home("https://fleet.example/token") as home:
        yield home


@pytest.mark.parametrize("seed", range(2))
def test_ra01_g09_a_week_without_a_server(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Fewer than 1,500 attempts and 2,000 log lines, whatever the fault is each time; a token within one cap of its end."""
    rng = random.Random(seed)
    wound: list[Wound] = []
    monkeypatch.setattr(agent, "boot_seconds", lambda: wound[0].now if wound else 5000.0)
    monkeypatch.setattr(agent, "chance", rng.random)
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: clock.BUILT + 86400 + (wound[0].now if wound else 5000.0))
        living = Wound(home.fields(), rng)
        wound.append(living)
        living.live(5000.0 + WEEK)
        attempts = living.attempts
        said = capsys.readouterr().err.splitlines()
        living.is_down = False
        living.live(living.now + schedule.CAP)
        living._stop()
    assert 1000 < attempts < 1500
    assert 7 * 24 <= len(said) < 2000
    assert living.tokens.default.left(living.now) > 0
    assert api.state(living, living.now) == "ok"
    assert "Traceback" not in "".join(said)


def test_ra34_a_flapping_network_and_several_tokens_make_no_storm(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a new address at every turn, and four tokens are missing: still a second lies between two attempts."""
    wound: list[Wound] = []
    monkeypatch.setattr(agent, "boot_seconds", lambda: wound[0].now if wound else 5000.0)
    living = Wound(home.fields(), random.Random(5))
    wound.append(living)
    for number in range(3):
        living.tokens.find(f"https://{number}.example", "", living.now)
    for _ in range(60):
        living._try_failed(living.now, agent.NETWORK)
        living.live(living.now + 0.1)
    living._stop()
    assert len(living.moments) >= 50
    assert all(later - earlier >= 0.999 for earlier, later in pairwise(living.moments))


ANSWERED = {
    "refused": {"outcome": "refused", "reason": "invalid_client", "message": "revoked"},
    "pending": {"outcome": "pending", "reason": "authorization_pending", "message": ""},
    "later": {"outcome": "failed", "reason": "answer", "message": "the server answered 503", "retry_after": "3600"},
}


@pytest.mark.parametrize("answer", ANSWERED.values(), ids=ANSWERED)
def test_ra04_ra14_another_network_does_not_change_what_the_server_said(
    home: Home, monkeypatch: pytest.MonkeyPatch, answer: dict[str, str]
) -> None:
    """Refused, or told to come later: a network that comes up is no reason to ask again; a clock that is set is one."""
    monkeypatch.setattr(agent, "boot_seconds", lambda: 5000.0)
    living = Wound(home.fields(), random.Random(6))
    slot = living.tokens.default
    living._finish(slot, answer, living.now)
    due = slot.next
    living._try_failed(living.now, agent.NETWORK)
    assert slot.next == due > living.now + 2
    living._finish(slot, answer, living.now)  # and so it is when the network came up while the answer was on its way
    assert slot.next > living.now + 2
    living._try_failed(living.now, agent.ALL)
    assert slot.next <= living.now + 1
    living._stop()


@pytest.mark.parametrize("answer", ANSWERED.values(), ids=ANSWERED)
def test_ra04_ra14_only_root_and_the_agents_user_cut_a_back_off_short(
    home: Home, monkeypatch: pytest.MonkeyPatch, answer: dict[str, str]
) -> None:
    """POST /v1/refresh by anybody else neither beats Retry-After nor asks a server that has refused."""
    monkeypatch.setattr(agent, "boot_seconds", lambda: 5000.0)
    living = Wound(home.fields(), random.Random(7))
    slot = living.tokens.default
    living._finish(slot, answer, living.now)
    due = slot.next
    refresh = Request("POST", "/v1/refresh", {}, keep_alive=True)
    api.respond(living, refresh, Peer(living.uid + 1), living.now + 1, 0.0)
    assert slot.next == due > living.now + 2
    api.respond(living, refresh, Peer(0), living.now + 1, 0.0)
    assert slot.next == living.now + 1
    living._stop()


def test_ra17_a_board_that_sleeps_wakes_up_without_a_token(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """Boot time counts sleep: on waking the old token is not handed out for a moment, and the next one is fetched at once."""
    wound: list[Wound] = []
    monkeypatch.setattr(agent, "boot_seconds", lambda: wound[0].now if wound else 5000.0)
    living = Wound(home.fields(), random.Random(1))
    wound.append(living)
    living.is_down = False
    living.live(living.now + 10)
    assert living.tokens.default.left(living.now) > 0
    living.now += 3 * 3600
    request = Request("GET", "/v1/token", {}, keep_alive=True)
    answered = api.respond(living, request, Peer(0), living.now, 0.0)
    assert isinstance(answered, bytes)
    assert b" 503 " in answered.partition(b"\r\n")[0]
    before = living.attempts
    living._on_time(living.now)
    assert (living.attempts, living.tokens.default.left(living.now)) == (before + 1, 1800)
    living._stop()
