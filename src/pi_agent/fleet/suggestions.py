"""What to type next: the grammar's own suggestions, with the tags, names and versions that the registry knows."""

from __future__ import annotations

from django.db.models import QuerySet

from pi_agent.catalogue import lower
from pi_agent.completing import Suggestion, complete
from pi_agent.fleet.models import Device, DeviceTag

MOST = 12
KNOWN = {"name": ("name_key", "name"), "serial": ("serial", "serial"), "id": ("client_id", "client_id")}


def suggest(text: str, cursor: int) -> list[Suggestion]:
    """At most a dozen suggestions for the word at the cursor: fields and devices, or after a colon values."""
    cursor = max(0, min(cursor, len(text)))
    word = text[:cursor].rpartition(" ")[2].lstrip("-(")
    field, colon, value = word.partition(":")
    typed = lower(value.rpartition(",")[2].strip('"'))
    known = {lower(field): _known(lower(field), typed)} if colon else {}
    found = complete(text, cursor, known)
    if not colon and word:
        names = complete(f"name:{word}", len(word) + 5, {"name": _known("name", lower(word))})
        found += [Suggestion(cursor - len(word), cursor, f"name:{one.text}", one.help) for one in names]
    return found[:MOST]


def _known(field: str, typed: str) -> list[str]:
    """Values of a field that begin as typed; an index finds them, so that typing stays quick with many devices."""
    if field == "tag":
        return _beginning(DeviceTag.objects.all(), "tag_key", "tag", typed)
    if field in KNOWN and typed:
        return _beginning(Device.objects.all(), *KNOWN[field], typed)
    if field == "agent":
        return list(Device.objects.exclude(agent_version=None).values_list("agent_version", flat=True)[:MOST])
    return []


def _beginning(rows: QuerySet[Device] | QuerySet[DeviceTag], key: str, shown: str, typed: str) -> list[str]:
    bounds = {f"{key}__gte": typed, f"{key}__lt": typed + "\U0010ffff"}
    found = rows.filter(**bounds).order_by(key).values_list(shown, flat=True)
    return list(dict.fromkeys(found[: MOST * 20]))[:MOST]
