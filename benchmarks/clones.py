"""Copies of an SD card: is every one noticed, and does nothing else raise an alarm? With the real agent and fleet code.

    ./dev bench clones [--reboots 10000] [--copies 200]

Each board is the agent's own code (identity, key file, worker) with a card in a folder; the fleet is the server's own
code on SQLite. Only time and the network between them are simulated: a period is a quarter of an hour, answers get lost,
power is cut. The last line sums it up; the exit code is 1 when a copy was missed or an alarm was false.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # the simulated board is the tests' own

from pi_agent.errors import TransportError
from pi_agent.fleet import folder, settings

PERIOD = 900
SEED = 480
ALARMS = ("device.clone", "device.board-changed", "device.retired-key", "device.boot-unnamed")


class World:
    """An empty registry, a clock, and boards at it."""

    def __init__(self, home: Path, authority: Any) -> None:
        from fleet.board import Clock
        from pi_agent.fleet.limits import Watch
        from pi_agent.fleet.models import AuditEvent, Device, UsedAssertion

        for model in (Device, AuditEvent, UsedAssertion):
            model.objects.all().delete()
        self.home = home
        self.clock = Clock()
        self.authority = replace(authority, watch=Watch(0))
        self.chance = random.Random(SEED)  # the same run each time
        self.boards = 0

    def board(self) -> Any:
        """A new board, approved, with its first token."""
        from fleet.board import Board, Network
        from pi_agent.fleet.models import Device

        self.boards += 1
        serial = f"{0xC0FFEE000000 + self.boards:016x}"
        board = Board(self.home / str(self.boards), Network(lambda: self.authority, self.clock), serial)
        board.setup()
        Device.objects.filter(status="pending").update(status="approved")
        assert board.refresh()["outcome"] == "token"
        return board

    def copy(self, board: Any, **more: str) -> Any:
        self.boards += 1
        return board.copy(self.home / str(self.boards), **more)

    def alarms(self) -> int:
        from pi_agent.fleet.models import AuditEvent

        return int(AuditEvent.objects.filter(action__in=ALARMS).count())

    def alarmed(self, board: Any) -> bool:
        from pi_agent.device import identity
        from pi_agent.fleet.models import AuditEvent

        name = identity.load(board.state).client_id
        return bool(AuditEvent.objects.filter(action="device.clone", device=name).exists())


def copies_on_the_same_board(world: World, copies: int) -> str:
    """Card and serial copied: both halves refresh at random moments of their period."""
    late = 0
    for _ in range(copies):
        board = world.board()
        copy = world.copy(board)
        begun = world.clock.now
        for moment, half in _turns(world, begun, (board, copy)):
            world.clock.now = moment
            half.refresh()
            if world.alarmed(board) or moment - begun > 4 * PERIOD:
                break
        late += world.clock.now - begun > 2 * PERIOD + PERIOD // 10 or not world.alarmed(board)
    return verdict(
        late == 0, f"{copies - late} of {copies} copies with the same board's claims noticed within two periods"
    )


def _turns(world: World, begun: float, halves: tuple[Any, Any]) -> Iterator[tuple[float, Any]]:
    """When each half refreshes, in order: its own phase, then every period give or take a tenth."""
    due = {number: begun + world.chance.uniform(1, PERIOD) for number in range(len(halves))}
    while True:
        number = min(due, key=due.__getitem__)
        moment = due[number]
        due[number] = moment + PERIOD * world.chance.uniform(0.9, 1.1)
        yield moment, halves[number]


def copies_that_hide(world: World, copies: int) -> str:
    """A changed agent names a new boot at every request, and asks every 50 seconds, so that no boot is a minute old."""
    missed = 0
    for _ in range(copies):
        board = world.board()
        copy = world.copy(board)
        for _ in range(2):
            end = world.clock.now + PERIOD * world.chance.uniform(0.9, 1.1)
            while world.clock.now < end:
                copy.boot()
                copy.refresh()
                world.clock.now += 50
            board.refresh()
        missed += not world.alarmed(board)
    return verdict(missed == 0, f"{copies - missed} of {copies} copies that make boots up noticed within two periods")


def copies_on_other_boards(world: World, copies: int) -> str:
    """Card copied into another board: nothing is ever asked for, and the original goes on."""
    leaked = disturbed = 0
    for _ in range(copies):
        board = world.board()
        copy = world.copy(board, serial=f"{world.chance.getrandbits(48):016x}")
        for _ in range(4):
            world.clock.now += PERIOD
            leaked += copy.refresh()["outcome"] == "token"
            disturbed += board.refresh()["outcome"] != "token"
    good = not leaked and not disturbed and not world.alarms()
    return verdict(good, f"{copies} copies in other boards: {leaked} authenticated, {disturbed} originals disturbed")


def reboots(world: World, count: int) -> str:
    """Boards that reboot at random moments, often in the middle of a request."""
    boards = [world.board() for _ in range(10)]
    for number in range(count):
        board = boards[number % len(boards)]
        board.boot()
        world.clock.now += world.chance.choice((5, 60, PERIOD, 86400))
        board.refresh()
    return verdict(not world.alarms(), f"{count} random reboots: {world.alarms()} alarms")


def lost_answers(world: World, count: int) -> str:
    """Half of the answers never arrive; every tenth board is switched off instead of trying again."""
    boards = [world.board() for _ in range(10)]
    lost = 0

    def line(moment: str, path: str) -> None:
        nonlocal lost
        if moment == "after" and world.chance.random() < 0.5:
            lost += 1
            raise TransportError("the answer was lost", reason="timeout")

    for board in boards:
        board.network.line = line
    for number in range(count):
        board = boards[number % len(boards)]
        if world.chance.random() < 0.1:
            board.boot()
        world.clock.now += world.chance.uniform(1, 60)
        board.refresh()
    return verdict(not world.alarms(), f"{lost} lost answers: {world.alarms()} alarms")


def power_cuts(world: World, count: int) -> str:
    """Power goes at a random step of a key rotation; the board boots and goes on."""
    from fleet import cuts
    from pi_agent.device import files, identity, rotate
    from pi_agent.device.keys import stores

    board = world.board()
    locked_out = 0
    for _ in range(count):
        known = identity.load(board.state)

        def turn(known: Any = known) -> None:
            rotate.begin(board.state, known, stores.successor(known.key))
            board.refresh()

        cuts.run(board, turn, world.chance.randrange(1, 60), cuts.power_cut)
        board.boot()
        files.sweep(board.state)
        world.clock.now += PERIOD
        locked_out += board.refresh()["outcome"] != "token"
    good = not world.alarms() and not locked_out
    return verdict(good, f"{count} power cuts in rotations: {world.alarms()} alarms, {locked_out} boards locked out")


def restored_server(world: World, count: int) -> str:
    """The server loses what it learned since its backup: boots and new keys."""
    from django.db import connection

    database = Path(connection.settings_dict["NAME"])
    boards = [world.board() for _ in range(count)]
    connection.close()
    backup = database.with_suffix(".backup")
    shutil.copy(database, backup)
    for board in boards:
        board.boot()
        world.clock.now += PERIOD
        board.refresh()
    connection.close()
    for extra in database.parent.glob(database.name + "-*"):
        extra.unlink()
    shutil.copy(backup, database)
    refused = 0
    for board in boards * 3:
        world.clock.now += PERIOD
        if world.chance.random() < 0.3:
            board.boot()
        refused += board.refresh()["outcome"] != "token"
    good = not world.alarms() and not refused
    return verdict(good, f"server restored under {count} boards: {world.alarms()} alarms, {refused} refused")


def two_networks(world: World, count: int) -> str:
    """Boards that change between two networks at every refresh, and reboot now and then."""
    boards = [world.board() for _ in range(10)]
    for number in range(count):
        board = boards[number % len(boards)]
        board.network.source = world.chance.choice(("192.0.2.1", "203.0.113.9"))
        if world.chance.random() < 0.05:
            board.boot()
        world.clock.now += world.chance.uniform(1, PERIOD)
        board.refresh()
    return verdict(not world.alarms(), f"{count} refreshes in two networks in turn: {world.alarms()} alarms")


def long_absence(world: World) -> str:
    """400 days off, with two new signing keys of the server meanwhile."""
    from pi_agent.fleet import signing
    from pi_agent.fleet.models import SigningKey

    board = world.board()
    before = set(SigningKey.objects.values_list("kid", flat=True))
    for _ in range(2):
        world.clock.now += 200 * 86400
        signing.rotate(world.authority.settings, now=int(world.clock.now), at_once=True)
        world.authority = replace(
            world.authority, ring=signing.load_ring(world.authority.settings, now=int(world.clock.now))
        )
    board.boot()
    first = board.refresh()["outcome"]
    turned = len(set(SigningKey.objects.values_list("kid", flat=True)) - before)
    good = first == "token" and not world.alarms() and turned >= 2
    return verdict(
        good, f"400 days off and {turned} new server keys: first refresh gave {first}, {world.alarms()} alarms"
    )


_failures: list[str] = []


def verdict(good: bool, sentence: str) -> str:
    if not good:
        _failures.append(sentence)
    return f"{'ok' if good else 'FAILED':<8}{sentence}"


@contextmanager
def fleet() -> Iterator[tuple[Path, Any]]:
    """A migrated database and its authority, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        chosen = settings.Settings(data=home / "fleet", issuer="https://fleet.test", rate_limit=False)
        folder.prepare(chosen.data)
        settings.configure(chosen)
        settings.migrate()
        from fleet.board import START
        from pi_agent.fleet.tokens import load_authority

        yield home, load_authority(chosen, now=START)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reboots", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2000, help="requests of each other scene")
    args = parser.parse_args()
    begun = time.monotonic()
    scenes: list[Callable[[World], str]] = [
        lambda world: copies_on_the_same_board(world, args.copies),
        lambda world: copies_that_hide(world, args.copies // 10),
        lambda world: copies_on_other_boards(world, args.copies),
        lambda world: reboots(world, args.reboots),
        lambda world: lost_answers(world, args.rounds),
        lambda world: power_cuts(world, args.rounds // 10),
        lambda world: two_networks(world, args.rounds),
        lambda world: restored_server(world, 50),
        long_absence,
    ]
    with fleet() as (home, authority):
        for number, scene in enumerate(scenes):
            print(scene(World(home / f"scene-{number}", authority)), flush=True)
        from django.db import connections

        connections.close_all()
    seconds = time.monotonic() - begun
    print(
        f"clones: {len(scenes) - len(_failures)} of {len(scenes)} scenes as they should be "
        f"({args.copies} copies, {args.reboots} reboots) in {seconds:.0f} s"
    )
    return 1 if _failures else 0


if __name__ == "__main__":
    sys.exit(main())
