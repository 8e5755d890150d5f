"""What operators do to devices: many at once, and never more than they were shown.

A change is chosen by a query, or by ids, and happens in one transaction with an audit line for each device. It is held
three ways: by ``most``, the number of devices the operator expects; by ``selection``, which a preview gives and which
names exactly the devices it showed and how they stood; and by ``version``, the state of a single device as it was read.
What does not hold is a ConflictError, and an audit line of its own. Devices that are past an action stay as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from django.db import transaction
from django.db.models import Count, Max, QuerySet

from pi_agent import query as query_language
from pi_agent.catalogue import fold
from pi_agent.errors import ConflictError, QueryError, UsageError
from pi_agent.fleet import audit
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Device, DeviceTag, with_parts
from pi_agent.fleet.selection import condition

MAX_SHOWN = 1000
MAX_IDS = 1000
MAX_TAG = 64
PREVIEW_SECONDS = 3600
BATCH = 500
TAGGED, ROTATION = "tagged", "asked for a new key"  # what becomes of a device whose status stays
TURNED_AWAY = ("rejected", "quarantined", "revoked")


@dataclass(frozen=True, slots=True)
class Action:
    """Something an operator does to devices: from one of ``sources`` to ``target``. ``role`` is who may."""

    name: str
    sources: tuple[str, ...]
    target: str
    role: str = "approver"


ACTIONS = {
    action.name: action
    for action in (
        Action("approve", ("pending", "rejected"), "approved"),
        Action("reject", ("pending",), "rejected"),
        Action("quarantine", ("approved",), "quarantined"),
        Action("release", ("quarantined",), "approved"),
        Action("revoke", ("pending", "approved", "quarantined", "rejected"), "revoked", "admin"),
    )
}


class StaleError(ConflictError):
    """The device is not as it was read."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, or would be: to ``count`` of ``matched`` devices, of which ``changed`` are the first.

    ``stays`` has how many keep which status, which the action does not start from.
    ``selection`` stands for these devices as they are now; ``target`` is the status they get, or what else happens to them.
    ``tokens_until`` is when the last access token ends that devices which are turned away may still hold, None without one.
    """

    meaning: str
    target: str
    matched: int
    count: int
    changed: Sequence[Device]
    selection: str
    tokens_until: int | None = None
    stays: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Target:
    """The devices of a choice: their rows, what was asked in words and as text, and when its ages count from."""

    rows: QuerySet[Device]
    meaning: str
    text: str
    as_of: int

    def selection(self) -> str:
        digest, count = hashlib.sha256(), 0
        for client_id, status in self.rows.values_list("client_id", "status").iterator(5000):
            digest.update(f"{client_id} {status}\n".encode())
            count += 1
        return f"{self.as_of}-{count}-{digest.hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The devices a change is about: by a query text, or by ids, and by what was promised about them."""

    text: str = ""
    ids: tuple[str, ...] = ()
    most: int | None = None
    selection: str = ""
    version: str = ""

    def resolve(self, now: int) -> Target:
        """The devices, as of their preview if there was one. Raises QueryError, UsageError or ConflictError."""
        if self.ids:
            if self.text or len(self.ids) > MAX_IDS:
                raise UsageError(f"name either a query or 1 to {MAX_IDS} ids")
            rows = Device.objects.filter(client_id__in=self.ids)
            return Target(rows.order_by("client_id"), "the devices selected", f"{len(self.ids)} ids", self._as_of(now))
        if not self.text.strip():
            raise QueryError("an action needs a query", hint="id:* is every device", suggestion="id:*")
        query = query_language.parse(self.text, self._as_of(now))
        return Target(
            Device.objects.filter(condition(query)).order_by("client_id"), query.meaning(), str(query), query.now
        )

    def _as_of(self, now: int) -> int:
        if not self.selection:
            return now
        seconds = self.selection.partition("-")[0]
        as_of = int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 12 else 0
        if not now - PREVIEW_SECONDS <= as_of <= now:
            raise ConflictError("the preview is too old", hint="look at the devices again")
        return as_of


def narrowed(text: str, status: str) -> str:
    """The query text for those devices of ``text`` that have a status; all of them when it is empty."""
    if not status:
        return text
    return f"({text}) status:{status}" if text.strip() else f"status:{status}"


def version(device: Device) -> str:
    """The state that operators change, as a digest: equal as long as nobody has changed it."""
    tags = sorted(device.tag_names)
    state = [device.client_id, device.name, device.status, device.status_reason, device.flag, device.scopes, tags]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def preview(name: str, chosen: Chosen, *, now: int) -> Change:
    """What an action would do now. Raises as ``act`` does, and changes nothing."""
    action = _action(name)
    target = chosen.resolve(now)
    willing = target.rows.filter(status__in=action.sources)
    shown = with_parts(willing[:MAX_SHOWN])
    count = len(shown) if len(shown) < MAX_SHOWN else willing.count()
    until = willing.aggregate(last=Max("token_until"))["last"] if action.target in TURNED_AWAY else None
    matched = target.rows.count()
    others = (
        target.rows.exclude(status__in=action.sources).order_by("status") if matched > count else Device.objects.none()
    )
    stays = dict(others.values_list("status").annotate(number=Count("*")))
    return Change(target.meaning, action.target, matched, count, shown, target.selection(), until, stays)


