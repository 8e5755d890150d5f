"""``pi-fleet``: finds the command of an operator in ``pi_agent.fleet.commands``, runs it, and says what went wrong.

Nearly every command is a REST call over ``DATA/fleet.sock``, or to another machine with an operator token, and needs
the standard library only, so that it starts fast. stdout is data; stderr is words, which begin with what a query meant.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from pi_agent import __version__
from pi_agent.command_line import Parser, asks_for_help
from pi_agent.errors import PiAgentError, QueryError
from pi_agent.fleet.commands import COMMANDS, PLACES, in_place, names
from pi_agent.fleet.commands.common import is_term, say

TYPE_CHECKING = False  # type checkers take it for true; the module would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Any

THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)  # no option is as long
WHOSE = tuple(f"--{name}" for name in PLACES)
EPILOG = """\
exit codes: 0 done, also when a list is empty; 1 failed; 2 usage; 3 not found, or nothing to change; 4 not authorised;
  5 unreachable; 6 conflict; 130 interrupted

example:
  pi-fleet serve
  pi-fleet devices model:2b memory:1gb auth:1d
  pi-fleet devices late:true --count-by model
  pi-fleet approve status:pending serial:*8f3a --reason 'kitchen display'
"""


def main(argv: Sequence[str] | None = None) -> int:
    if argv is None and "serve" in sys.argv:  # a reload must not end a server that cannot take one yet
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except PiAgentError as error:
        _complain(error, arguments)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left; nothing more to say to it
        return 1
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command that a line asks for. Raises SystemExit where it makes none, as argparse does."""
    first, rest = _whose_first(argv)
    words = first + _queries(asks_for_help(rest))
    return _parser(words).parse_args(words)


def _whose_first(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options that say whose fleet it is, which argparse wants before the command; and the other words."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word in WHOSE:
            first += [word, *islice(words, 1)]
        else:
            (first if word.partition("=")[0] in WHOSE else rest).append(word)
    return first, rest


def _queries(argv: Sequence[str]) -> list[str]:
    """The words of a command line, where ``-tag:lab`` and ``-(...)`` are terms of a query, ``tag ... -lab`` takes a tag away,
    and ``--sort -auth`` has its value.

    A thumbprint may begin with a minus, too: one in 64 does.
    """
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--sort":
            words[-1] = f"--sort={word}"
        elif words[-1:] == ["device"] and word == "add":  # a device that is called so is found by name:add
            words[-1] = "device-add"
        elif word[:1] == "-" and (
            is_term(word) or THUMBPRINT.fullmatch(word) or (words[:1] == ["tag"] and _is_tag(word))
        ):
            words.append(f" {word}")  # what begins with a space is no option to argparse, and the same to a query
        else:
            words.append(word)
    return words


def _is_tag(word: str) -> bool:
    return word[:2] != "--" and word != "-h"


def _complain(error: PiAgentError, arguments: argparse.Namespace) -> None:
    say(f"error: {error}")
    if error.hint:
        say(f"hint: {in_place(error.hint, arguments)}")
    if isinstance(error, QueryError) and error.suggestion and error.suggestion not in (error.hint or ""):
        say(f"try: {error.suggestion}")


class _Help(argparse.HelpFormatter):
    """As argparse has it, which makes one for each option that is added, and imports ``shutil`` to ask for the width."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS", "0")) or os.get_terminal_size(1).columns
        except (OSError, ValueError):
            columns = 80
        super().__init__(prog, width=columns - 2)


class _RawHelp(_Help, argparse.RawDescriptionHelpFormatter):
    """The same, with the lines of a description as they are."""


class _Parser(Parser):
    """A parser whose commands have that help, too."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Help, **options})

    def parse_known_args(self, *given: Any, **options: Any) -> Any:
        """As argparse does it, which of the words of a query finds only those that stand together; the others may stand
        after an option. Not where something is changed: there they may be the rest of a reason without quotes.
        """
        arguments, rest = super().parse_known_args(*given, **options)
        query = getattr(arguments, "query", None)
        if not isinstance(query, list) or hasattr(arguments, "reason") or any(word.startswith("-") for word in rest):
            return arguments, rest
        arguments.query = query + rest
        return arguments, []


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of the commands that a line may mean: of those it names, or of all."""
    parser = _Parser(
        prog="pi-fleet",
        description="Know every Raspberry Pi of a fleet: which board it is, and when it authenticated.",
        epilog=EPILOG,
        formatter_class=_RawHelp,
    )
    parser.add_argument("--version", action="version", version=f"pi-fleet {__version__}")
    home = "/var/lib/pi-fleet for root, else ~/.local/share/pi-fleet"
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the folder of the fleet (default: {home})")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: DATA/fleet.toml)")
    parser.add_argument("--server", metavar="URL", help="a fleet on another machine (default: $PI_FLEET_SERVER)")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the operator token for it (default: $PI_FLEET_TOKEN)"
    )
    # Without ``prog`` argparse takes long to find it out.
    commands = parser.add_subparsers(required=True, metavar="COMMAND", prog=parser.prog)
    parser.names = names()
    named = [module for module, its in COMMANDS.items() if not its.isdisjoint(argv)]
    for module in named or COMMANDS:
        importlib.import_module(f"pi_agent.fleet.commands.{module}").add_commands(commands)
    return parser
