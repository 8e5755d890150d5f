"""The schedule over days and over a fleet, with the scheduling code as it is: outages, restarts of everything, budgets."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from itertools import pairwise

from pi_agent.device import schedule
from pi_agent.device.tokens import Slot

DAY = 86400.0
LIFE = 1800.0


def attempt(slot: Slot, now: float, rng: random.Random, *, retry_after: str = "", token: bool) -> None:
    """What the resident does with one answer at ``now``."""
    slot.asked = now
    if token:
        slot.keep({"outcome": "token", "head": "", "tail": "", "expires_in": str(int(LIFE))}, rng.random())
    else:
        slot.fail({"outcome": "failed", "retry_after": retry_after}, now, rng.random())


def test_seven_days_without_a_server() -> None:
    """RA-01: a week's outage costs fewer than 1,500 attempts, and the token comes within one cap of the server's return."""
    worst_attempts, worst_return = 0, 0.0
    for seed in range(20):
        rng = random.Random(seed)
        slot = Slot("", "", 0.0)
        attempts = 0
        while slot.next < 7 * DAY:
            attempt(slot, slot.next, rng, token=False)
            attempts += 1
        worst_attempts = max(worst_attempts, attempts)
        worst_return = max(worst_return, slot.next - 7 * DAY)
    assert worst_attempts < 1500
    assert worst_return <= schedule.CAP


def simulate(boards: int, *, capacity: float, spread: float, seed: int) -> tuple[Counter[int], list[float]]:
    """Requests per second, and when each board had its token. A server serves ``capacity`` a second and says Retry-After."""
    rng = random.Random(seed)
    queue = []
    for number in range(boards):
        phase = (number * 0.6180339887498949) % 1 if seed == 0 else rng.random()
        first = schedule.first_attempt(0.0, phase=phase, spread=schedule.spread_at_start(20.0, spread))
        queue.append((first, number, Slot("", "", first)))
    heapq.heapify(queue)
    rate: Counter[int] = Counter()
    served: Counter[int] = Counter()
    done = []
    while queue:
        now, number, slot = heapq.heappop(queue)
        second = int(now)
        rate[second] += 1
        if served[second] < capacity:
            served[second] += 1
            done.append(now)
            continue
        attempt(slot, now, rng, retry_after="30", token=False)
        heapq.heappush(queue, (slot.next, number, slot))
    return rate, done


def test_a_hundred_thousand_boards_powered_on_at_once() -> None:
    """RA-33: the peak rate is at most twice the mean over the spread."""
    rate, _ = simulate(100_000, capacity=float("inf"), spread=60.0, seed=1)
    assert max(rate.values()) <= 2 * 100_000 / 60


def test_a_small_server_serves_all_of_them_in_ten_minutes() -> None:
    """RA-33: a server that manages 500 a second and says Retry-After has served 100,000 boards within 10 minutes."""
    _, done = simulate(100_000, capacity=500, spread=60.0, seed=2)
    assert len(done) == 100_000
    assert max(done) <= 600


def test_the_second_wave_is_no_wave() -> None:
    """RA-33: the refreshes of boards that all got their token in the same second are spread over a fifth of its life."""
    rng = random.Random(3)
    moments = Counter(int(schedule.refresh_at(0.0, LIFE, chance=rng.random())) for _ in range(100_000))
    assert max(moments) - min(moments) >= 0.19 * LIFE
    assert max(moments.values()) <= 2 * 100_000 / (0.2 * LIFE)


def test_ra34_only_a_success_that_lasts_ends_the_back_off() -> None:
    """Two good answers between failures are no reason to begin at two seconds again; a minute of them is."""
    slot = Slot("", "", 0.0)

    def window(now: float) -> float:
        """How long the slot waits at most, after a failure at ``now``."""
        slot.asked = now
        slot.fail({"outcome": "failed"}, now, 0.999)
        return round(slot.next - now)

    def success(now: float) -> None:
        attempt(slot, now, random.Random(0), token=True)

    assert [window(0), window(2), window(6)] == [2, 4, 8]
    success(14)
    success(15)
    assert (window(16), slot.failures) == (16, 1)
    success(40)
    success(70)
    assert window(99) == 32
    success(200)
    success(230)
    assert window(260) == 2


def test_a_flapping_network_makes_no_storm() -> None:
    """RA-34: however often the network comes and goes, there is at most one attempt a second."""
    rng = random.Random(4)
    slot = Slot("", "", 0.0)
    now, moments = 0.0, []
    while now < 600:
        if slot.next <= now:
            moments.append(now)
            attempt(slot, now, rng, token=False)
        slot.try_now(now)  # an address was added
        now += 0.1
    assert all(later - earlier >= schedule.SHORTEST_PAUSE - 1e-6 for earlier, later in pairwise(moments))
