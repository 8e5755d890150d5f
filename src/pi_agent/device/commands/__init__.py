"""One command a file: ``HELP``, ``add_arguments(parser)``, ``run(args) -> exit code``. Heavy imports stay inside ``run``."""

from __future__ import annotations

import argparse

COMMANDS = (
    *("setup", "run", "status", "doctor", "token", "wait", "exec", "refresh", "sign-out", "board", "config"),
    *("key", "first-boot", "wipe-identity"),
)
PLACES = ("config", "state", "runtime", "root")  # the options that say which agent it is about


def in_place(hint: str, args: argparse.Namespace) -> str:
    """The hint with the commands in it as they are to be typed for the agent that this line was about."""
    from pi_agent.command_line import addressed  # most lines end without a hint

    given = [word for name in PLACES if (value := getattr(args, name)) for word in (f"--{name}", value)]
    return addressed(hint, "pi-agent", COMMANDS, given)
