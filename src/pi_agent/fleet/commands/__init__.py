"""The commands of ``pi-fleet``: their names and options (``add_commands``), and what they do.

A command is a function from parsed arguments to an exit code. It imports nothing but the standard library and the
client, unless it works on the data folder itself.
"""

from __future__ import annotations

import argparse

from pi_agent import command_line

# What each file of ``commands`` has; only those that a command line names are imported.
COMMANDS = {
    "local": {"serve"},
    "devices": {"devices", "device", "export", "suggest"},
    "changes": {"approve", "reject", "quarantine", "release", "revoke", "forget", "rotate-key", "tag", "rename"},
    "enrolling": {"pending", "preauthorise"},
    "log": {"audit", "view"},
    "people": {"enrollment-token", "sign-in-link", "operator", "token", "webhook"},
    "authority": {"keys", "resource-server", "rule", "device-add"},
    "data": {"migrate", "backup", "restore", "doctor", "simulate"},
    "shell": {"completion"},
}
PLACES = ("data", "config", "server", "token-file")  # the options that say whose fleet it is


def names() -> list[str]:
    """The commands, as a person types them."""
    return [name for names in COMMANDS.values() for name in sorted(names) if name != "device-add"]


def in_place(hint: str, arguments: argparse.Namespace) -> str:
    """The hint as it is to be typed for the fleet that this line was about."""
    return command_line.in_place(hint, "pi-fleet", names(), PLACES, arguments)
