"""The agent's settings: from flags, then ``PI_AGENT_*``, then the TOML file, then what is built in.

One table names every setting once; the dataclass, the reader, the variables and the file follow it. An unknown key is
an error that names the nearest one, with file and line.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pi_agent.errors import ConfigError

DEFAULT_CONFIG = "/etc/pi-agent/config.toml"


@dataclass(frozen=True, slots=True)
class Setting:
    """``name`` as in the file (``table.key``); the variable is ``PI_AGENT_`` and the same name in capitals."""

    name: str
    default: str | int | bool
    help: str

    @property
    def attribute(self) -> str:
        return self.name.replace(".", "_")

    @property
    def variable(self) -> str:
        return "PI_AGENT_" + self.attribute.upper()


SETTINGS = (
    Setting("state", "/var/lib/pi-agent", "folder of the key and the identity"),
    Setting("runtime", "/run/pi-agent", "folder of the socket (memory, not the card)"),
    Setting("root", "/", "where /proc is read; another folder replays a recorded board"),
    Setting("name", "", "what people call this board, shown to operators"),
    Setting("server.issuer", "", "the authorization server's issuer identifier (an https URL)"),
    Setting("server.ca_file", "", "one CA file to trust instead of the system's bundle"),
    Setting("server.proxy", "", "an http:// or https:// proxy; the environment's is never used"),
    Setting("server.loopback_http", False, "allow plain http to 127.0.0.0/8 and ::1, for trying things out"),
    Setting("token.scope", "", "scopes to ask for, separated by spaces"),
    Setting("token.resource", "", "the resource the token is for, where the server wants one (RFC 8707)"),
    Setting("token.assertion_lifetime", 60, "seconds an assertion is good for (10 to 300)"),
    Setting("token.spread", 60, "seconds over which a fleet's first requests after boot are spread"),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. ``config`` is the file that was read (it need not exist)."""

    config: Path
    state: Path
    runtime: Path
    root: Path
    name: str
    server_issuer: str
    server_ca_file: str
    server_proxy: str
    server_loopback_http: bool
    token_scope: str
    token_resource: str
    token_assertion_lifetime: int
    token_spread: int

    @property
    def socket(self) -> Path:
        return self.runtime / "agent.sock"


