"""``pi-agent wipe-identity``: forget key and identity, for a card that is to become another device, or many."""

from __future__ import annotations

import argparse
import sys

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
    from pi_agent.device import config, files, golden, identity

    settings = config.load(vars(args))
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("this forgets the key for good", hint="pi-agent wipe-identity --yes")
        sys.stderr.write(f"forget the key and identity in {settings.state}? type yes: ")
        if sys.stdin.readline().strip() != "yes":
            return 1
    elsewhere = _key_elsewhere(settings.state)
    if args.golden_image:
        files.make_directory(settings.state, 0o700)
        golden.mark(settings.state, _serial(str(settings.root)))
    if settings.state.is_dir():
        identity.forget(settings.state)
    if elsewhere:
        sys.stderr.write(f"the key in {elsewhere} was left there: it does not go along with a copy of the card\n")
    if args.golden_image:
        sys.stderr.write(
            f"nothing is left in {settings.state}, and this board does not enroll until {golden.NAME} there is removed; "
            "other boards started from the image do\n"
        )
        return 0
    sys.stderr.write(f"nothing is left in {settings.state}; pi-agent setup URL enrolls this board as a new device\n")
    return 0


def _key_elsewhere(state: object) -> str:
    """The store of a key that lies outside the state folder, or ""."""
    from pathlib import Path

    from pi_agent.device import identity

    assert isinstance(state, Path)
    try:
        known = identity.find(state) if state.is_dir() else None
    except PiAgentError:
        return ""  # damaged: it is about to go anyway
    kind = known.key.partition(":")[0] if known else "file"
    return "" if kind == "file" else kind


def _serial(root: str) -> str:
    """The board on which the image is made; "" where there is none, such as in a chroot."""
    from pi_agent.device.probe import probe
    from pi_agent.errors import BoardError

    try:
        return probe(root).serial or ""
    except (BoardError, ConfigError):
        return ""
