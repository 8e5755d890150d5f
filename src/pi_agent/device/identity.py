"""Who this board is to its server, as enrollment left it: one small file beside the key. Nothing in it is secret."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pi_agent.device import files
from pi_agent.errors import ConfigError, KeyFileError

NAME = "identity.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Identity:
    """``client_id`` is what the server calls us; ``serial`` is the board that the key was made on ("" if it has none)."""

    issuer: str
    client_id: str
    token_endpoint: str
    kid: str
    serial: str

    def check_board(self, serial: str) -> None:
        """Raise KeyFileError when the card sits in another board: its old identity is not this board's to use."""
        if self.serial and serial != self.serial:
            raise KeyFileError(
                f"this identity belongs to the board with serial {self.serial}; this board is {serial or 'without one'}",
                path=NAME,
                hint="to enroll this board as itself: pi-agent wipe-identity && pi-agent setup URL",
            )


def load(state: Path) -> Identity:
    """The identity in the state folder. Raises ConfigError when the board is not set up, KeyFileError when the file is damaged."""
    path = state / NAME
    try:
        members = json.loads(files.read_private(path))
    except FileNotFoundError:
        raise ConfigError(
            "this board is not set up yet", path=str(path), hint="pi-agent setup https://fleet.example"
        ) from None
    except ValueError as error:
        raise _damaged(path) from error
    if isinstance(members, dict) and isinstance(members.get("version"), int) and members["version"] > VERSION:
        raise KeyFileError(f"{path} was written by a newer pi-agent", path=str(path), hint="upgrade pi-agent")
    fields = {name: members.get(name) for name in Identity.__slots__} if isinstance(members, dict) else {"": None}
    if not all(isinstance(value, str) for value in fields.values()):
        raise _damaged(path)
    return Identity(**fields)


def store(state: Path, identity: Identity) -> None:
    """Keep ``identity``, durably. Raises KeyFileError."""
    document = json.dumps({"version": VERSION} | asdict(identity), indent=1) + "\n"
    files.replace(state / NAME, document.encode())


def _damaged(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is damaged; it was left as it is", path=str(path), hint="pi-agent setup URL")
