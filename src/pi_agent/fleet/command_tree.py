"""A program's commands and options as values, read from the argparse parser that the program itself builds.

Manual pages and completion files are made from these, and so cannot differ from ``--help``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from unittest.mock import patch

# What a value is, by the word that stands for it in --help.
FILES, FOLDERS = ("FILE",), ("DIR",)
ASKED = ("QUERY", "DEVICE")  # ``PROGRAM suggest`` knows what may stand there


@dataclass(frozen=True)
class Option:
    """``names`` are its spellings, none for an operand; ``value`` is the word that stands for its value, if it has one."""

    names: tuple[str, ...]
    value: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Command:
    """``path`` are the words that lead to it: ``()`` is the program itself, ``("config", "check")`` a command below one."""

    path: tuple[str, ...]
    help: str
    epilog: str
    options: tuple[Option, ...]
    operands: tuple[Option, ...]
    commands: tuple[Command, ...]

    def everything(self) -> Iterator[Command]:
        """This command, and all below it."""
        yield self
        for command in self.commands:
            yield from command.everything()


class _BuiltError(Exception):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def command_tree(main: Callable[[Sequence[str]], int]) -> Command:
    """The tree of the program that ``main`` runs; ``main`` gets as far as having its parser parse an empty command line."""

    def stop(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _BuiltError(parser)

    with patch.object(argparse.ArgumentParser, "parse_known_args", stop):
        try:
            main([])
        except _BuiltError as built:
            return _command((), built.parser, built.parser.description or "")
    raise AssertionError("the program parsed no command line")


def _command(path: tuple[str, ...], parser: argparse.ArgumentParser, summary: str) -> Command:
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    below = [action for action in shown if isinstance(action, argparse._SubParsersAction)]
    plain = [_option(action) for action in shown if action not in below]
    return Command(
        path,
        summary,
        parser.epilog or "",
        tuple(option for option in plain if option.names),
        tuple(option for option in plain if not option.names),
        tuple(command for action in below for command in _below(path, action)),
    )


def _below(path: tuple[str, ...], action: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[Command]:
    summaries = {choice.dest: choice.help for choice in action._choices_actions}
    for name, parser in action.choices.items():
        yield _command((*path, name), parser, summaries.get(name) or parser.description or "")


def _option(action: argparse.Action) -> Option:
    choices = tuple(str(choice) for choice in action.choices or ())
    value = "" if action.nargs == 0 else str(action.metavar or (not choices and action.dest.upper()) or "")
    return Option(tuple(action.option_strings), value, choices, (action.help or "").replace("%%", "%"))