def load(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in force. ``flags`` maps names to values given on the command line (None: not given).

    Raises ConfigError naming the file or variable, the key, and what was expected.
    """
    path = Path(flags.get("config") or environ.get("PI_AGENT_CONFIG") or DEFAULT_CONFIG)
    in_file = _read_file(path, required=bool(flags.get("config")))
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        given = flags.get(setting.attribute)
        if given is not None:
            values[setting.attribute] = _value(setting, given, "the command line")
        elif setting.variable in environ:
            values[setting.attribute] = _value(setting, environ[setting.variable], setting.variable)
        elif setting.name in in_file:
            values[setting.attribute] = _value(setting, in_file[setting.name], str(path))
        else:
            values[setting.attribute] = setting.default
    for name in ("state", "runtime", "root"):
        values[name] = Path(values[name]).absolute()
    settings = Settings(config=path, **values)
    _check(settings, str(path))
    return settings


def write(path: Path, changes: Mapping[str, str | int | bool]) -> None:
    """Set ``changes`` in the file at ``path``, which is made if there is none; other lines stay as they are.

    Raises ConfigError when it cannot be written.
    """
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        text = _edited(old, changes)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise ConfigError(
            f"cannot write {path}: {error.strerror}", path=str(path), hint="run it as root, or name another --config"
        ) from error


def check_url(url: str, *, loopback_http: bool, what: str) -> None:
    """Raise ConfigError unless ``url`` may be sent an assertion (RFC 6749 section 3.2; requirement A-13).

    https to any host; http only to a literal loopback address, and only with ``server.loopback_http``. Never with
    user information, a fragment, a backslash or a character outside printable ASCII: parsers disagree about those.
    """
    bad = any(not 0x21 <= ord(character) <= 0x7E or character == "\\" for character in url)
    parts = urlsplit("" if bad else url)
    try:
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or parts.fragment or "@" in parts.netloc or port == 0 or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{what} is not a usable https URL", key=what, hint="it looks like https://fleet.example")
    if parts.scheme == "http" and not (loopback_http and _is_loopback(host)):
        hint = "use https; for a server on this machine: --loopback-http" if _is_loopback(host) else "use https"
        raise ConfigError(f"{what} would send secrets over plain http", key=what, hint=hint)


def _is_loopback(host: str) -> bool:
    quads = host.split(".")
    literal = len(quads) == 4 and all(quad.isascii() and quad.isdigit() and int(quad) < 256 for quad in quads)
    return host == "::1" or (literal and quads[0] == "127")


def _read_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if required and not path.parent.is_dir():
            raise ConfigError(f"there is no folder {path.parent}", path=str(path)) from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}", path=str(path)) from error
    try:
        flat = _flatten(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}", path=str(path)) from error
    for name in flat:
        if name not in _BY_NAME:
            raise _unknown_key(name, path, text)
    return flat


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _unknown_key(name: str, path: Path, text: str) -> ConfigError:
    near = difflib.get_close_matches(name, _BY_NAME, n=1, cutoff=0.5)
    key = name.rpartition(".")[2]
    line = next((number for number, row in enumerate(text.splitlines(), 1) if row.strip().startswith(key)), 1)
    hint = f"did you mean {near[0]}?" if near else "the settings are: " + ", ".join(_BY_NAME)
    return ConfigError(f"{path}:{line}: there is no setting {name!r}", path=str(path), key=name, hint=hint)


def _value(setting: Setting, value: Any, origin: str) -> str | int | bool:
    wanted = type(setting.default)
    if isinstance(value, str) and wanted is bool and value.lower() in ("true", "1", "yes", "false", "0", "no"):
        return value.lower() in ("true", "1", "yes")
    if isinstance(value, str) and wanted is int and value.isascii() and value.isdigit():
        return int(value)
    if isinstance(value, Path) and wanted is str:
        return str(value)
    if type(value) is not wanted:
        kind = {str: "text", int: "a whole number", bool: "true or false"}[wanted]
        raise ConfigError(f"{setting.name} in {origin} must be {kind}", path=origin, key=setting.name)
    assert isinstance(value, str | int | bool)
    return value


def _check(settings: Settings, path: str) -> None:
    for name, low, high in (("token_assertion_lifetime", 10, 300), ("token_spread", 0, 3600)):
        if not low <= getattr(settings, name) <= high:
            key = name.replace("_", ".", 1)
            raise ConfigError(f"{key} must be {low} to {high}", path=path, key=key)
    if settings.server_issuer:
        check_url(settings.server_issuer, loopback_http=settings.server_loopback_http, what="server.issuer")
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, str) and not value.isprintable():
            key = field.name.replace("_", ".", 1)
            raise ConfigError(f"{key} holds characters that cannot be printed", path=path, key=key)


def _edited(text: str, changes: Mapping[str, str | int | bool]) -> str:
    lines = text.splitlines()
    for name, value in changes.items():
        table, _, key = name.rpartition(".")
        _set_line(lines, table, f"{key} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _set_line(lines: list[str], table: str, assignment: str) -> None:
    """Replace the key's line in ``table``, or add it at the end of that table (which is added too, if need be)."""
    key, current, end = assignment.partition(" = ")[0], "", None
    for number, line in enumerate(lines):
        stripped = line.strip()
        if stripped.startswith("["):
            current = stripped.strip("[]")
        elif current == table and stripped.partition("=")[0].strip() == key:
            lines[number] = assignment
            return
        if current == table:
            end = number + 1
    if end is None and table:
        lines += ["", f"[{table}]"] if lines else [f"[{table}]"]
        end = len(lines)
    lines.insert(end or 0, assignment)


def _toml(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
