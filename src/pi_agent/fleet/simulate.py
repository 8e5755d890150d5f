"""A plausible fleet that does not exist: for trying queries, for load tests and for pictures.

Boards have real revision codes, about as common as the boards are, and rhythms as agents have them. A few wait for
approval, are late, were refused, or claim a serial that another one has. Every one is marked simulated; nobody holds
their private keys. The same seed gives the same fleet, if it is the first.

Devices, keys and audit lines are written in batches, each a transaction, so that whoever interrupts the work keeps a
whole fleet of those done so far.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from django.core.management.color import no_style
from django.db import connection, models, transaction

from pi_agent import __version__
from pi_agent.catalogue import fold
from pi_agent.fleet import audit, bulk
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Device, DeviceKey, DeviceTag
from pi_agent.fleet.progress import Progress
from pi_agent.fleet.rhythm import Rhythm
from pi_agent.jwk import public_key
from pi_agent.revision import Revision, decode_revision

BATCH = 10_000
DAY = 86400
CODES = """
    a01040:2 a01041:9 a21041:7 a02042:1 a22042:2 a02082:10 a22082:7 a32082:2 a52082:1 a020d3:10 9020e0:2 9000c1:7 900093:4
    902120:8 a03111:3 b03111:4 c03111:6 b03112:2 c03112:5 c03114:6 d03114:5 c03130:2 a03140:1 b03140:2 d03140:1 b04170:2
    c04170:7 d04170:6 e04171:1 c04180:1 d04190:1 000e:3 0010:3 900032:2 900021:1 a220a0:1 a02100:1
