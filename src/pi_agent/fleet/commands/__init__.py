"""The commands of ``pi-fleet``: their names and options (``add_commands``), and what they do.

A command is a function from parsed arguments to an exit code. It imports nothing but the standard library and the
client, unless it works on the data folder itself.
"""

from __future__ import annotations

import argparse

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
    """The hint with the commands in it as they are to be typed for the fleet that this line was about."""
    from pi_agent.command_line import addressed  # most lines end without a hint

    found = ((name, getattr(arguments, name.replace("-", "_"))) for name in PLACES)
    return addressed(
        hint, "pi-fleet", names(), [word for name, value in found if value for word in (f"--{name}", str(value))]
    )
