"""When the next attempt is: drawn over every chance, so that no board is early and no fleet is in step."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.device import schedule
from pi_agent.device.schedule import FAILED, PENDING, REFUSED

NOW = 1000.0
CHANCE = st.floats(0, 1, exclude_max=True)


@given(chance=CHANCE, life=st.floats(10, 86400))
def test_ra01_a_token_is_renewed_at_half_its_life_give_or_take_a_tenth(chance: float, life: float) -> None:
    """Between 40 and 60 % of the life, counted from before the request was sent (RA-13)."""
    at = schedule.refresh_at(NOW, life, chance=chance)
    assert NOW + 0.4 * life <= at <= NOW + 0.6 * life


@given(chance=CHANCE, life=st.floats(1, 2))
def test_ra34_even_a_token_of_a_second_is_not_renewed_at_once(chance: float, life: float) -> None:
    """A server that gives tokens of a second is asked once a second at most."""
    assert schedule.refresh_at(NOW, life, chance=chance) >= NOW + schedule.SHORTEST_PAUSE


@given(
    outcome=st.sampled_from([FAILED, REFUSED, PENDING, "anything"]),
    failures=st.integers(1, 10**6),
    chance=CHANCE,
    after=st.none() | st.floats(-1e9, 1e9),
)
def test_ra34_no_attempt_follows_another_at_once(
    outcome: str, failures: int, chance: float, after: float | None
) -> None:
    """At least a second, and at most six hours and a bit, lie between two attempts, whatever the server says."""
    pause = schedule.retry_at(NOW, outcome, failures, chance=chance, retry_after=after) - NOW
    assert schedule.SHORTEST_PAUSE <= pause <= max(schedule.MAX_RETRY_AFTER, schedule.REFUSED_CAP) * 1.1


@given(failures=st.integers(1, 10**6), chance=CHANCE)
def test_ra01_the_window_doubles_to_ten_minutes(failures: int, chance: float) -> None:
    """Full jitter: anywhere in a window of 2, 4, 8 ... 600 seconds."""
    pause = schedule.retry_at(0.0, FAILED, failures, chance=chance)
    assert pause <= max(schedule.SHORTEST_PAUSE, min(schedule.CAP, schedule.BASE * 2 ** min(failures - 1, 20)))


def test_ra01_a_week_without_a_server_is_an_attempt_every_seven_minutes() -> None:
    """Between half the cap and the cap: about 1,350 attempts in seven days, and no more with time."""
    now, attempts = 0.0, 0
    while now < 7 * 86400:
        attempts += 1
        now = schedule.retry_at(now, FAILED, attempts, chance=0.5)
    assert 1300 < attempts < 1400


@given(failures=st.integers(1, 50), chance=CHANCE)
def test_ra14_a_refused_device_asks_slowly(failures: int, chance: float) -> None:
    """Five minutes at first, an hour at most, +-10 %."""
    pause = schedule.retry_at(0.0, REFUSED, failures, chance=chance)
    assert 270 <= pause < 3961
    if failures > 4:
        assert pause >= 3240


@given(failures=st.integers(1, 50), chance=CHANCE)
def test_a_pending_device_asks_often_enough_to_please_and_slowly_enough(failures: int, chance: float) -> None:
    """Within seconds at first, never less often than every two minutes."""
    pause = schedule.retry_at(0.0, PENDING, failures, chance=chance)
    assert 2.5 <= pause <= 120


@pytest.mark.parametrize("outcome", [FAILED, REFUSED, PENDING])
@pytest.mark.parametrize(
    ("after", "least"), [(None, 0), (-5, 0), (0, 0), (30, 30), (3600, 3600), (10**9, 21600), (float("inf"), 21600)]
)
def test_ra04_retry_after_is_obeyed_up_to_six_hours(outcome: str, after: float | None, least: float) -> None:
    """The longer of our pause and the server's, with up to a tenth on top; negative ones are nothing."""
    for chance in (0.0, 0.5, 0.999):
        pause = schedule.retry_at(0.0, outcome, 1, chance=chance, retry_after=after)
        assert pause >= least
        assert pause <= max(schedule.retry_at(0.0, outcome, 1, chance=chance), least * 1.1)


@given(phase=CHANCE, spread=st.floats(0, 3600))
def test_ra33_the_first_attempt_lies_in_the_spread(phase: float, spread: float) -> None:
    """Every device has its own place in it, and no spread means now."""
    assert NOW <= schedule.first_attempt(NOW, phase=phase, spread=spread) <= NOW + spread
    assert schedule.first_attempt(NOW, phase=phase, spread=0) == NOW


def test_ra33_a_fleet_does_not_move_in_step() -> None:
    """10,000 boards that refresh together are spread over a fifth of the life after one refresh."""
    moments = [schedule.refresh_at(0.0, 1800, chance=number / 10000) for number in range(10000)]
    assert statistics.pstdev(moments) > 1800 * 0.05
    assert max(moments) - min(moments) > 1800 * 0.19
