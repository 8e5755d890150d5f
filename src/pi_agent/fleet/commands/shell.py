"""``completion``: what a shell needs to know of these commands."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pi_agent.fleet import completion as texts
from pi_agent.fleet.command_tree import command_tree
from pi_agent.fleet.commands.common import command

SHELLS = {"bash": texts.bash, "zsh": texts.zsh, "fish": texts.fish}
WHERE = """\
Fields, values and the names of devices come from the fleet that the line names.

example:
  pi-fleet completion bash > ~/.local/share/bash-completion/completions/pi-fleet
  pi-fleet completion zsh > /usr/local/share/zsh/site-functions/_pi-fleet
  pi-fleet completion fish > ~/.config/fish/completions/pi-fleet.fish
"""


def add_commands(commands: Any) -> None:
    """The name and options of this file's command."""
    parser = command(commands, "completion", "print the file with which a shell completes pi-fleet", completion)
    parser.epilog, parser.formatter_class = WHERE, argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=SHELLS, help="which shell")


def completion(arguments: argparse.Namespace) -> int:
    from pi_agent.fleet.cli import main  # it found this file, and is asked for all the others

    sys.stdout.write(SHELLS[arguments.shell]("pi-fleet", command_tree(main)))
    return 0
