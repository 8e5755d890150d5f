"""``pi-agent first-boot``: take over ``pi-agent.toml`` from the boot partition, once, and enroll (what a service runs)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_agent.errors import ConfigError, KeyFileError

if TYPE_CHECKING:
    from pi_agent.device.config import Settings

HELP = "take over pi-agent.toml from the boot partition, once, and enroll"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, help="the file (default /boot/firmware/pi-agent.toml)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.epilog = "exit code: 0 enrolled, 3 there was nothing to do, 4 waits for approval, 5 no answer yet: try again"


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError for a file that cannot be taken over (and stays as it is), and whatever setup raises."""
    from pi_agent.device import config, files, first_boot, golden
    from pi_agent.device.probe import probe

    places = [args.file] if args.file else first_boot.PLACES
    path = next((place for place in places if place.exists()), None)
    settings = config.load(vars(args))
    waiting = settings.state / first_boot.WAITING
    if path is not None:
        files.make_directory(settings.state, 0o700)
        serial = probe(str(settings.root)).serial or ""
        with files.as_owner_of(settings.state):  # before anything is taken: what is meant for the copies stays for them
            golden.check(settings.state, serial)
        settings = _take_over(path, settings, waiting)
    elif not waiting.exists():
        _say("there is no pi-agent.toml on the boot partition: nothing to take over")
        return 3
    code = _enroll(args, settings, waiting)
    with files.as_owner_of(settings.state):
        files.remove(waiting)
    _say("this board is known to the server; its enrollment token is gone from the card")
    return code


def _take_over(path: Path, settings: Settings, waiting: Path) -> Settings:
    from pi_agent.device import config, files, first_boot, toml_file

    wishes = first_boot.read(path)
    flags: dict[str, Any] = {name.replace(".", "_"): value for name, value in wishes.settings.items()}
    folders = {"config": settings.config, "state": settings.state, "runtime": settings.runtime, "root": settings.root}
    wanted = config.load(
        flags | {name: str(value) for name, value in folders.items()} | {"config": _existing(settings)}
    )
    if not wanted.server_issuer:
        raise ConfigError(
            f"{path} names no server", path=str(path), key="server.issuer", hint='[server]\nissuer = "..."'
        )
    toml_file.write(settings.config, wishes.settings)
    if wishes.token or not waiting.exists():
        with files.as_owner_of(settings.state):
            files.replace(waiting, wishes.token.encode("ascii") + b"\n")
    first_boot.erase(path, wishes.token)
    token = ", and an enrollment token, which was erased there" if wishes.token else ""
    _say(f"took over {path}: {', '.join(sorted(wishes.settings))}{token}; settings are in {settings.config} now")
    return wanted


def _existing(settings: Settings) -> str | None:
    """A settings file that is named must exist; at the first boot it need not."""
    return str(settings.config) if settings.config.exists() else None


def _enroll(args: argparse.Namespace, settings: Settings, waiting: Path) -> int:
    from pi_agent.device.commands import setup

    token = setup.one_word(_token(waiting))
    return setup.join(argparse.Namespace(**vars(args), url=settings.server_issuer, wait=None), token)


def _token(waiting: Path) -> str:
    """Read with the rights of whose folder it is: a link in its place must not send what only root may read."""
    from pi_agent.device import files

    with files.as_owner_of(waiting.parent):
        try:
            return files.read_private(waiting).decode("ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            raise KeyFileError(
                f"{waiting} is not an enrollment token", path=str(waiting), hint=f"sudo rm {waiting}"
            ) from None


def _say(sentence: str) -> None:
    """To the journal, by way of standard error."""
    sys.stderr.write(f"pi-agent: {sentence}\n")
