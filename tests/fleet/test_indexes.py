"""The catalogue says which fields are quick to ask about; the database has to agree."""

from __future__ import annotations

import pytest
from django.db import connection

from pi_agent import query as query_language
from pi_agent.catalogue import FIELDS, Field
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