"""
RHYTHMS = {900: 70, 3600: 15, DAY: 12, 7 * DAY: 3}
STATUSES = {"approved": 940, "pending": 25, "rejected": 10, "quarantined": 5, "revoked": 20}
TAGS = {None: 40, "kiosk": 20, "lab": 10, "school": 12, "sensor": 12, "signage": 6}
SITES = {None: 30, "berlin": 20, "cambridge": 20, "cardiff": 15, "lagos": 10, "oslo": 5}
KEYS = {"file": 85, "firmware-otp": 9, "tpm": 6}
VERSIONS = {__version__: 80, "0.0.9": 15, "0.0.7": 5}
PLACES = [
    "attic", "aquarium", "balcony", "barn", "beehive", "boathouse", "cellar", "clinic", "depot", "dock", "doorbell",
    "garage", "garden", "greenhouse", "hall", "harbour", "kitchen", "library", "lighthouse", "lobby", "mill", "museum",
    "observatory", "office", "pier", "platform", "porch", "printer", "shed", "stable", "studio", "theatre", "tower",
    "vineyard", "weather-station", "workshop",
]  # fmt: skip
LATE, NEVER, REFUSED, COPIED = 0.02, 0.005, 0.01, 0.002
REFUSALS = (
    "the assertion's lifetime is over: the clock of the device may be wrong",
    "the board is not the one that enrolled",
)


@dataclass(frozen=True, slots=True)
class Made:
    """One device of the plan: values for its row by field, its tags, and its part of the audit log as (time, event)."""

    row: dict[str, Any]
    tags: tuple[str, ...]
    events: tuple[tuple[int, Event], ...]


def boards() -> dict[Revision, int]:
    """The revision codes that a fleet is made of, and how common each is."""
    pairs = (entry.split(":") for entry in CODES.split())
    return {decode_revision(code): int(weight) for code, weight in pairs}


def plan(count: int, *, days: int, now: int, seed: str) -> Iterator[Made]:
    """Devices in the order in which they came, over the ``days`` before ``now``."""
    dice = random.Random(seed)  # noqa: S311  # a fleet to look at, not a secret
    codes = boards()
    serials: list[str] = []
    for number in range(count):
        created = now - days * DAY + number * days * DAY // count
        revision = _pick(dice, codes)
        copy = bool(serials) and dice.random() < COPIED
        serial = (
            dice.choice(serials)
            if copy
            else f"{dice.getrandbits(32) if revision.soc != 'BCM2712' else dice.getrandbits(64):016x}"
        )
        if len(serials) < 1000:
            serials.append(serial)
        yield _device(dice, number, revision, serial, copy=copy, created=created, now=now)


def _pick(dice: random.Random, weights: dict[Any, int]) -> Any:
    return dice.choices(tuple(weights), tuple(weights.values()))[0]


def _device(
    dice: random.Random, number: int, revision: Revision, serial: str, *, copy: bool, created: int, now: int
) -> Made:
    client_id = f"pi-{dice.getrandbits(64):016x}"
    name = f"{dice.choice(PLACES)}-{number + 1:04}"
    status = "pending" if copy else _pick(dice, STATUSES)
    row: dict[str, Any] = {
        "client_id": client_id,
        "name": name,
        "name_key": fold("name", name),
        "status": status,
        "flag": f"serial {serial} is also enrolled by another device" if copy else "",
        "scopes": "device",
        "serial": serial,
        "revision": f"{revision.masked:04x}",
        "model": revision.type,
        "model_key": fold("model", revision.type),
        "memory_mib": revision.memory_mib,
        "soc": revision.soc,
        "pcb_revision": revision.pcb_revision,
        "maker": revision.manufacturer,
        "overvoltage": False,
        "warranty": dice.random() < 0.03,
        "simulated": True,
        "key_protection": _pick(dice, KEYS),
        "agent_version": _pick(dice, VERSIONS),
        "created_at": created,
        "seen_at": created,
    }
    row |= _times(dice, status, created, now)
    events = [(created, Event("device.enrolled", client_id, detail={"status": "pending", "simulated": True}))]
    if status != "pending":
        word = {"approved": "approve", "rejected": "reject", "quarantined": "quarantine", "revoked": "revoke"}[status]
        events.append(
            (created + dice.randrange(30, 3600), Event(f"device.{word}", client_id, detail={"from": "pending"}))
        )
    if copy:
        events.append((created, Event("device.same-serial", client_id, detail={"serial": serial})))
    tags = tuple(tag for tag in (_pick(dice, TAGS), _pick(dice, SITES)) if tag)
    return Made(row, tags, tuple(events))


def _times(dice: random.Random, status: str, created: int, now: int) -> dict[str, Any]:
    """When it last authenticated and was refused, and whether it is due. Whoever is not approved stopped some time ago."""
    if status in ("pending", "rejected"):
        return {"seen_at": min(now, created + dice.randrange(0, 3600))}
    usual = round(_pick(dice, RHYTHMS) * dice.uniform(0.9, 1.1))
    rhythm = Rhythm(usual, round(usual * dice.uniform(0.02, 0.15)))
    late = dice.random() < LATE
    ago = usual * dice.uniform(3, 60) if late else dice.uniform(0, usual)
    last = max(created, round(now - ago)) if status == "approved" else dice.randint(created, now)
    times: dict[str, Any] = {} if dice.random() < NEVER else {"auth_at": last, "seen_at": last}
    if times and status == "approved" and last > created:
        times |= {"rhythm": rhythm.usual, "rhythm_spread": rhythm.spread, "rhythm_at": last, "due_at": rhythm.due(last)}
    if status == "quarantined" or dice.random() < REFUSED:
        refused = dice.randint(last, now)
        times |= {"refused_at": refused, "seen_at": refused, "refused_reason": dice.choice(REFUSALS)}
    return times


# Writing.


def fill(count: int, *, days: int, now: int, seed: int, progress: Progress) -> None:
    """Add a simulated fleet to the registry."""
    devices = plan(count, days=days, now=now, seed=f"{seed} {Device.objects.count()}")  # a second fleet is another one
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            # The indexes of a million devices, so that none is read again.
            cursor.execute("PRAGMA cache_size = -1000000")
    while batch := list(islice(devices, BATCH)):
        with transaction.atomic():
            _write(batch)
        progress.add(len(batch))


def _write(batch: Sequence[Made]) -> None:
    first = (Device.objects.aggregate(last=models.Max("pk"))["last"] or 0) + 1
    numbered = list(enumerate(batch, first))
    _insert(Device, ({"id": pk, **made.row} for pk, made in numbered))
    _number_on()
    _insert(DeviceKey, (_key(pk, made.row["created_at"]) for pk, made in numbered))
    _insert(
        DeviceTag,
        ({"device": pk, "tag": tag, "tag_key": fold("tag", tag)} for pk, made in numbered for tag in made.tags),
    )
    end = batch[-1].row["created_at"]
    lines = sorted(((min(at, end), event) for made in batch for at, event in made.events), key=lambda line: line[0])
    audit.append(((at, event) for at, event in lines), actor=Actor("simulation", "pi-fleet simulate"))


def _number_on() -> None:
    """Let the next device that enrolls get a number of its own: PostgreSQL counts only those that it gave itself."""
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), [Device]):
            cursor.execute(statement)


def _key(device: int, created: int) -> dict[str, Any]:
    public = public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
    return {"device": device, "kid": public.kid, "alg": "ES256", "jwk": json.dumps(public.jwk), "created_at": created}


def _insert(model: type[models.Model], rows: Iterator[dict[str, Any]]) -> None:
    fields = [field for field in model._meta.concrete_fields if not field.primary_key or model is Device]
    blank = {field.name: field.get_default() for field in fields}
    columns = [str(field.column) for field in fields]
    bulk.insert(model._meta.db_table, columns, (tuple((blank | row).values()) for row in rows))
