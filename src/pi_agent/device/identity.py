"""Who this board is to its server: one small file beside the key, which says which key that is. Nothing in it is secret.

The rules it keeps:

* it is written before the key is made (a draft, without ``client_id``), so no key ever lies there unbound: a card copied
  in the middle of an enrollment is as well protected as one copied later;
* it belongs to the board with ``serial``; on another board it is not used, and not touched: ``claim`` sets it aside,
  whole, for the day the card goes back (requirement F-09, RA-25);
* it is replaced in one step, so a rotation that was cut off is in one of two states, and both go on (``rotate.py``).
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pi_agent.device import files
from pi_agent.errors import ConfigError, KeyFileError

NAME = "identity.json"
BOARDS = "boards"
VERSION = 2
FIRST_KEY = "file:key.pem"

_FOLDER = re.compile(r"[0-9A-Za-z]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """``client_id`` is what the server calls us ("" in a draft); ``serial`` is the board it belongs to ("" if it has none).

    ``key`` is the location of the key in use (``keys.stores``), ``kid`` its thumbprint. ``next_key`` is the location of
    the key that is being signed in, ``previous_key`` that of the one before, kept until the next rotation.
    """

    issuer: str
    client_id: str
    token_endpoint: str
    kid: str
    serial: str
    key: str = FIRST_KEY
    next_key: str = ""
    previous_key: str = ""

    @property
    def is_draft(self) -> bool:
        return not self.client_id

    def check_board(self, serial: str) -> None:
        """Raise KeyFileError when the card sits in another board: its old identity is not this board's to use."""
        if self.serial and serial != self.serial:
            raise KeyFileError(
                f"this identity belongs to the board with serial {self.serial}; this board is {serial or 'without one'}",
                path=NAME,
                hint=f"to enroll this board as itself, and keep the other's identity: sudo pi-agent setup {self.issuer}",
            )


def load(state: Path) -> Identity:
    """The identity in the state folder. Raises ConfigError when the board is not set up, KeyFileError when the file is damaged."""
    known = find(state)
    if known is None or known.is_draft:
        raise ConfigError(
            "this board is not set up yet",
            path=str(state / NAME),
            hint=f"sudo pi-agent setup {known.issuer if known else 'https://fleet.example'}",
        )
    return known


def find(state: Path) -> Identity | None:
    """The identity in the state folder, be it a draft, or None. Raises KeyFileError when the file is damaged."""
    path = state / NAME
    try:
        members = json.loads(files.read_private(path))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    version = members.get("version") if isinstance(members, dict) else None
    if isinstance(version, int) and version > VERSION:
        raise KeyFileError(f"{path} was written by a newer pi-agent", path=str(path), hint="upgrade pi-agent")
    if type(version) is not int or version < 1:
        raise _damaged(path)
    defaults = {field.name: field.default for field in fields(Identity)}
    values = {name: members.get(name, default) for name, default in defaults.items()}
    if not all(isinstance(value, str) and value.isprintable() for value in values.values()):
        raise _damaged(path)
    return Identity(**values)


def store(state: Path, identity: Identity) -> None:
    """Keep ``identity``, durably. Raises KeyFileError."""
    document = json.dumps({"version": VERSION} | asdict(identity), indent=1) + "\n"
    files.replace(state / NAME, document.encode())


def obstacle(state: Path) -> str:
    """Why the next rotation will have to wait, or "" (RA-21)."""
    trouble = files.trouble(state)
    return f"no key can be rotated: {trouble}" if trouble else ""


def claim(state: Path, serial: str) -> Identity | None:
    """The identity (or draft) that the board with ``serial`` may go on with; None when it has to begin.

    Another board's is set aside first, and what was set aside for this board comes back. Each file is moved by one
    rename, the identity last, so that whatever is cut off goes on the next time. Raises KeyFileError.
    """
    known = find(state)
    if known is not None and known.serial and known.serial != serial:
        _move(state, _aside(state, known.serial))
        known = None
    if known is None and serial and _FOLDER.fullmatch(serial):
        aside = state / BOARDS / serial
        if (aside / NAME).exists():
            _move(aside, state)
            known = find(state)
    return known


def set_aside(state: Path) -> list[str]:
    """The serials of the boards whose identities wait here for their board. Other folders are none of ours."""
    names = (path.parent.name for path in (state / BOARDS).glob(f"*/{NAME}"))
    return sorted(name for name in names if _FOLDER.fullmatch(name))


def forget(state: Path) -> None:
    """Remove every key file and identity, those set aside too, and what a cut-off write left of them. Raises KeyFileError."""
    for folder in (state, *(state / BOARDS).glob("*")):
        files.sweep(folder)
        for path in (*folder.glob("key*.pem"), folder / NAME):
            files.remove(path)
    for folder in (*(state / BOARDS).glob("*"), state / BOARDS):
        with suppress(OSError):  # never made, or somebody else's files are in it
            folder.rmdir()


def _aside(state: Path, serial: str) -> Path:
    folder = state / BOARDS / (serial if _FOLDER.fullmatch(serial) else serial.encode().hex()[:64])
    files.make_directory(state / BOARDS, 0o700)
    files.make_directory(folder, 0o700)
    return folder


def _move(source: Path, target: Path) -> None:
    try:
        for path in (*source.glob("key*.pem"), source / NAME):
            path.rename(target / path.name)
        files.sync(target)
        files.sync(source)
    except OSError as error:
        raise KeyFileError(
            f"cannot move {source} to {target}: {error.strerror}", path=str(source), hint=f"ls -l {source}"
        ) from error


def _damaged(path: Path) -> KeyFileError:
    return KeyFileError(f"{path} is damaged; it was left as it is", path=str(path), hint="sudo pi-agent setup URL")
