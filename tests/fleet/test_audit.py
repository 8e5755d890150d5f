"""The audit log is a chain (requirement D-12): what is changed, taken out or put in afterwards is seen."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction

from pi_agent.fleet import audit
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import AuditEvent

WHO = Actor("alice", "192.0.2.7")


def write(count: int = 5) -> list[int]:
    """Lines in two steps; their ids."""
    audit.record([Event("device.approved", "pi-1", detail={"reason": "é"})], actor=WHO, now=1000)
    audit.record([Event("device.revoked", f"pi-{n}", "refused") for n in range(count - 1)], actor=WHO, now=1001)
    return list(AuditEvent.objects.order_by("id").values_list("pk", flat=True))


def test_a_log_that_was_left_alone_is_whole(app: Application) -> None:
    """No line breaks the chain, nor does an empty log."""
    assert audit.verify() is None
    write()
    assert audit.verify() is None


@pytest.mark.parametrize("column", ["at", "actor", "source", "action", "device", "result", "detail"])
def test_a_changed_line_is_seen(app: Application, column: str) -> None:
    """Every column is covered, and the first line that does not follow is named."""
    third = write()[2]
    AuditEvent.objects.filter(pk=third).update(**{column: "9" if column != "at" else 9})
    assert audit.verify() == third


def test_a_line_taken_out_is_seen(app: Application) -> None:
    """The line after it no longer follows."""
    ids = write()
    AuditEvent.objects.filter(pk=ids[1]).delete()
    assert audit.verify() == ids[2]


def test_two_lines_cannot_follow_the_same_one(app: Application) -> None:
    """A fork is refused by the database itself."""
    write(2)
    first, second = AuditEvent.objects.order_by("id")
    with pytest.raises(IntegrityError), transaction.atomic():
        AuditEvent.objects.create(
            at=1,
            actor="x",
            source="",
            action="x",
            device="",
            result="done",
            detail="{}",
            previous=second.previous,
            digest="f" * 64,
        )
    assert first.previous == "0" * 64


def test_a_change_that_fails_leaves_no_line(app: Application) -> None:
    """The line lives and dies with the transaction of the change."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        write()
        raise ZeroDivisionError
    assert not AuditEvent.objects.exists()
