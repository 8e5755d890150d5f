"""Copies of a card, with the agent's real code on both of them: what is noticed, and what must not be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from fleet.board import Board, Clock, Network
from fleet.conftest import approve
from fleet.support import FORM, Pi
from pi_agent.device import identity, rotate
from pi_agent.device.keys import stores
from pi_agent.errors import TransportError
from pi_agent.fleet import clones, grants
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.grants import Claim
from pi_agent.fleet.limits import Watch
from pi_agent.fleet.models import AuditEvent, Device, DeviceBoot
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Request

PERIOD = 900
Make = Callable[[], Board]


def events(action: str) -> int:
    return AuditEvent.objects.filter(action=action).count()


def approve_all() -> None:
    Device.objects.filter(status="pending").update(status="approved")


@pytest.fixture
def policy() -> dict[str, str]:
    return {"clone_policy": "alarm"}


@pytest.fixture
def make(app: Application, authority: Authority, tmp_path: Path, policy: dict[str, str]) -> Make:
    """Makes an approved board on a clock and a network of its own."""

    def make() -> Board:
        settings = replace(authority.settings, **policy)  # type: ignore[arg-type]  # policies are text
        own = replace(authority, settings=settings, watch=Watch(0))  # a clock of its own
        network = Network(lambda: own, Clock())
        board = Board(tmp_path / "original", network)
        board.setup()
        approve_all()
        assert board.refresh()["outcome"] == "token"
        return board

    return make


def tick(board: Board, seconds: int = PERIOD) -> None:
    board.network.clock.now += seconds


def test_f08_two_boards_from_one_card_are_noticed_within_two_periods(make: Make, tmp_path: Path) -> None:
    """F-08: original and copy refresh in turn; by the end of the second period there is an alarm with both sides."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    tick(board, 400)
    assert copy.refresh()["outcome"] == "token"
    tick(board, 500)
    assert board.refresh()["outcome"] == "token"
    assert events("device.clone") == 1
    device = Device.objects.get()
    assert (device.status, device.flag) == ("approved", clones.CLONED)
    why = json.loads(AuditEvent.objects.get(action="device.clone").detail)["why"]
    assert "here 192.0.2.1 from 2027-01-15T08:00:00Z to 2027-01-15T08:15:00Z" in why
    assert "there 198.51.100.7 from 2027-01-15T08:06:40Z to 2027-01-15T08:06:40Z" in why


@pytest.mark.parametrize("policy", [{"clone_policy": "quarantine"}])
def test_f12_by_policy_both_copies_wait_for_an_operator(make: Make, tmp_path: Path, policy: dict[str, str]) -> None:
    """F-12: quarantine refuses the token that gave the copy away, and every one after it, from either side."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    tick(board)
    copy.refresh()
    tick(board)
    assert board.refresh()["reason"] == "invalid_grant"
    tick(board)
    assert {board.refresh()["outcome"], copy.refresh()["outcome"]} == {"refused"}
    assert Device.objects.get().status == "quarantined"
    assert events("device.quarantine") == 1


@pytest.mark.parametrize("policy", [{"clone_policy": "quarantine"}])
def test_f12_a_release_and_a_new_key_leave_the_copy_behind(make: Make, tmp_path: Path, policy: dict[str, str]) -> None:
    """F-12: after the release the right board rotates its key; the copy's is retired, and each use of it is told."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    for half in (copy, board):
        tick(board)
        half.refresh()
    assert Device.objects.get().status == "quarantined"
    Device.objects.update(status="approved", flag="")
    known = identity.load(board.state)
    rotate.begin(board.state, known, stores.successor(known.key))
    assert board.refresh()["outcome"] == "token"
    for _ in range(3):
        tick(board)
        assert "retired" in str(copy.refresh()["message"])
        assert board.refresh()["outcome"] == "token"
    assert (Device.objects.get().status, events("device.retired-key")) == ("approved", 1)


def test_f09_on_another_board_the_copy_never_asks(make: Make, tmp_path: Path) -> None:
    """F-09: the agent on the other board refuses the identity before anything leaves it; the original never notices."""
    board = make()
    copy = board.copy(tmp_path / "copy", serial="00000000c0ffee02")

    def nobody_asks(moment: str, path: str) -> None:
        raise AssertionError(path)

    copy.network.line = nobody_asks
    answer = copy.refresh()
    assert (answer["outcome"], answer["reason"]) == ("failed", "local")
    assert "belongs to the board with serial 00000000c0ffee01" in str(answer["message"])
    tick(board)
    assert board.refresh()["outcome"] == "token"
    assert AuditEvent.objects.exclude(action__in=("device.enrolled",)).count() == 0