def preview_of_any(what: str, chosen: Chosen, *, now: int) -> Change:
    """Which devices would be changed by what can be done to a device in any status."""
    target = chosen.resolve(now)
    shown, count = with_parts(target.rows[:MAX_SHOWN]), target.rows.count()
    return Change(target.meaning, what, count, count, shown, target.selection())


def act(name: str, chosen: Chosen, *, reason: str, actor: Actor, now: int) -> Change:
    """Do an action. Raises UsageError, QueryError, and ConflictError when not exactly what was promised would happen."""
    action = _action(name)
    if not reason:
        raise UsageError("an action needs a reason", hint="say why, with --reason; it is kept in the audit log")

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        willing = [row for row in rows if row.status in action.sources]
        values: dict[str, Any] = {"status": action.target, "status_reason": reason}
        values |= {"flag": ""} if action.target == "approved" else {"due_at": None}  # somebody has looked twice
        for batch in _batches(willing):
            Device.objects.filter(pk__in=[row.pk for row in batch]).update(**values)
        return willing, [{"from": row.status, "to": action.target, "reason": reason} for row in willing]

    return _change(f"device.{name}", action.target, chosen, edit, actor=actor, now=now)


def rotate_keys(chosen: Chosen, *, reason: str, actor: Actor, now: int) -> Change:
    """Ask devices for new keys: each is told with its next token. Raises as ``act`` does."""
    if not reason:
        raise UsageError("an action needs a reason", hint="say why, with --reason; it is kept in the audit log")

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        for batch in _batches(rows):
            Device.objects.filter(pk__in=[row.pk for row in batch]).update(rotation_at=now)
        return rows, [{"reason": reason}] * len(rows)

    return _change("device.rotate-key", ROTATION, chosen, edit, actor=actor, now=now)


def tag(chosen: Chosen, *, add: Iterable[str], remove: Iterable[str], reason: str, actor: Actor, now: int) -> Change:
    """Give tags to devices and take others away. Raises as ``act`` does."""
    new, old = ({fold("tag", one): one for one in map(_tag, texts)} for texts in (add, remove))
    if (not new and not old) or new.keys() & old.keys():
        raise UsageError("name tags to add or to remove, and none of them twice", hint="pi-fleet tag QUERY +kiosk -lab")

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        for batch in _batches(rows):
            _retag([row.pk for row in batch], new, old)
        for row in rows:
            del row.tag_names  # they are asked for again
        detail: dict[str, object] = {"added": list(new.values()), "removed": list(old.values()), "reason": reason}
        return rows, [detail] * len(rows)

    return _change("device.tag", TAGGED, chosen, edit, actor=actor, now=now)


def _tag(text: str) -> str:
    if not text or not text.isprintable() or len(text) > MAX_TAG or text != text.strip():
        raise UsageError(f"a tag is 1 to {MAX_TAG} printable characters")
    return text


def _retag(keys: list[int], new: dict[str, str], old: dict[str, str]) -> None:
    DeviceTag.objects.filter(device__in=keys, tag_key__in=old).delete()
    rows = [DeviceTag(device_id=key, tag=text, tag_key=folded) for key in keys for folded, text in new.items()]
    DeviceTag.objects.bulk_create(rows, ignore_conflicts=True)


def _action(name: str) -> Action:
    if name not in ACTIONS:
        raise UsageError(f"there is no action {name!r}", hint=f"the actions are {', '.join(ACTIONS)}")
    return ACTIONS[name]


Edit = Callable[[list[Device]], tuple[list[Device], list[dict[str, object]]]]


def _change(event: str, what: str, chosen: Chosen, edit: Edit, *, actor: Actor, now: int) -> Change:
    target = chosen.resolve(now)
    try:
        with transaction.atomic():
            rows = _hold(target, chosen)
            changed, details = edit(rows)
            events = [Event(event, row.client_id, detail=detail) for row, detail in zip(changed, details, strict=True)]
            audit.record(events, actor=actor, now=now)
    except ConflictError as error:
        detail = {"query": target.text[:500], "max": chosen.most, "why": str(error)}
        audit.record([Event(event, "", "refused", detail)], actor=actor, now=now)
        raise
    until = max((row.token_until or 0 for row in changed), default=0) if what in TURNED_AWAY else 0
    stays = Counter(row.status for row in rows) - Counter(row.status for row in changed)
    return Change(target.meaning, what, len(rows), len(changed), changed[:MAX_SHOWN], "", until or None, stays)


def _hold(target: Target, chosen: Chosen) -> list[Device]:
    """The devices, held until the transaction ends. Raises ConflictError unless they are what was promised."""
    if chosen.selection and target.selection() != chosen.selection:
        raise ConflictError(
            "the devices are not the ones that were shown", hint="look at them again; nothing has changed"
        )
    most = chosen.most
    if most is None:
        most = len(chosen.ids) or (target.rows.count() if chosen.selection else 1)
    rows = with_parts(target.rows.select_for_update()[: most + 1])
    if len(rows) > most:
        raise ConflictError(
            f"{target.rows.count()} devices match, more than {most}", hint="look at them first, then raise --max"
        )
    if chosen.version and (len(rows) != 1 or version(rows[0]) != chosen.version):
        raise StaleError("the device was changed since you looked at it", hint="look at it again")
    return rows


def refused(name: str, why: str, *, actor: Actor, now: int) -> None:
    """Note that somebody was not allowed an action."""
    audit.record([Event(f"device.{name}", "", "refused", {"why": why})], actor=actor, now=now)


def _batches(rows: Iterable[Device]) -> Iterator[list[Device]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch
