"""The catalogue says which fields are quick to ask about; the database has to agree."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from pi_agent import query as query_language
from pi_agent.catalogue import FIELDS, Field
from pi_agent.fleet import registry
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import Device
from pi_agent.fleet.selection import condition

NOW = 1_764_000_000
VALUES = {"size": "1gb", "time": "1d", "hex": "c0ffee01", "text": "kitchen", "known": "2b", "choice": "pending"}


@pytest.mark.parametrize("field", [field for field in FIELDS.values() if field.indexed], ids=lambda field: field.name)
def test_a_field_that_is_called_indexed_is_found_by_an_index(app: Application, field: Field) -> None:
    """Asked for one value, SQLite goes to the devices by an index and does not look at each of them."""
    assert connection.vendor == "sqlite"
    query = query_language.parse(f"{field.name}:{VALUES[field.kind]}", NOW)
    plan = Device.objects.filter(condition(query)).order_by().explain()
    assert "SEARCH fleet_device" in plan, plan


@pytest.mark.parametrize(
    ("late", "plan"), [(20, "SCAN fleet_device"), (2, "SEARCH fleet_device USING INDEX device_due_at")]
)
def test_many_are_counted_in_one_pass_and_few_by_an_index(app: Application, late: int, plan: str) -> None:
    """An outage makes most of a fleet late: going to each through an index would take seconds for a million."""
    for number in range(40):
        due = NOW - 1 if number < late else NOW + 1
        Device.objects.create(
            pk=number + 1, client_id=f"pi-{number}", name="x", name_key="x", created_at=NOW, due_at=due, model_key="2b"
        )
    with CaptureQueriesContext(connection) as asked:
        counts = registry.count_by("late:true", "model", now=NOW).counts
    assert counts == [("2B", late)]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {asked.captured_queries[-1]['sql']}")
        assert cursor.fetchone()[-1].startswith(plan)
