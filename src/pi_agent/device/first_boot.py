"""The file on the boot partition, ``pi-agent.toml``, which any computer can write: read once, and its secret taken out.

It holds settings by their usual names, and may hold an enrollment token:

    name = "kitchen"
    [server]
    issuer = "https://fleet.example"
    [enrollment]
    token = "..."

The order is that of a move: the settings and the token are on their own file system before anything is erased here; then
the token is overwritten where it stands, and the file is given another name. Whatever is cut off is done again. The
partition has no owners and no modes, so what is in the file is read as anybody's words: bounded, checked like any other
setting, and never a path that would move the agent's own folders.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi_agent.device import config
from pi_agent.errors import ConfigError

PLACES = (Path("/boot/firmware/pi-agent.toml"), Path("/boot/pi-agent.toml"))
TOKEN_SETTING = "enrollment.token"  # noqa: S105  # the name of a setting
TAKEN = ".taken"
WAITING = "enrollment-token"  # in the state folder from the takeover until the server knows the board; may be empty
MAX_SIZE = 64 * 1024
MAX_TOKEN = 512
NOT_FROM_HERE = frozenset({"state", "runtime", "root", "sinks.token_file", "sinks.environment_file", "sinks.hooks"})
ALLOWED = frozenset(setting.name for setting in config.SETTINGS) - NOT_FROM_HERE


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the file asks for: ``settings`` by name, and ``token`` ("" without one)."""

    settings: dict[str, Any]
    token: str


def read(path: Path) -> Wishes:
    """What the file asks for. Raises ConfigError; the file is then left as it is."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    return parse(data, path)


def parse(data: bytes, path: Path) -> Wishes:
    """What the bytes of the file ask for. Raises ConfigError, which never repeats the token."""
    if len(data) > MAX_SIZE:
        raise ConfigError(f"{path} is longer than {MAX_SIZE // 1024} KiB", path=str(path))
    try:
        values = _flat(tomllib.loads(data.decode("utf-8-sig")))
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text", path=str(path), hint="save it as plain text (UTF-8)") from None
    except (tomllib.TOMLDecodeError, RecursionError):
        # The parser's own words may quote the line, and the line may be the token's.
        raise ConfigError(f"{path} is not TOML", path=str(path), hint='each line is like: name = "kitchen"') from None
    token = values.pop(TOKEN_SETTING, "")
    if not isinstance(token, str) or len(token) > MAX_TOKEN or not token.isascii() or not token.isprintable():
        raise ConfigError(f"{path}: {TOKEN_SETTING} is not a token", path=str(path), key=TOKEN_SETTING)
    if not token.strip("*"):  # the power was cut between erasing and renaming
        token = ""
    if unknown := sorted(values.keys() - ALLOWED):
        raise ConfigError(f"{path}: {unknown[0]} cannot be set here", path=str(path), key=unknown[0])
    return Wishes(values, token)


def erase(path: Path, token: str) -> None:
    """Overwrite ``token`` where it stands, and give the file another name. Raises ConfigError.

    In place and not by a new file: a new one would leave the old blocks, and the token in them, on the card.
    """
    try:
        if token:
            with path.open("r+b") as file:
                data, secret = file.read(MAX_SIZE), token.encode("ascii")
                file.seek(0)
                # Written with TOML's escapes it stands nowhere as it is: then nothing of the file stays but a comment.
                file.write(data.replace(secret, b"*" * len(secret)) if secret in data else b"#" * len(data))
                file.flush()
                os.fsync(file.fileno())
        path.replace(path.with_name(path.name + TAKEN))
        os.sync()
    except OSError as error:
        raise ConfigError(
            f"cannot erase the token in {path}: {error.strerror}", path=str(path), hint="erase it by hand"
        ) from error


def _flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
