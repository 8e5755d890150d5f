"""The place of the socket: a lock that says who is at home, and a listening socket that is ours alone.

The lock is held for as long as the agent lives, so that a socket without a holder is a dead agent's, and ours to
replace. Never a name in the abstract namespace, which has no permissions (requirements E-01, E-11, E-12, RA-20).
"""

# ruff: noqa: PTH108, PTH118
# (pathlib would cost the resident two megabytes)
from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte
import fcntl
import os

from pi_agent.errors import ConfigError, PiAgentError

SOCKET, LOCK = "agent.sock", "agent.lock"
MAX_PATH = 107  # struct sockaddr_un, unix(7)
FIRST_PASSED = 3  # sd_listen_fds(3)


def take_lock(runtime: str) -> int:
    """A descriptor that holds the lock of the folder. Raises ConfigError when another agent has it, PiAgentError when it cannot be made."""
    try:
        lock = os.open(os.path.join(runtime, LOCK), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise PiAgentError(f"cannot open {runtime}/{LOCK}: {error.strerror}", hint=f"ls -l {runtime}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError(f"another agent runs in {runtime}", path=runtime, hint="pi-agent status") from None
    return lock


def listen(runtime: str, gid: int | None) -> tuple[_socket.socket, str]:
    """The listening socket and its path ("" when systemd passed it to us and keeps it).

    Raises ConfigError for a path that no socket can have, PiAgentError when it cannot be made there.
    """
    if os.environ.get("LISTEN_PID") == str(os.getpid()) and os.environ.get("LISTEN_FDS") == "1":
        door = _socket.socket(fileno=FIRST_PASSED)
        os.set_inheritable(FIRST_PASSED, False)
        door.setblocking(False)
        return door, ""
    path = os.path.join(runtime, SOCKET)
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(f"the socket's path is longer than {MAX_PATH} bytes: {path}", key="runtime")
    try:
        return _bound(path, gid), path
    except OSError as error:
        raise PiAgentError(f"cannot listen on {path}: {error.strerror}", hint=f"df {runtime}") from None


def _bound(path: str, gid: int | None) -> _socket.socket:
    remove(path)
    door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
    before = os.umask(0o117)  # born 0660: a chmod afterwards would come too late
    try:
        door.bind(path)
    finally:
        os.umask(before)
    if gid is not None:
        os.chown(path, -1, gid, follow_symlinks=False)
    door.listen(1024)  # a full queue turns callers away (EAGAIN), however soon it would be empty
    return door


def remove(path: str) -> None:
    """Take the socket away. Where that is not possible, whoever listens next is told."""
    try:
        os.unlink(path)
    except OSError:
        return
