"""Commands that work on the data folder itself: ``serve`` and ``simulate``. Only these import the server."""

from __future__ import annotations

import argparse
import os
import time

from pi_agent.errors import ConfigError, UsageError
from pi_agent.fleet import client, folder
from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.commands.common import count, say, settings_of
from pi_agent.fleet.progress import Progress

MOST = 10_000_000
MOST_DAYS = 3650


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
    settings = settings_of(arguments)
    os.umask(0o077)
    folder.prepare(settings.data)
    try:
        fleet_settings.configure(settings)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed", hint=client.EXTRA) from error
    fleet_settings.migrate()
    from pi_agent.fleet.simulate import fill  # models exist only once Django is set up

    started = time.monotonic()
    with Progress("simulated devices", arguments.number) as progress:
        try:
            fill(arguments.number, days=arguments.days, now=int(time.time()), seed=arguments.seed, progress=progress)
        except KeyboardInterrupt:
            say(f"interrupted: {count(progress.done)} made")
            raise
    say(f"{count(arguments.number)} made in {time.monotonic() - started:.1f} s; pi-fleet devices simulated:true")
    return 0
