"""Commands that work on the data folder itself: ``serve`` and ``simulate``. Only these import the server."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import fields
from typing import Any

from pi_agent.errors import ConfigError, UsageError
from pi_agent.fleet import client, folder
from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.commands.common import count, say, settings_of
from pi_agent.fleet.options import OPTIONS
from pi_agent.fleet.progress import Progress
from pi_agent.fleet.served import adopted
from pi_agent.fleet.settings import Settings

MOST = 10_000_000
MOST_DAYS = 3650


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    _add_serve(commands.add_parser("serve", help="run the server"))
    _add_simulate(commands.add_parser("simulate", help="add devices that do not exist, for trying and load tests"))


def _add_serve(parser: argparse.ArgumentParser) -> None:
    """Every setting is an option. Their defaults stay None here, so that the environment and the file are asked, too."""
    defaults = {field.name: field.default for field in fields(Settings)}
    for name, option in OPTIONS.items():
        if not option.flag:
            continue
        flag = "--" + name.replace("_", "-")
        names = ("--database", flag) if name == "database_url" else (flag,)
        default = defaults[name]
        shown = (
            f" (default {default:g})"
            if isinstance(default, float)
            else " (default true)"
            if default is True
            else f" (default {default})"
            if default
            else ""
        )
        parser.add_argument(*names, dest=name, metavar=option.metavar, help=option.help + shown)
    parser.add_argument(
        "--no-rate-limit",
        dest="rate_limit",
        action="store_const",
        const=False,
        help="serve everybody as fast as they ask",
    )
    parser.set_defaults(run=serve)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", type=int, metavar="N", help="how many")
    parser.add_argument(
        "--days", type=int, default=30, metavar="D", help="how long ago the first one came (default 30)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="another number, another fleet (default 1)")
    parser.set_defaults(run=simulate)


def serve(arguments: argparse.Namespace) -> int:
    """Run the server until it is told to end."""
    settings = settings_of(arguments)
    os.umask(0o077)
    try:
        from pi_agent.fleet.server import serve as run  # Django and uvicorn, which only the server needs
    except ModuleNotFoundError as error:
        raise ConfigError(f"the server needs {error.name}, which is not installed", hint=client.EXTRA) from error
    return run(settings)


def simulate(arguments: argparse.Namespace) -> int:
    """Add simulated devices to the registry."""
    if not 1 <= arguments.number <= MOST or not 1 <= arguments.days <= MOST_DAYS:
        raise UsageError(f"1 to {MOST:,} devices over 1 to {MOST_DAYS:,} days")
    settings = adopted(settings_of(arguments))
    os.umask(0o077)
    folder.prepare(settings.data)
    try:
        fleet_settings.configure(settings)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed", hint=client.EXTRA) from error
    fleet_settings.migrate()
    from pi_agent.fleet.simulate import fill  # models exist only once Django is set up

    started = time.monotonic()
    progress = Progress("simulated devices", arguments.number)
    try:
        with progress:
            fill(arguments.number, days=arguments.days, now=int(time.time()), seed=arguments.seed, progress=progress)
    except KeyboardInterrupt:
        say(f"interrupted: {count(progress.done)} made, all of them whole")
        raise
    say(f"{count(arguments.number)} made in {time.monotonic() - started:.1f} s; pi-fleet devices simulated:true")
    return 0
