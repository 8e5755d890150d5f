"""Late by its own rhythm."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pi_agent.fleet import registry, rhythm
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import Device
from pi_agent.fleet.rhythm import Rhythm

NOW = 1_795_221_900


def test_a_quick_one_is_missed_within_the_hour_and_a_weekly_one_is_left_in_peace() -> None:
    """Once the rhythm has settled, a device is due soon after its usual time, whatever that is."""
    for usual, at_most in ((900, 3600), (86400, 2 * 86400), (7 * 86400, 9 * 86400)):
        found = rhythm.first(usual)
        assert found is not None
        for _ in range(50):
            found = found.after(usual)
        assert usual < found.due(0) < at_most


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=60))
def test_no_history_makes_nonsense(gaps: list[int]) -> None:
    """Any gaps give a rhythm of at least a minute that is due after the last token."""
    found = rhythm.first(900)
    assert found is not None
    for gap in gaps:
        found = found.after(gap)
        assert found.usual >= rhythm.MIN_GAP - 8 and found.spread >= 0 and found.due(NOW) > NOW


def test_one_holiday_does_not_make_a_device_unmissable() -> None:
    """After a month of absence it is missed again within hours, not months."""
    found = Rhythm(900, 50).after(30 * 86400)
    assert found.due(0) < 12 * 3600


def test_the_housekeeper_learns_the_rhythm(app: Application) -> None:
    """From the tokens alone: after a few of them a device has one, and when they stop it is late."""
    device = Device.objects.create(client_id="pi-1", name="x", name_key="x", status="approved", created_at=NOW)
    for number in range(6):
        Device.objects.filter(pk=device.pk).update(auth_at=NOW + number * 900)
        assert rhythm.keep(NOW + number * 900 + 20) == 1
        assert rhythm.keep(NOW + number * 900 + 40) == 0
    last = NOW + 5 * 900
    device.refresh_from_db()
    assert (device.rhythm, device.rhythm_at) == (900, last)
    assert registry.find("late:true", now=last + 1000).total == 0
    assert registry.find("late:true", now=last + 2 * 3600).total == 1
    assert registry.find("late:none", now=last).total == 0
