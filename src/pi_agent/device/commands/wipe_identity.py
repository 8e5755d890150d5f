"""``pi-agent wipe-identity``: forget key and identity, for a card that is to become another device, or many."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pi_agent.errors import ConfigError, PiAgentError, UsageError

HELP = "forget this board's key and identity for good (golden images, a new server)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.add_argument(
        "--golden-image",
        action="store_true",
        help="and keep this board from enrolling while an image is taken of its card",
    )
    parser.epilog = (
        "the server keeps its record: an operator revokes it with pi-fleet revoke. "
        "For an image: sudo systemctl stop pi-agent; sudo pi-agent wipe-identity --golden-image; shut down; copy the card"
    )


def run(args: argparse.Namespace) -> int:
    from pi_agent.device import config, files, first_boot, golden, identity
    from pi_agent.device.keys import stores  # noqa: F401  # now: the owner of the state may not be able to read modules

    settings = config.load(vars(args))
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("this forgets the key for good", hint="pi-agent wipe-identity --yes")
        sys.stderr.write(f"forget the key and identity in {settings.state}? type yes: ")
        if sys.stdin.readline().strip() != "yes":
            return 1
    files.make_directory(settings.state, 0o700)
    serial = _serial(str(settings.root))
    with files.as_owner_of(settings.state):
        left = [_forget_elsewhere(location, settings.state) for location in _locations(settings.state)]
        if args.golden_image:
            golden.mark(settings.state, serial)
        files.remove(settings.state / first_boot.WAITING)
        identity.forget(settings.state)
    for sentence in filter(None, left):
        sys.stderr.write(f"{sentence}\n")
    if _is_running(str(settings.runtime)):
        sys.stderr.write("pi-agent still runs and hands out the token that it has: sudo systemctl stop pi-agent\n")
    if args.golden_image:
        sys.stderr.write(
            f"nothing is left in {settings.state}, and this board does not enroll until {golden.NAME} there is removed; "
            "other boards started from the image do\n"
        )
        return 0
    sys.stderr.write(f"nothing is left in {settings.state}; pi-agent setup URL enrolls this board as a new device\n")
    return 0


def _is_running(runtime: str) -> bool:
    from pi_agent import client

    try:
        return bool(client.ask("/v1/status", runtime=runtime))
    except PiAgentError:
        return False


def _locations(state: Path) -> list[str]:
    """Where this board's keys are, as far as its identity can tell."""
    from pi_agent.device import identity

    try:
        known = identity.find(state)
    except PiAgentError:
        return []  # damaged: it is about to go anyway
    return [location for location in (known.key, known.next_key, known.previous_key) if location] if known else []


def _forget_elsewhere(location: str, state: Path) -> str:
    """Remove a key that we made outside the state folder; what is left of it, in words, and what to do about that."""
    from pi_agent.device.keys import stores

    kind = location.partition(":")[0]
    if kind == "firmware":
        return "the key in the board's fuses is left: it is the board's for life, and no part of the card"
    if kind == "credential":
        return (
            "the key that systemd keeps is left, and goes along with a copy of the card: "
            "sudo rm /etc/credstore.encrypted/key.pem, and take LoadCredentialEncrypted= out of the unit"
        )
    try:
        if kind == "pkcs11" and not stores.discard(location, state):
            return f"the key in {location.partition('?')[0]} is left: pi-agent did not make it"
    except PiAgentError as error:
        return f"the key in {location.partition('?')[0]} is left, since it cannot be removed: {error}"
    return ""


def _serial(root: str) -> str:
    """The board on which the image is made; "" where there is none, such as in a chroot."""
    from pi_agent.device.probe import probe
    from pi_agent.errors import BoardError

    try:
        return probe(root).serial or ""
    except (BoardError, ConfigError):
        return ""
