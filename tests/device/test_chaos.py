"""The reduced form of the crash sweep (``chaos.py``): the process is killed at every write, flush, link and rename."""

from __future__ import annotations

import shutil

import pytest

from device.chaos import SCENARIOS, Scenario, sweep

pytestmark = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize(
    ("calls", "fault"),
    [
        ("write", "error=ENOSPC"),
        ("fsync", "signal=KILL"),
        ("link,linkat", "signal=KILL"),
        ("rename,renameat,renameat2", "signal=KILL"),
    ],
)
def test_nothing_is_left_half_done(scenario: Scenario, calls: str, fault: str) -> None:
    """RA-18, RA-20, RA-21: old or new, never half, and the next run gets there."""
    for _ in sweep(scenario, calls, fault):
        pass