def test_f09_a_key_with_another_boards_claims_is_refused_and_flagged(make: Make, tmp_path: Path) -> None:
    """F-09: an agent that was changed to use the key on another board gets nothing, and the operator sees why."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    copy.serial = "00000000c0ffee02"
    identity.store(copy.state, replace(identity.load(copy.state), serial=copy.serial))
    assert copy.refresh()["outcome"] == "refused"
    assert Device.objects.get().flag == clones.OTHER_BOARD
    assert events("device.board-changed") == 1
    for _ in range(3):
        copy.refresh()
    assert events("device.board-changed") == 1


def test_a_copy_cannot_hide_behind_its_clock(make: Make, tmp_path: Path) -> None:
    """A copy that signs as far ahead as it may, and asks often, is still noticed by the original's next refresh or the one after."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    ahead = Clock(board.network.clock.now + 58)
    for second in range(2 * PERIOD + 1):
        if second % 20 == 0:
            ahead.now = board.network.clock.now + 58
            boot_clock, copy.network.clock = copy.network.clock, ahead
            served = copy.network
            copy.network = Network(served.authority, board.network.clock, served.source)
            copy.refresh()
            copy.network.clock = boot_clock
        if second in (PERIOD, 2 * PERIOD):
            assert board.refresh()["outcome"] == "token"
        tick(board, 1)
    assert events("device.clone") >= 1


def test_f08_a_copy_that_names_a_new_boot_every_minute_pushes_nothing_back(make: Make, tmp_path: Path) -> None:
    """F-08: however many boots a copy makes up, the original's next refresh is a return from before the first of them."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    for _ in range(PERIOD // 45):
        copy.boot()
        assert copy.refresh()["outcome"] == "token"
        tick(board, 45)
    assert board.refresh()["outcome"] == "token"
    assert events("device.clone") == 1
    assert Device.objects.get().flag == clones.CLONED


def test_f08_a_flood_of_made_up_boots_does_not_make_the_true_one_forgotten(make: Make, tmp_path: Path) -> None:
    """F-08: a copy that makes up more boots than are kept gets its own forgotten, not that of the board it copies."""
    board = make()
    tick(board)
    assert board.refresh()["outcome"] == "token"
    copy = board.copy(tmp_path / "copy")
    with patch.object(clones, "KEEP_BOOTS", 20):
        for _ in range(40):
            copy.boot()
            copy.refresh()
            tick(board, 2)
        tick(board)
        assert board.refresh()["outcome"] == "token"
    assert events("device.clone") == 1
    assert DeviceBoot.objects.count() <= 21


def test_whoever_has_the_key_cannot_fill_the_log(make: Make, tmp_path: Path) -> None:
    """F-10: alarms of every kind in turn, a hundred times in an hour: one line of each, and one more after a release."""
    board = make()
    copy, unnamed = board.copy(tmp_path / "copy"), board.copy(tmp_path / "unnamed")
    copy.serial = "00000000c0ffee02"
    identity.store(copy.state, replace(identity.load(copy.state), serial=copy.serial))
    (unnamed.home / "root/proc/sys/kernel/random/boot_id").unlink()
    kinds = ("device.board-changed", "device.boot-unnamed")
    for _ in range(50):
        assert {copy.refresh()["outcome"], unnamed.refresh()["outcome"]} == {"refused"}
        tick(board, 30)
    assert [events(kind) for kind in kinds] == [1, 1]
    Device.objects.update(flag="")
    copy.refresh()
    assert events("device.board-changed") == 2


def test_leaving_the_boot_out_is_no_way_around(make: Make, tmp_path: Path) -> None:
    """A device that has ever named its boot goes on naming it; a copy that does not is refused, and noted once."""
    board = make()
    copy = board.copy(tmp_path / "copy")
    (copy.home / "root/proc/sys/kernel/random/boot_id").unlink()
    for _ in range(3):
        assert "boot claim is missing" in str(copy.refresh()["message"])
        tick(board, 300)
    assert events("device.boot-unnamed") == 1
    assert board.refresh()["outcome"] == "token"


# What must not cry wolf


def no_alarm() -> bool:
    return not AuditEvent.objects.filter(action__in=("device.clone", "device.many-boots")).exists()


def test_ra35_lost_answers_are_no_copies(make: Make) -> None:
    """RA-35: every second answer is lost, over reboots too; the next attempt has another jti, and nothing is noticed."""
    board = make()
    lost = 0

    def line(moment: str, path: str) -> None:
        nonlocal lost
        if moment == "after":
            lost += 1
            if lost % 2:
                raise TransportError("the answer was lost", reason="timeout")

    board.network.line = line
    for number in range(60):
        if number % 7 == 0:
            board.boot()
        board.refresh()
        tick(board, 20)
    assert no_alarm()


def held_back(board: Board) -> Callable[[], Any]:
    """Have the board make a request that hangs in the network; what is returned lets it through."""
    held: list[tuple[Any, ...]] = []
    real = board.network.post

    def hold(*arguments: Any) -> Any:
        held.append(arguments)
        raise TransportError("it hangs somewhere", reason="timeout")

    board.network.post = hold  # type: ignore[method-assign, assignment]  # the network is what fails here
    board.refresh()
    board.network.post = real  # type: ignore[method-assign]  # and it is back
    return lambda: real(*held[0])


def test_a_message_that_was_only_late_is_no_return(make: Make) -> None:
    """A request of the boot before, which arrives after the first of the new boot, proves no copy: it was signed before."""
    board = make()
    let_through = held_back(board)
    board.boot()
    tick(board, 25)
    assert board.refresh()["outcome"] == "token"
    tick(board, 5)
    assert let_through().status == 200
    assert no_alarm()
    tick(board)
    assert board.refresh()["outcome"] == "token"
    assert no_alarm()


def test_clocks_that_differ_by_less_than_a_minute_are_no_return(make: Make) -> None:
    """The last word of a boot whose clock was half a minute ahead, heard after the next boot's first word, is only late."""
    board = make()
    tick(board, 40)
    let_through = held_back(board)
    tick(board, -40)
    board.boot()
    tick(board, 5)
    assert board.refresh()["outcome"] == "token"
    tick(board, 45)
    assert let_through().status == 200
    assert no_alarm()


