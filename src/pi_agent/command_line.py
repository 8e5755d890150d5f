"""Command lines: argparse whose errors say what was probably meant, and hints about the same agent or fleet as the line.

error: there is no command 'devcies'
hint: did you mean devices? pi-fleet --help lists the commands
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Iterable, Sequence

TYPE_CHECKING = False  # type checkers take it for true; the module would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """``names`` are the commands of the program, also those whose parsers were not made for this line."""

    names: Collection[str] = ()

    def parse_args(self, *given: Any, **options: Any) -> Any:
        """As argparse does it, but the words that nobody takes are refused by the command that they were given to."""
        arguments, rest = self.parse_known_args(*given, **options)
        if rest:
            arguments.command_parser.refuse(rest, before=self)
        return arguments

    def parse_known_args(self, *given: Any, **options: Any) -> Any:
        arguments, rest = super().parse_known_args(*given, **options)
        if rest and not hasattr(arguments, "command_parser"):  # the innermost comes first
            arguments.command_parser = self
        return arguments, rest

    def refuse(self, rest: Sequence[str], *, before: Parser) -> NoReturn:
        """Say that nobody takes ``rest``; ``before`` has the options that stand before a command."""
        option = next((word.partition("=")[0] for word in rest if word.startswith("-")), "")
        if before is not self and option in before._option_string_actions:
            hint = f"{option} stands before the command: {before.prog} {option} ..."
        elif option:
            hint = self.meant(option, self._option_string_actions, "options")
        else:
            hint = f"put quotes around what has spaces; {self.prog} --help"
        self.error(f"unrecognized arguments: {' '.join(rest)}", hint)

    def error(self, message: str, hint: str = "") -> NoReturn:
        self.exit(2, f"{self.format_usage()}error: {message}\nhint: {hint or f'{self.prog} --help'}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse has it, which answers a wrong command with the list of all."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            hint = self.meant(value, self.names or action.choices, "commands")
            self.exit(2, f"error: there is no command {value!r}\nhint: {hint}\n")
        super()._check_value(action, value)

    def meant(self, word: str, known: Iterable[str], what: str) -> str:
        """The hint for a word that is not among those known."""
        from pi_agent.catalogue import nearest  # most lines are good

        near = nearest(word, known)
        return f"{f'did you mean {near}? ' if near else ''}{self.prog} --help lists the {what}"


def asks_for_help(words: Sequence[str]) -> list[str]:
    """The words of a line, where ``help COMMAND`` is ``COMMAND --help``."""
    return [*words[1:], "--help"] if words[:1] == ["help"] else list(words)


def in_place(
    hint: str, program: str, commands: Collection[str], places: Sequence[str], arguments: argparse.Namespace
) -> str:
    """``hint`` with the commands in it as they are to be typed for whom this line was about: ``places`` are the options that say so."""
    import shlex  # hardly a line comes to this

    found = ((name, getattr(arguments, name.replace("-", "_"))) for name in places)
    given = shlex.join([word for name, value in found if value for word in (f"--{name}", str(value))])
    named = "|".join(map(re.escape, commands))
    return re.sub(rf"\b{program} (?=(?:{named})\b)", lambda found: f"{found[0]}{given} ", hint) if given else hint
