"""From settings, identity and board to the fields that the resident and its workers live on. Whoever runs this may import
what it likes: it is ``pi-agent run`` before it becomes the resident, or a process that a SIGHUP started.

The fields are every setting under its variable-like name (``server_issuer``; numbers and switches as text), and:
``python`` and ``path`` (how to start a worker), ``issuer``, ``client_id``, ``board``, ``board_document``, ``key``,
``phase``, ``allow``, ``socket_gid``, ``flags``, ``note`` (``worker.py``) and ``warnings``, one a line.
"""

from __future__ import annotations

import grp
import hashlib
import json
import os
import pwd
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pi_agent.board import Board, board_claims
from pi_agent.device import allow, children, config, files, frames, golden, identity, joining, mounts
from pi_agent.device.commands.board import to_json
from pi_agent.device.probe import probe
from pi_agent.errors import ConfigError, PiAgentError

FLAGS = ("config", "state", "runtime", "root")


def main() -> None:
    """Read the settings again, as the command line said it first; the answer is a frame on standard output."""
    request = frames.unpack(sys.stdin.buffer.read(frames.MAX_FRAME))
    try:
        answer = prepare(json.loads(request["flags"])) | {"outcome": "settings"}
    except PiAgentError as error:
        answer = {"outcome": "failed", "reason": "local", "message": str(error), "hint": error.hint or ""}
    sys.stdout.buffer.write(frames.pack(answer))
    sys.stdout.buffer.flush()


def prepare(flags: Mapping[str, Any]) -> dict[str, str]:
    """The fields. ``flags`` are those of the command line. Raises PiAgentError."""
    settings = config.load(flags)
    known = identity.load(settings.state)
    board = probe(str(settings.root))
    golden.check(settings.state, board.serial or "")
    known.check_board(board.serial or "")
    files.sweep(settings.state)
    files.make_directory(settings.runtime, 0o755)  # as the unit does: who may use the socket is said there
    fields = for_worker(settings, board) | {
        "python": sys.executable,
        "path": os.pathsep.join(os.path.realpath(entry) for entry in sys.path if Path(entry).is_dir()),
        "issuer": known.issuer,
        "client_id": known.client_id,
        "board_document": json.dumps(to_json(board)),
        "key": joining.load_key(settings.state, known).protection,
        "resource": settings.token_resource,
        "spread": str(settings.token_spread),
        "phase": f"{_phase(known.kid):.6f}",
        "allow": allow.pack(map(resolve, settings.allow)),
        "socket_gid": socket_gid(settings),
        "token_file": settings.sinks_token_file,
        "environment_file": settings.sinks_environment_file,
        "hooks": settings.sinks_hooks,
        "flags": json.dumps({name: str(flags[name]) for name in FLAGS if flags.get(name)}),
        "warnings": "\n".join(warnings(settings)),
        "note": identity.obstacle(settings.state),
    }
    if len(frames.pack(fields)) > frames.MAX_FRAME // 2:
        raise ConfigError("the settings are longer than 32 KiB", path=str(settings.config))
    return fields


def for_worker(settings: config.Settings, board: Board) -> dict[str, str]:
    """The fields that a worker reads; ``doctor`` makes its trial request with them, too."""
    given = {setting.attribute: str(getattr(settings, setting.attribute)) for setting in config.SETTINGS}
    return given | {
        "board": json.dumps(board_claims(board)),
        "board_flags": " ".join(board.flags),
        "key_variables": json.dumps({name: os.environ[name] for name in children.KEY_VARIABLES if name in os.environ}),
        "scope": " ".join(settings.token_scope.split()),
    }


def warnings(settings: config.Settings) -> list[str]:
    """What will go wrong later, in words."""
    mounted = mounts.read()
    found = []
    kind = mounts.kind_of(mounted, settings.state)
    if kind in mounts.VOLATILE and str(settings.root) == "/":
        found.append(
            f"{settings.state} is on {kind} and is gone after the next boot: a new device each time. "
            "Give it a partition of its own (overlayroot=tmpfs:recurse=0)"
        )
    if not Path("/proc/sys/kernel/random/boot_id").exists():
        found.append("the boot id is hidden, so a copied card stays unnoticed: remove ProcSubset=pid from the unit")
    if not _sees_all_users():
        found.append("callers cannot be told apart: remove PrivateUsers=yes from the unit")
    for path in filter(None, (settings.sinks_token_file, settings.sinks_environment_file)):
        if mounts.kind_of(mounted, Path(path).parent) not in mounts.MEMORY:
            found.append(f"{path} is not in memory: every token is written to the card; use a folder below /run")
    return found


def resolve(rule: config.AllowRule) -> allow.Rule:
    """The rule with numbers in place of names. Raises ConfigError for a user or group that does not exist."""
    uid = _uid(rule.user, rule.label) if rule.user else None
    gid = _gid(rule.group, rule.label) if rule.group else None
    return allow.Rule(rule.label, uid, gid, list(rule.audiences), list(rule.scopes))


def socket_gid(settings: config.Settings) -> str:
    """The number of ``local.group``, "" without one. Raises ConfigError when the agent's user may not give it anything.

    Who is neither root nor that user cannot tell.
    """
    if not settings.local_group:
        return ""
    origin = settings.origins["local.group"]
    gid = _gid(settings.local_group, origin)
    owner = _owner(settings.state)
    with files.as_owner_of(settings.state):
        uid = os.geteuid()
        if uid == 0 or uid != owner or gid in (os.getegid(), *os.getgroups()):
            return str(gid)
    name = _user_name(uid)
    hint = f"sudo usermod -aG {settings.local_group} {name}; sudo systemctl restart pi-agent"
    raise ConfigError(
        f"{origin}: {name or f'uid {uid}'} is not in the group {settings.local_group}, so it cannot give it anything",
        key="local.group",
        hint=hint if name else f"a container gets it with --group-add {gid}",
    )


def _owner(directory: Path) -> int | None:
    try:
        return directory.stat().st_uid
    except OSError:
        return None


def _user_name(uid: int) -> str:
    """The user's name; "" for one without an entry, as in a container."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _sees_all_users() -> bool:
    """False in a user namespace that maps only some users: all others look like 65534 to SO_PEERCRED."""
    try:
        return Path("/proc/self/uid_map").read_text(encoding="ascii").split()[2:3] == ["4294967295"]
    except OSError:
        return True


def _uid(name: str, origin: str) -> int:
    try:
        return int(name) if name.isascii() and name.isdigit() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"{origin}: there is no user {name!r}", key="user", hint=f"getent passwd {name}") from None


def _gid(name: str, origin: str) -> int:
    try:
        return int(name) if name.isascii() and name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"{origin}: there is no group {name!r}", key="group", hint=f"getent group {name}") from None


def _phase(kid: str) -> float:
    """Where in the spread this device stands: always the same, and evenly over a fleet."""
    return int.from_bytes(hashlib.sha256(kid.encode()).digest()[:4], "big") / 2**32
