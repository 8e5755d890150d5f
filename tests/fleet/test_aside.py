"""What makes the answer to a question about a large fleet quick: a count beside the page that it is for, times by table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from math import isqrt

import pytest
from django.db import DatabaseError, connection, transaction
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.fleet import registry
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.aside import THREADS, Assistants, aside
from pi_agent.fleet.models import Device

NOW = 1_764_000_000


def devices(number: int) -> None:
    Device.objects.bulk_create(
        Device(client_id=f"pi-{n}", name="x", name_key="x", created_at=NOW, model_key="2b") for n in range(number)
    )


def my_thread() -> str:
    return threading.current_thread().name


@pytest.fixture
def busy(app: Application) -> Iterator[None]:
    """Everybody who could ask aside waits for the end of the test."""
    assert Assistants.employed is app.django.assistants
    end, begun = threading.Event(), threading.Barrier(THREADS + 1)

    def wait() -> None:
        begun.wait(5)
        end.wait(5)

    answers = [aside(wait) for _ in range(THREADS)]
    begun.wait(5)
    yield
    end.set()
    for answer in answers:
        answer()


def test_it_is_asked_by_another_thread_at_once(app: Application) -> None:
    """Before anybody collects the answer."""
    asked = threading.Event()

    def question() -> str:
        asked.set()
        return my_thread()

    answer = aside(question)
    assert asked.wait(5)
    assert answer().startswith("aside")


def test_where_all_are_busy_it_is_asked_in_its_turn(busy: None) -> None:
    """By whoever wants to know, so that nobody waits for the questions of others."""
    assert aside(my_thread)() == my_thread()


def test_in_a_transaction_it_is_asked_on_the_same_connection(app: Application) -> None:
    """What was written there counts, though nobody else sees it yet."""
    with transaction.atomic():
        devices(300)
        assert registry.find("model:2b", now=NOW).total == 300
        assert aside(my_thread)() == my_thread()
        transaction.set_rollback(True)
    assert registry.find("model:2b", now=NOW).total == 0


@pytest.mark.parametrize("number", [0, 1, isqrt(101 * 300), isqrt(101 * 300) + 1, isqrt(101 * 300) + 2, 300])
def test_the_total_is_exact_on_both_sides_of_few_and_many(app: Application, number: int) -> None:
    """Few are known once they were found; many are counted beside the page; a page has the same devices in both ways."""
    devices(300)
    chosen = list(Device.objects.order_by("pk").values_list("pk", flat=True))[:number]
    Device.objects.filter(pk__in=chosen).update(model_key="3b")
    page = registry.find("model:3b", now=NOW)
    assert page.total == number
    assert [device.client_id for device in page.devices] == sorted(f"pi-{n}" for n in range(number))[:100]


def test_what_goes_wrong_there_is_the_error_of_whoever_asked(app: Application) -> None:
    """And the next question is answered, on a connection that works."""

    def wrong() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")

    def right() -> tuple[str, int]:
        return my_thread(), Device.objects.count()

    for _ in range(THREADS + 1):
        failed: Callable[[], None] = aside(wrong)
        with pytest.raises(DatabaseError):
            failed()
    for _ in range(THREADS + 1):
        name, found = aside(right)()
        assert (name.startswith("aside"), found) == (True, 0)


@given(st.integers(0, 253_402_300_799))
def test_a_time_is_written_as_rfc_3339_has_it(seconds: int) -> None:
    """In UTC, to the second, until the end of the year 9999."""
    assert registry.rfc3339(seconds) == datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
