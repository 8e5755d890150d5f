"""What commands share: the way to the fleet, and words on stderr."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from pi_agent.errors import ConfigError, UsageError
from pi_agent.fleet import client, output
from pi_agent.fleet.place import default_data

TYPE_CHECKING = False  # type checkers take it for true; what is imported there would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Any

    from pi_agent.fleet.settings import Settings

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
SERVER, TOKEN = "PI_FLEET_SERVER", "PI_FLEET_TOKEN"
PAGE = 500
DEVICE_ID = re.compile(r"pi-[0-9a-f]{16}")
QUERY = "such as model:2b memory:1gb auth:1d, or @VIEW"
AS_JSON: dict[str, Any] = {"action": "store_true", "help": "as JSON"}


def command(commands: Any, name: str, what: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    """The parser of a new command."""
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def group(commands: Any, name: str, what: str) -> Any:
    """A command of commands: where to add them."""
    parser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    return parser.add_subparsers(required=True, metavar="COMMAND")


def say(text: str) -> None:
    sys.stderr.write(output.plain(text) + "\n")


def is_term(word: str) -> bool:
    """Whether a word that begins with a minus is a term of a query, such as ``-tag:lab`` or ``-(...)``, and no option or tag."""
    return word[:2] != "--" and (":" in word or word[1:2] == "(")


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The settings of the fleet on this machine. Raises UsageError when another one is named."""
    if url := _elsewhere(arguments):
        raise UsageError(
            f"this works on the server's own machine, not at {url}",
            hint="log in there and run it with --data; for a fleet here, name it with --data and no --server",
        )
    from pi_agent.fleet.settings import load  # a command that talks to a server needs none of them

    environ = {name: value for name, value in os.environ.items() if name not in (SERVER, TOKEN)}
    return load(vars(arguments), environ, config=arguments.config)


def fleet_of(arguments: argparse.Namespace, *, create: bool = False, served: bool = False) -> client.Fleet:
    """The fleet that a command is about: one elsewhere when it is named, else the one in the data folder."""
    if url := _elsewhere(arguments):
        return client.connect_to(url, _token(arguments))
    data = Path(arguments.data or default_data(os.environ)).absolute()
    return client.connect(data, lambda: settings_of(arguments), create=create, served=served)


def _elsewhere(arguments: argparse.Namespace) -> str:
    """The address of the fleet that a command is about, when it is not one in a folder here."""
    return arguments.server or ("" if arguments.data else os.environ.get(SERVER, ""))


def _token(arguments: argparse.Namespace) -> str:
    path: Path | None = arguments.token_file
    if path is None:
        return os.environ.get(TOKEN, "")
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the token in {path}", path=str(path), key="token-file") from error


def printed(arguments: argparse.Namespace, answer: dict[str, Any], text: str) -> int:
    """Print an answer as the command line asked for it: as JSON, as YAML, or as text."""
    form = getattr(arguments, "output", "json" if getattr(arguments, "json", False) else "")
    sys.stdout.write(
        {"json": output.as_json, "yaml": output.as_yaml}[form](answer) if form in ("json", "yaml") else text
    )
    return 0


def listed(arguments: argparse.Namespace, answer: dict[str, Any], *names: str) -> int:
    """Print a list as ``printed`` does; as text, these members of its items side by side."""
    if not answer["items"]:
        say("none")
        return printed(arguments, answer, "")
    rows = [[_cell(item[name]) for name in names] for item in answer["items"]]
    headings = [name.upper().replace("_", " ") for name in names]
    return printed(arguments, answer, output.aligned([headings, *rows]))


def _cell(value: object) -> str:
    text = output.plain(" ".join(value) if isinstance(value, list) else str(value))
    return text if value is not None and text else "-"


def pages(fleet: client.Fleet, path: str, limit: int | None, onward: str, **asked: object) -> dict[str, Any]:
    """The answer with the items of all pages in it, up to ``limit``; ``onward`` is the parameter that asks for the next."""
    answer = fleet.get(path, **asked, limit=min(limit or PAGE, PAGE))
    items = answer["items"]
    while answer["next"] and (limit is None or len(items) < limit):
        size = PAGE if limit is None else min(PAGE, limit - len(items))
        answer |= fleet.get(path, **asked, limit=size, **{onward: answer["next"]})
        items += answer["items"]
    return answer | {"items": items}


def count(number: int, what: str = "device") -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def seconds(age: str) -> int:
    """Seconds of ``30m``, ``12h`` or ``1d``. Raises UsageError."""
    if not re.fullmatch(r"[0-9]{1,9}[smhdw]", age):
        raise UsageError(f"{age!r} is not an age", hint="write 30m, 12h or 1d")
    return int(age[:-1]) * UNITS[age[-1]]


def confirmed(what: str, number: int) -> bool:
    """Whether a person at the terminal typed the number back."""
    sys.stderr.write(f"type {number} to {what}: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == str(number)
