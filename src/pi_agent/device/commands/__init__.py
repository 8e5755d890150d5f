"""One command a file: ``HELP``, ``add_arguments(parser)``, ``run(args) -> exit code``. Heavy imports stay inside ``run``."""

from __future__ import annotations

import argparse

from pi_agent import command_line

COMMANDS = (
    *("setup", "run", "status", "doctor", "token", "wait", "exec", "refresh", "sign-out", "board", "config"),
    *("key", "first-boot", "wipe-identity"),
)
PLACES = ("config", "state", "runtime", "root")  # the options that say which agent it is about


def in_place(hint: str, args: argparse.Namespace) -> str:
    """The hint as it is to be typed for the agent that this line was about."""
    return command_line.in_place(hint, "pi-agent", COMMANDS, PLACES, args)
