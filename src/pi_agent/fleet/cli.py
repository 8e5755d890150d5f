"""``pi-fleet``: the commands of an operator.

Everything but ``serve`` is a REST call over ``DATA/fleet.sock`` and needs the standard library only, so that it starts
fast. stdout is data, stderr is words.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pi_agent import __version__
from pi_agent.errors import ConfigError, PiAgentError
from pi_agent.fleet.settings import Settings, load


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except PiAgentError as error:
        complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return code


def complain(error: PiAgentError) -> None:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201  # a command's output
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201  # the same


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pi-fleet", description="Know every Raspberry Pi of a fleet.")
    parser.add_argument("--version", action="version", version=f"pi-fleet {__version__}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of this fleet")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: DATA/fleet.toml)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the server"))
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bind", metavar="HOST:PORT", help="where to listen (default: 127.0.0.1:8080; port 0: any)")
    parser.add_argument(
        "--issuer", metavar="URL", help="the address that devices know, such as https://fleet.example.org"
    )
    parser.add_argument("--audience", help="whom access tokens are for (default: the issuer)")
    parser.add_argument("--scopes", help="what a new device may ask for (default: device)")
    parser.add_argument("--token-lifetime", metavar="SECONDS", help="life of an access token (default: 1800)")
    parser.add_argument(
        "--no-rate-limit",
        dest="rate_limit",
        action="store_const",
        const=False,
        help="serve everybody as fast as they ask",
    )
    parser.set_defaults(run=_serve)


def settings_of(arguments: argparse.Namespace) -> Settings:
    return load(vars(arguments), os.environ, config=arguments.config)


def _serve(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    try:
        from pi_agent.fleet.server import serve  # Django and uvicorn, which only the server needs
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server needs {error.name}, which is not installed", hint="pip install 'pi-agent[fleet]'"
        ) from error
    return serve(settings)
