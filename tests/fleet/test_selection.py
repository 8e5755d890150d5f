"""A query compiled to SQL finds what ``query.matches`` finds, over any fleet and any query (the pitfalls of operators)."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pi_agent import query as query_language
from pi_agent.catalogue import FIELDS, fold
from pi_agent.errors import QueryError
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.models import Device, DeviceTag
from pi_agent.fleet.selection import COLUMNS, condition

NOW = 1_764_000_000
DAY = 86400

# Text that trips a careless LIKE: its own wildcards and escape, capitals, letters that only some databases fold.
PIECES = ("kitchen", "Kitchen", "a_b", "50%", "back\\slash", "ÄRGER", "ärger", "\u0131", "ß", "\u212a", "x", "2b")
texts = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join)
times = st.integers(0, 40 * 24).map(lambda hours: NOW - hours * 3600)
maybe_times = st.none() | times

rows = st.fixed_dictionaries(
    {
        "name": texts,
        "model": st.none() | st.sampled_from(["2B", "3B+", "Zero 2 W", "CM4", "500+", "unknown (type 0x1c)"]),
        "memory_mib": st.none() | st.sampled_from([256, 512, 1024, 1025, 2048]),
        "serial": st.none() | st.sampled_from(["00000000c0ffee01", "10000000deadbeef", "c0ffee"]),
        "revision": st.none() | st.sampled_from(["a01041", "a02082"]),
        "pcb_revision": st.none() | st.sampled_from(["1.0", "1.1"]),
        "soc": st.none() | st.sampled_from(["BCM2836", "BCM2837"]),
        "maker": st.none() | st.sampled_from(["Sony UK", "Embest"]),
        "agent_version": st.none() | st.sampled_from(["0.1.0", "0.2.0-RC1"]),
        "status": st.sampled_from(["pending", "approved", "revoked"]),
        "key_protection": st.sampled_from(["file", "tpm"]),
        "overvoltage": st.none() | st.booleans(),
        "simulated": st.booleans(),
        "auth_at": maybe_times,
        "seen_at": maybe_times,
        "refused_at": maybe_times,
        "created_at": times,
        "tags": st.lists(st.sampled_from(["lab", "Lab-2", "site=a"]), max_size=2, unique_by=str.lower),
    }
)

TERMS = (
    "model:2b", "model:zero*", "model:2b,cm4", "model:none", "memory:1gb", "memory:>=512mb", "memory:<1gb", "memory:none",
    "memory:512mb..1gb", "serial:*c0ffee*", "serial:c0ffee", "serial:none", "revision:a0*", "rev:1.1", "soc:bcm2836", "maker:sony*",
    "agent:0.2.0-rc1", "agent:none", "status:pending", "key:tpm", "tag:lab", "tag:l*", "tag:none", "auth:1d", "auth:never",
    "auth:older:30d", "auth:2025-11-01..2025-11-20", "seen:7d", "refused:never", "created:older:7d", "overvoltage:true",
    "overvoltage:none", "simulated:false", "kitchen", "2b", "id:*1*", 'name:"a_b"', 'name:*"%"*', 'name:"50%"*', "name:*_*",
    'name:*"\\\\"*', "name:*ä*", "name:*Ä*", "name:*k*", "name:*ß*", "name:*",
)  # fmt: skip
queries = st.recursive(
    st.sampled_from(TERMS),
    lambda inner: (
        st.builds("-({})".format, inner)
        | st.builds("({} {})".format, inner, inner)
        | st.builds("({} OR {})".format, inner, inner)
    ),
    max_leaves=6,
)


def store(fleet: list[dict[str, Any]]) -> None:
    """Devices and tags as enrollment and operators would have stored them."""
    Device.objects.all().delete()
    for number, row in enumerate(fleet):
        columns = {name: value for name, value in row.items() if name != "tags"}
        keys = {
            "name_key": fold("name", row["name"]),
            "model_key": fold("model", row["model"]) if row["model"] else None,
        }
        device = Device.objects.create(client_id=f"pi-{number:016x}", **columns, **keys)
        DeviceTag.objects.bulk_create(
            DeviceTag(device=device, tag=tag, tag_key=fold("tag", tag)) for tag in row["tags"]
        )


def as_row(device: Device) -> dict[str, Any]:
    """A device as ``matches`` wants it: a value for each field of the catalogue."""
    values = {field: getattr(device, column) for field, column in COLUMNS.items()}
    return values | {"name": device.name, "model": device.model, "tag": [tag.tag for tag in device.tags.all()]}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(fleet=st.lists(rows, min_size=1, max_size=10), asked=st.lists(queries, min_size=8, max_size=8))
def test_the_database_agrees_with_the_language(app: Application, fleet: list[dict[str, Any]], asked: list[str]) -> None:
    """The same devices, for terms, negations, alternatives and brackets, with unknown values in every field."""
    store(fleet)
    for text in asked:
        query = query_language.parse(text, NOW)
        found = set(Device.objects.filter(condition(query)).values_list("client_id", flat=True))
        devices = Device.objects.prefetch_related("tags")
        assert found == {device.client_id for device in devices if query_language.matches(query, as_row(device))}, text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_text_is_a_query_or_a_query_error(app: Application, text: str) -> None:
    """What the parser lets through, the database can run (requirements B-20, D-09)."""
    try:
        query = query_language.parse(text, NOW)
    except QueryError:
        return
    assert list(Device.objects.filter(condition(query))) == []


def test_every_field_has_a_column() -> None:
    """A field that the catalogue offers is one that the registry has."""
    assert set(COLUMNS) | {"tag"} >= {name for name in FIELDS if name not in ("late",)}


def test_every_example_of_the_catalogue_runs(app: Application) -> None:
    """Each field with each of its example values, plain and negated."""
    for field in FIELDS.values():
        for value in (
            *field.values,
            "*x*" if field.kind in ("text", "known") else "",
            "none" if field.optional else "",
        ):
            if value and not (field.kind == "time" and value == "none"):
                text = (
                    f'{field.name}:"{value}"' if field.kind == "known" and "*" not in value else f"{field.name}:{value}"
                )
                try:
                    query = query_language.parse(f"{text} OR -{text}", NOW)
                except QueryError:
                    continue
                assert not Device.objects.filter(condition(query)).exists()
