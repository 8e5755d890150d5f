"""``pi-agent wipe-identity``: forget key and identity, for a card that is to become another device."""

from __future__ import annotations

import argparse
import sys

from pi_agent.errors import UsageError

HELP = "forget this board's key and identity for good (golden images, a new server)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="do it without asking")
    parser.epilog = "the server keeps its record: an operator revokes it with pi-fleet revoke"


def run(args: argparse.Namespace) -> int:
    from pi_agent.device import config, identity
    from pi_agent.device.keys import file

    settings = config.load(vars(args))
    if not args.yes:
        if not sys.stdin.isatty():
            raise UsageError("this forgets the key for good", hint="pi-agent wipe-identity --yes")
        sys.stderr.write(f"forget the key and identity in {settings.state}? type yes: ")
        if sys.stdin.readline().strip() != "yes":
            return 1
    for name in (file.NAME, identity.NAME):
        (settings.state / name).unlink(missing_ok=True)
    sys.stderr.write(f"nothing is left in {settings.state}; pi-agent setup URL enrolls this board as a new device\n")
    return 0
