"""The reduced form of the crash sweep (``chaos.py``): a write fails, the process is killed at a flush, link or rename, each in turn."""

from __future__ import annotations

import shutil

import pytest

from device.chaos import SCENARIOS, Scenario, sweep

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


WRITE, FLUSH = ("write", "error=ENOSPC"), ("fsync", "signal=KILL")
LINK, RENAME = ("link,linkat", "signal=KILL"), ("rename,renameat,renameat2", "signal=KILL")
REDUCED = {
    "setup": (WRITE, FLUSH, LINK, RENAME),
    "token file": (WRITE, RENAME),
    "rotation begins": (FLUSH,),
    "rotation ends": (WRITE, RENAME),
    "worker alone": (("write", "signal=KILL"), LINK),
}


@pytest.mark.parametrize(
    ("scenario", "calls", "fault"),
    [
        pytest.param(each, *disturbed, id="-".join((each.name, *disturbed)))
        for each in SCENARIOS
        for disturbed in REDUCED[each.name]
    ],
)
def test_nothing_is_left_half_done(scenario: Scenario, calls: str, fault: str) -> None:
    """RA-18, RA-20, RA-21: old or new, never half, and the next run gets there."""
    assert list(sweep(scenario, calls, fault))
