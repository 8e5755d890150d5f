"""``serve``: the server itself."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from typing import Any

from pi_agent.errors import ConfigError
from pi_agent.fleet import client
from pi_agent.fleet.commands.common import command, settings_of
from pi_agent.fleet.options import OPTIONS
from pi_agent.fleet.settings import Settings


def add_commands(commands: Any) -> None:
    """Every setting is an option. Their defaults stay None here, so that the environment and the file are asked, too."""
    parser = command(commands, "serve", "run the server", serve)
    defaults = {field.name: field.default for field in fields(Settings)}
    for name, option in OPTIONS.items():
        if not option.flag:
            continue
        flag = "--" + name.replace("_", "-")
        names = ("--database", flag) if name == "database_url" else (flag,)
        default = defaults[name]
        shown = f"{default:g}" if isinstance(default, float) else str(default).lower()
        words = option.help + (f" (default {shown})" if default else "")
        parser.add_argument(*names, dest=name, metavar=option.metavar, help=words)
    parser.add_argument(
        "--no-rate-limit",
        dest="rate_limit",
        action="store_const",
        const=False,
        help="serve everybody as fast as they ask",
    )


def serve(arguments: argparse.Namespace) -> int:
    """Run the server until it is told to end."""
    settings = settings_of(arguments)
    os.umask(0o077)
    try:
        from pi_agent.fleet.server import serve as run  # Django and uvicorn, which only the server needs
    except ModuleNotFoundError as error:
        raise ConfigError(f"the server needs {error.name}, which is not installed", hint=client.EXTRA) from error
    return run(settings)