def test_two_networks_in_turn_are_one_board(make: Make) -> None:
    """A board that goes from one network to the other and back is in one place at a time, whatever its address."""
    board = make()
    for number in range(20):
        board.network.source = ("192.0.2.1", "203.0.113.9")[number % 2]
        assert board.refresh()["outcome"] == "token"
        tick(board, 60)
    assert no_alarm()
    assert Device.objects.get().boot_source == "203.0.113.9"


def test_a_storm_of_boots_is_an_event_of_its_own(make: Make) -> None:
    """A board that boots every minute is noted once an hour at most, and still served."""
    board = make()
    for _ in range(50):
        board.boot()
        assert board.refresh()["outcome"] == "token"
        tick(board, 60)
    assert events("device.many-boots") == 1
    assert events("device.clone") == 0


def test_boots_are_forgotten_in_time(make: Make) -> None:
    """Of four boots that have ended, the two that spoke last within 90 days are kept."""
    board = make()
    for _ in range(3):
        board.boot()
        board.refresh()
        tick(board)
    tick(board, clones.KEEP - 2 * PERIOD)
    board.boot()
    board.refresh()
    assert DeviceBoot.objects.count() == 2


def test_a_steady_board_costs_nothing(make: Make) -> None:
    """In one boot at one address no row of a boot is ever written."""
    board = make()
    for _ in range(5):
        tick(board)
        assert board.refresh()["outcome"] == "token"
    assert DeviceBoot.objects.count() == 0
    assert Device.objects.get().boot_first_at == board.network.clock.now - 5 * PERIOD


def test_f12_a_quarantine_holds_for_all_that_came_with_it(app: Application, authority: Authority) -> None:
    """F-12: the copy asks many times at once, all in one transaction: none of its requests gets a token."""
    pi = approve(app, Pi())
    own = replace(authority, settings=replace(authority.settings, clone_policy="quarantine"), watch=Watch(0))
    now = int(time.time())

    def request(boot: str, at: int) -> Request:
        body = pi.form(pi.assertion(boot=boot * 43, iat=at, exp=at + 60))
        return Request(method="POST", body=body, content_type=FORM, source="192.0.2.1")

    for boot, at in (("a", now - 400), ("b", now - 300)):
        assert grants.answer(request(boot, at), now=at, authority=own).status == 200
    claims = grants.read([request("a", now) for _ in range(4)], now=now, authority=own)
    answers = grants.settle([each for each in claims if isinstance(each, Claim)], now=now, authority=own)
    assert [answer.status for answer in answers] == [400] * 4
