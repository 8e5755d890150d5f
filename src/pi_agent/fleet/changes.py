"""What operators do to devices: many at once, and never more than they were shown.

A change is chosen by a query, or by ids, and has an audit line for each device. It is held three ways: by ``most``, the
number of devices the operator expects; by ``selection``, which a preview gives and which names exactly the devices it
showed and how they stood; and by ``version``, the state of a single device as it was read. What does not hold is a
ConflictError, and an audit line of its own. Devices that are past an action stay as they are.

All of that holds for the moment in which a change begins. Up to BATCH devices are changed in that transaction, more of
them in one transaction after the other, so that nobody's token has to wait for them all.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import DatabaseError, OperationalError, connection, transaction
from django.db.models import Count, Exists, Max, OuterRef, Q, QuerySet

from pi_agent import query as query_language
from pi_agent.catalogue import STATUSES, fold
from pi_agent.errors import ConflictError, QueryError, UsageError
from pi_agent.fleet import audit, database
from pi_agent.fleet.actions import ACTIONS, FORGOTTEN, TURNED_AWAY, Action
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import Device, DeviceTag, with_parts
from pi_agent.fleet.selection import condition
from pi_agent.fleet.shown import fingerprint

MAX_SHOWN = 1000
MAX_IDS = 1000
MAX_TAG = MAX_NAME = 64
PREVIEW_SECONDS = 3600
ANY_VERSION = "*"  # RFC 9110 section 13.1.1: of whatever is there
BATCH = 500
STEP_TRIES = 3
TAGGED, ROTATION, NAMED = "tagged", "asked for a new key", "named so"  # what becomes of a device whose status stays


class StaleError(ConflictError):
    """The device is not as it was read."""


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, or would be: to ``count`` of ``matched`` devices, of which ``changed`` are the first.

    ``stays`` has how many keep which status, which the action does not start from, or how many are as they shall be.
    ``selection`` stands for these devices as they are now; ``target`` is the status they get, or what else happens to them.
    ``tokens_until`` is when the last access token ends that devices which are turned away may still hold, None without one;
    where devices are forgotten, the last one of those that stay because of it.
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
        return f"{self.as_of}-{fingerprint(self.rows.values_list('client_id', 'status').iterator(5000))}"


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

    def unknown(self) -> list[str]:
        """Those of ``ids`` that no device has."""
        known = (
            set(Device.objects.filter(client_id__in=self.ids).values_list("client_id", flat=True)) if self.ids else ()
        )
        return [one for one in dict.fromkeys(self.ids) if one not in known]

    def _as_of(self, now: int) -> int:
        if not self.selection:
            return now
        seconds = self.selection.partition("-")[0]
        as_of = int(seconds) if seconds.isascii() and seconds.isdigit() and len(seconds) < 12 else 0
        if not now - PREVIEW_SECONDS <= as_of <= now:
            raise ConflictError("the preview is too old", hint="look at the devices again")
        return as_of


def narrowed(text: str, status: str, now: int) -> str:
    """The query text for those devices of ``text`` that have a status; all of them when it is empty. Raises QueryError.

    The text has to be a query by itself, or ``a) OR (id:*`` would end the brackets that keep it to the status.
    """
    if not status:
        return text
    if status not in STATUSES:
        raise QueryError(f"there is no status {status[:40]!r}", hint=f"a status is {', '.join(STATUSES)}")
    query_language.parse(text, now)
    return f"({text}) status:{status}" if text.strip() else f"status:{status}"


def version(device: Device) -> str:
    """The state that operators change, as a digest: equal as long as nobody has changed it."""
    tags = sorted(device.tag_names)
    state = [device.client_id, device.name, device.status, device.status_reason, device.flag, device.scopes, tags]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def preview(name: str, chosen: Chosen, *, now: int) -> Change:
    """What an action would do now. Raises as ``act`` does, and changes nothing."""
    action = _action(name)
    return _preview(action.target, chosen.resolve(now), lambda rows: action.fitting(rows, now))


def preview_rotation(chosen: Chosen, *, now: int) -> Change:
    """Which devices ``rotate_keys`` would ask. Raises as it does."""
    return _preview(ROTATION, chosen.resolve(now), lambda rows: rows)


def _preview(what: str, target: Target, narrow: Callable[[QuerySet[Device]], QuerySet[Device]]) -> Change:
    willing = narrow(target.rows)
    shown, matched = with_parts(willing[:MAX_SHOWN]), target.rows.count()
    count = len(shown) if len(shown) < MAX_SHOWN else willing.count()
    rest = target.rows.exclude(pk__in=willing.order_by().values("pk")).order_by("status")
    holders = {FORGOTTEN: rest.filter(status__in=TURNED_AWAY)} | dict.fromkeys(TURNED_AWAY, willing)
    until = holders[what].order_by().aggregate(last=Max("token_until"))["last"] if what in holders else None
    stays: dict[str, int] = {}
    if matched > count and what == TAGGED:
        stays = {what: matched - count}
    elif matched > count:
        stays = dict(rest.values_list("status").annotate(number=Count("*")))
    return Change(target.meaning, what, matched, count, shown, target.selection(), until, stays)


def act(name: str, chosen: Chosen, *, reason: str, actor: Actor, now: int) -> Change:
    """Do an action. Raises UsageError, QueryError, and ConflictError when not exactly what was promised would happen."""
    action = _action(name)
    if not reason:
        raise UsageError("an action needs a reason", hint="say why, with --reason; it is kept in the audit log")

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        willing = [row for row in rows if action.fits(row, now)]
        held = Device.objects.filter(pk__in=[row.pk for row in willing])
        if action.target == FORGOTTEN:
            held.delete()  # and its keys, tags and boots
        else:
            values: dict[str, Any] = {"status": action.target, "status_reason": reason}
            values |= {"flag": ""} if action.target == "approved" else {"due_at": None}  # somebody has looked twice
            held.update(**values)
        return willing, [action.detail(row, reason) for row in willing]

    return _change(f"device.{name}", action.target, chosen, edit, actor=actor, now=now, decides=True)


def rotate_keys(chosen: Chosen, *, reason: str, actor: Actor, now: int) -> Change:
    """Ask devices for new keys: each is told with its next token. Raises as ``act`` does."""
    if not reason:
        raise UsageError("an action needs a reason", hint="say why, with --reason; it is kept in the audit log")

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        Device.objects.filter(pk__in=[row.pk for row in rows]).update(rotation_at=now)
        return rows, [{"reason": reason}] * len(rows)

    return _change("device.rotate-key", ROTATION, chosen, edit, actor=actor, now=now)


@dataclass(frozen=True, slots=True)
class Tags:
    """Tags to give and to take away, each as it is compared and as it is written."""

    new: Mapping[str, str]
    old: Mapping[str, str]

    @staticmethod
    def of(add: Iterable[str], remove: Iterable[str]) -> Tags:
        """Raises UsageError. One that is in both is written in another way from now on, such as kiosk for Kiosk."""
        add, remove = list(add), list(remove)
        if any("," in text or text[:1] in ("+", "-") for text in add):
            raise UsageError(
                "a tag has no comma, and does not begin with + or -", hint="pi-fleet tag QUERY +kiosk -lab"
            )
        new, old = ({fold("tag", one): one for one in map(_tag, texts)} for texts in (add, remove))
        if (not new and not old) or set(add) & set(remove):
            raise UsageError(
                "name tags to add or to remove, and none of them twice", hint="pi-fleet tag QUERY +kiosk -lab"
            )
        return Tags(new, old)

    def missing(self, rows: QuerySet[Device]) -> QuerySet[Device]:
        """Those devices that do not have their tags yet as they shall be."""
        of_device = DeviceTag.objects.filter(device=OuterRef("pk"))
        wrong = [Q(Exists(of_device.filter(tag_key=key).exclude(tag=self.new.get(key)))) for key in self.old]
        wrong += [~Q(Exists(of_device.filter(tag_key=key))) for key in self.new]
        return rows.filter(functools.reduce(operator.or_, wrong))

    def change(self, row: Device) -> tuple[list[str], list[str]]:
        """What one device is given, and what is taken from it."""
        removed = [tag for tag in row.tag_names if (key := fold("tag", tag)) in self.old and self.new.get(key) != tag]
        kept = {fold("tag", tag) for tag in row.tag_names if tag not in removed}
        return [text for key, text in self.new.items() if key not in kept], removed


def tag(chosen: Chosen, *, add: Iterable[str], remove: Iterable[str], reason: str, actor: Actor, now: int) -> Change:
    """Give tags to devices and take others away. Raises as ``act`` does."""
    tags = Tags.of(add, remove)

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        found = [(row, *tags.change(row)) for row in rows]
        willing = [(row, added, removed) for row, added, removed in found if added or removed]
        DeviceTag.objects.filter(
            device__in=[row.pk for row, _, removed in willing if removed], tag_key__in=tags.old
        ).exclude(tag__in=tags.new.values()).delete()
        given = [(row, text) for row, added, _ in willing for text in added]
        DeviceTag.objects.bulk_create(
            [DeviceTag(device=row, tag=text, tag_key=fold("tag", text)) for row, text in given], ignore_conflicts=True
        )
        for row, _, _ in willing:
            del row.tag_names  # they are asked for again
        return [row for row, _, _ in willing], [
            {"added": added, "removed": removed, "reason": reason} for _, added, removed in willing
        ]

    return _change("device.tag", TAGGED, chosen, edit, actor=actor, now=now)


def preview_tag(chosen: Chosen, *, add: Iterable[str], remove: Iterable[str], now: int) -> Change:
    """Which devices ``tag`` would change. Raises as it does."""
    return _preview(TAGGED, chosen.resolve(now), Tags.of(add, remove).missing)


def rename(chosen: Chosen, name: str, *, reason: str, actor: Actor, now: int) -> Change:
    """Call one device something else; what it calls itself is only where a name begins. Raises as ``act`` does."""
    if not name or not name.isprintable() or len(name) > MAX_NAME or name != name.strip():
        raise UsageError(f"a name is 1 to {MAX_NAME} printable characters")

    def edit(rows: list[Device]) -> tuple[list[Device], list[dict[str, object]]]:
        willing = [row for row in rows if row.name != name]
        details: list[dict[str, object]] = [{"from": row.name, "to": name, "reason": reason} for row in willing]
        for row in willing:
            row.name, row.name_key = name, fold("name", name)
            row.save(update_fields=["name", "name_key"])
        return willing, details

    return _change("device.rename", NAMED, replace(chosen, most=1), edit, actor=actor, now=now)


def _tag(text: str) -> str:
    if not text or not text.isprintable() or len(text) > MAX_TAG or text != text.strip():
        raise UsageError(f"a tag is 1 to {MAX_TAG} printable characters")
    return text


def _action(name: str) -> Action:
    if name not in ACTIONS:
        raise UsageError(f"there is no action {name!r}", hint=f"the actions are {', '.join(ACTIONS)}")
    return ACTIONS[name]


Held = Sequence[tuple[int, str]]  # devices by row id, each with the status in which it was held
Edit = Callable[[list[Device]], tuple[list[Device], list[dict[str, object]]]]


def _change(
    event: str, what: str, chosen: Chosen, edit: Edit, *, actor: Actor, now: int, decides: bool = False
) -> Change:
    target = chosen.resolve(now)
    done = _Tally()
    one_step = connection.in_atomic_block

    def step(some: Held) -> tuple[list[Device], list[Device]]:
        held = dict(some)
        rows = with_parts(Device.objects.filter(pk__in=held).order_by("client_id").select_for_update())
        if decides:  # about a device of which somebody else has decided meanwhile, nothing more
            changed, details = edit([row for row in rows if row.status == held[row.pk]])
        else:
            changed, details = edit(rows)
        events = [Event(event, row.client_id, detail=detail) for row, detail in zip(changed, details, strict=True)]
        audit.record(events, actor=actor, now=now)
        return rows, changed

    with ExitStack() as stack:
        begun = time.monotonic()
        try:
            with transaction.atomic():
                keys = _hold(target, chosen)
                if len(keys) > BATCH and not one_step:
                    stack.enter_context(_the_only_large_one())
                if len(keys) > MAX_IDS and one_step:
                    raise ConflictError(
                        f"{len(keys)} devices are changed in steps, which an Idempotency-Key cannot make one",
                        hint=f"leave it out, or name the devices by ids, at most {MAX_IDS} at a time",
                    )
                first = step(keys if one_step else keys[:BATCH])
        except ConflictError as error:
            detail = {"query": target.text[:500], "max": chosen.most, "why": str(error)}
            audit.record([Event(event, "", "refused", detail)], actor=actor, now=now)
            raise
        done.add(*first)
        for start in range(BATCH, 0 if one_step else len(keys), BATCH):
            database.give_way(begun, share=1)
            begun = time.monotonic()
            try:
                done.add(*_persistently(step, keys[start : start + BATCH]))
            except DatabaseError as error:
                database.give_up(error)
                raise ConflictError(
                    f"the database failed when {done.count} of {len(keys)} devices were {what}; the others are as they were",
                    hint="look at them again, and do the rest",
                ) from error
    until = done.until if what in TURNED_AWAY else done.kept_until if what == FORGOTTEN else 0
    stays = Counter({what: len(keys) - done.count}) if what in (TAGGED, NAMED) else done.stays
    return Change(target.meaning, what, len(keys), done.count, done.shown, "", until or None, +stays)


_LARGE = threading.Lock()


@contextmanager
def _the_only_large_one() -> Iterator[None]:
    """One change in steps at a time: it holds one of the few threads for changes, and others want to revoke something."""
    if not _LARGE.acquire(blocking=False):
        raise ConflictError("another change of many devices is under way", hint="try again when it is done")
    try:
        yield
    finally:
        _LARGE.release()


def _persistently(
    step: Callable[[Held], tuple[list[Device], list[Device]]], keys: Held
) -> tuple[list[Device], list[Device]]:
    """What one step in a transaction comes to, tried again where the database was only busy or gone for a moment."""
    for _ in range(STEP_TRIES - 1):
        try:
            with transaction.atomic():
                return step(keys)
        except OperationalError as error:
            database.give_up(error)
    with transaction.atomic():
        return step(keys)


@dataclass(slots=True)
class _Tally:
    """What the steps of a change come to."""

    count: int = 0
    until: int = 0
    kept_until: int = 0
    shown: list[Device] = field(default_factory=list)
    stays: Counter[str] = field(default_factory=Counter)

    def add(self, rows: Sequence[Device], changed: Sequence[Device]) -> None:
        self.count += len(changed)
        gone = {row.pk for row in changed}
        for row in rows:
            if row.pk in gone:
                self.until = max(self.until, row.token_until or 0)
            elif row.status in TURNED_AWAY:
                self.kept_until = max(self.kept_until, row.token_until or 0)
        self.shown += changed[: MAX_SHOWN - len(self.shown)]
        self.stays += Counter(row.status for row in rows) - Counter(row.status for row in changed)


def _hold(target: Target, chosen: Chosen) -> list[tuple[int, str]]:
    """The devices by row id, with their status, held until the transaction ends.

    Raises ConflictError unless they are what was promised.
    """
    most = chosen.most
    if most is None:
        most = len(chosen.ids) or (target.rows.count() if chosen.selection else 1)
    keys = list(target.rows.select_for_update().values_list("pk", "status")[: most + 1])
    if chosen.selection and target.selection() != chosen.selection:
        raise ConflictError(
            "the devices are not the ones that were shown", hint="look at them again; nothing has changed"
        )
    if len(keys) > most:
        raise ConflictError(
            f"{target.rows.count()} devices match, more than {most}", hint="look at them first, then raise --max"
        )
    if chosen.version == ANY_VERSION:
        if not keys:
            raise StaleError("there is no such device", hint="leave If-Match out if that is as well")
    elif chosen.version and [version(row) for row in with_parts(target.rows[:2])] != [chosen.version]:
        raise StaleError("the device was changed since you looked at it", hint="look at it again")
    return keys


def refused(name: str, why: str, *, actor: Actor, now: int) -> None:
    """Note that somebody was not allowed an action."""
    audit.record([Event(f"device.{name}", "", "refused", {"why": why})], actor=actor, now=now)
