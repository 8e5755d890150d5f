"""Settings files: read with the line that each value stands on, and changed line by line, so that comments survive.

The main file comes first, then ``config.d/*.toml`` beside it in the order of their names; a later value wins.
``[[local.allow]]`` tables add up.
"""

from __future__ import annotations

import difflib
import os
import stat
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pi_agent.device import files
from pi_agent.errors import ConfigError

DROP_INS = "config.d"
NEW_FILE = 0o644  # whatever the umask: settings are no secret, and the agent is another user than root
RULES = "local.allow"
RULE_KEYS = ("user", "group", "audiences", "scopes")


@dataclass(frozen=True, slots=True)
class Found:
    """A value in a file, and its ``origin``: ``path:line``."""

    value: Any
    origin: str


def read_all(path: Path, known: Collection[str], *, required: bool) -> tuple[dict[str, Found], list[Found]]:
    """The settings of the main file and its drop-ins, and the allow rules. Raises ConfigError."""
    values: dict[str, Found] = {}
    rules: list[Found] = []
    for file in (path, *_drop_ins(path)):
        text = _text(file, required=required and file == path)
        for name, value in _parsed(file, text).items():
            if name == RULES:
                rules += _rules(file, text, value)
            elif name in known:
                values[name] = Found(value, f"{file}:{_line(text, name)}")
            else:
                raise _unknown(name, known, file, text)
    return values, rules


def write(path: Path, changes: Mapping[str, str | int | bool]) -> None:
    """Set ``changes`` in the file at ``path``, which is made if there is none; other lines stay as they are.

    Raises ConfigError when it cannot be written.
    """
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        text = _edited(old, changes)
        _check_edit(path, text, changes)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
        try:
            with temporary.open("x", encoding="utf-8") as file:
                _keep_rights(path, file.fileno())
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        files.sync(path.parent)  # or a power cut in the next seconds undoes the renaming
    except UnicodeDecodeError as error:
        raise ConfigError(f"cannot read {path}: {error}", path=str(path)) from error
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", path=str(path), hint="run it as root, or name another --config"
        ) from error


def _keep_rights(path: Path, handle: int) -> None:
    """The new file is whose the old one was, and opens to the same people: the agent may read it by its group alone.

    In place of a link, it is as what the link led to: the text comes from there.
    """
    found = path.stat() if path.exists() else None
    mode = NEW_FILE
    if found is not None and stat.S_ISREG(found.st_mode):
        mode = stat.S_IMODE(found.st_mode)
        is_root = os.geteuid() == 0
        try:
            os.fchown(handle, found.st_uid if is_root else -1, found.st_gid)
        except PermissionError:  # nobody else can give a file away
            if is_root:
                raise
    os.fchmod(handle, mode)


def _drop_ins(path: Path) -> list[Path]:
    folder = path.parent / DROP_INS
    try:
        return sorted(each for each in folder.iterdir() if each.name.endswith(".toml"))
    except FileNotFoundError:
        return []
    except OSError as error:  # the rules in it would be left out, and without a rule more is allowed
        raise ConfigError(
            f"cannot read {folder}: {error.strerror}", path=str(folder), hint=f"ls -ld {folder}"
        ) from error


def _text(path: Path, *, required: bool) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required and not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent}", path=str(path)) from None
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", path=str(path)) from error


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        return _flatten(tomllib.loads(text))
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or as many brackets
        raise ConfigError(f"{path}: {error}", path=str(path)) from error


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _rules(path: Path, text: str, value: Any) -> list[Found]:
    lines = [number for number, row in enumerate(text.splitlines(), 1) if row.strip().startswith(f"[[{RULES}]]")]
    tables = value if isinstance(value, list) and all(isinstance(table, dict) for table in value) else None
    if tables is None:
        raise ConfigError(f"{path}: allow must be written as [[{RULES}]] tables", path=str(path), key=RULES)
    found = []
    for number, table in enumerate(tables):
        origin = f"{path}:{lines[number] if number < len(lines) else 1}"
        for key in table:
            if key not in RULE_KEYS:
                raise ConfigError(
                    f"{origin}: a [[{RULES}]] table has no key {key!r}",
                    path=str(path),
                    key=key,
                    hint=_near(key, RULE_KEYS),
                )
        found.append(Found(table, origin))
    return found


def _unknown(name: str, known: Collection[str], path: Path, text: str) -> ConfigError:
    where = f"{path}:{_line(text, name)}"
    return ConfigError(
        f"{where}: there is no setting {name!r}", path=str(path), key=name, hint=_near(name, [*known, RULES])
    )


def _near(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else "there are: " + ", ".join(known)


def _line(text: str, name: str) -> int:
    """The line on which ``table.key`` is set, or 1 where the file writes it in some other way."""
    wanted, _, key = name.rpartition(".")
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            table = stripped.partition("]")[0].strip("[ ")
        elif table == wanted and stripped.partition("=")[0].strip() == key:
            return number
    return 1


def _edited(text: str, changes: Mapping[str, str | int | bool]) -> str:
    lines = text.splitlines()
    for name, value in changes.items():
        table, _, key = name.rpartition(".")
        _set_line(lines, table, f"{key} = {literal(value)}")
    return "\n".join(lines) + "\n"


def _check_edit(path: Path, text: str, changes: Mapping[str, str | int | bool]) -> None:
    """A file laid out in a way that ``_edited`` does not know is left to the person who wrote it so. Raises ConfigError."""
    try:
        found = _flatten(tomllib.loads(text))
    except ValueError:
        found = {}
    if any(found.get(name) != value for name, value in changes.items()):
        lines = "; ".join(f"{name} = {literal(value)}" for name, value in changes.items())
        raise ConfigError(
            f"cannot set these in {path} as it is laid out: {lines}", path=str(path), hint="set them by hand"
        )


def _set_line(lines: list[str], table: str, assignment: str) -> None:
    """Replace the key's line in ``table``, or add it at the end of that table (which is added too, if need be)."""
    key, current, end = assignment.partition(" = ")[0], "", None
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.partition("]")[0].strip("[ ")
        elif current == table and stripped.partition("=")[0].strip() == key:
            lines[number] = assignment
            return
        if current == table:
            end = number + 1
    if end is None and table:
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        end = len(lines)
    lines.insert(end or 0, assignment)


def literal(value: str | int | bool) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
