"""Token buckets (requirement B-29), as values of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.fleet.limits import Limit, wait_of_source
from pi_agent.fleet.sources import client_behind, networks


def test_a_burst_then_the_rate() -> None:
    """Five at once, then one each two seconds; the wait that is named is the wait that is needed."""
    limit = Limit(rate=0.5, burst=5)
    assert [limit.wait("a", 100) for _ in range(6)] == [0, 0, 0, 0, 0, 2]
    assert limit.wait("a", 101) == 1
    assert limit.wait("a", 102) == 0
    assert limit.wait("b", 102) == 0


def test_a_clock_set_back_lends_nothing_and_takes_nothing() -> None:
    """An hour back, and the bucket is as full as it was."""
    limit = Limit(rate=1, burst=2)
    assert [limit.wait("a", 5000), limit.wait("a", 1400), limit.wait("a", 1400)] == [0, 0, 1]


def test_memory_is_bounded() -> None:
    """Only the keys seen last are remembered."""
    limit = Limit(rate=1, burst=1, keys=3)
    for number in range(100):
        limit.wait(str(number), 0)
    assert len(limit._buckets) == 3


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60), st.integers(1, 9))
def test_never_more_than_burst_and_rate_allow(gaps: list[float], burst: int) -> None:
    """However requests come, no more pass than the burst and what the rate refills, and none is locked out."""
    limit, now, passed = Limit(rate=0.1, burst=burst), 0.0, 0
    for gap in gaps:
        now += gap
        passed += limit.wait("a", now) == 0
    assert passed <= burst + now * 0.1 + 1e-6
    assert limit.wait("a", now + 10 * burst + 10) == 0


def test_b29_an_ipv6_network_is_one_place() -> None:
    """A host has 2^64 addresses of its own and still one share; IPv4 within IPv6 is IPv4; this machine never waits."""
    limit = Limit(rate=0.1, burst=2)
    assert [wait_of_source(limit, f"2001:db8:0:1::{number:x}", 0) > 0 for number in range(4)] == [0, 0, 1, 1]
    assert wait_of_source(limit, "2001:db8:0:2::1", 0) == 0
    assert [wait_of_source(limit, f"::ffff:192.0.2.{number}", 0) for number in range(4)] == [0, 0, 0, 0]
    assert [wait_of_source(limit, "fe80::1%eth0", 0) > 0 for _ in range(3)] == [0, 0, 1]
    assert [wait_of_source(limit, "uid 1000", 0) for _ in range(9)] == [0] * 9


def test_b29_a_proxy_is_known_on_a_socket_for_both_families() -> None:
    """A server that listens on [::] sees an IPv4 proxy as ::ffff:127.0.0.1: it is the same proxy."""
    proxies, named = networks(["127.0.0.1"]), [(b"x-forwarded-for", b"192.0.2.7")]
    for peer, client in (("127.0.0.1", "192.0.2.7"), ("::ffff:127.0.0.1", "192.0.2.7"), ("::ffff:192.0.2.1", None)):
        assert client_behind((peer, 1), named, proxies)[0] == (client or peer)


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("203.0.113.9, unknown", "10.0.0.1"),
        ("10.0.0.2", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
def test_c14_a_client_is_whom_the_last_proxy_of_ours_has_seen(said: str, client: str) -> None:
    """What stands before that was written by the client itself; what is no address names nobody."""
    headers = [(b"x-forwarded-for", part.encode()) for part in said.split(", ")]  # one header or many are the same
    assert client_behind(("10.0.0.1", 5), headers, networks(["10.0.0.0/8"]))[0] == client
    assert client_behind(("192.0.2.1", 5), headers, networks(["10.0.0.0/8"])) == ("192.0.2.1", 5)
