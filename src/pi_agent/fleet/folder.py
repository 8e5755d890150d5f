"""The data folder: for its owner alone, with one secret in it, and one server at a time.

Nothing here knows what the fleet is; everything here is about files, and leaves them whole or not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import pwd
import secrets
from collections.abc import Iterator
from pathlib import Path

from pi_agent.errors import ConfigError, ConflictError
from pi_agent.fleet.place import typed

SECRET_BYTES = 32


def prepare(data: Path) -> None:
    """Make the data folder, mode 0700. Raises ConfigError when it is somebody else's, or open to others."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = data.stat()
    except OSError as error:
        raise ConfigError(f"cannot use {data}: {error.strerror}", key="data", hint="pi-fleet --data DIR ...") from error
    if status.st_uid != os.geteuid():
        owner = user_name(status.st_uid)
        raise ConfigError(f"{data} belongs to {owner}", key="data", hint=f"sudo -u {owner} {typed(data)}")
    if status.st_mode & 0o077:
        raise ConfigError(f"{data} is open to others", key="data", hint=f"chmod 700 {data}")


def secret(data: Path, purpose: str) -> bytes:
    """32 secret bytes for one purpose, from ``DATA/secret``, which is made at first use. Raises ConfigError when it is damaged."""
    path = data / "secret"
    if not path.exists():
        _create_secret(path)
    root = path.read_bytes()
    if len(root) != SECRET_BYTES:
        raise ConfigError(f"{path} is damaged", path=str(path), hint="restore it from a backup, or move it away")
    return hmac.digest(root, purpose.encode(), hashlib.sha256)


def _create_secret(path: Path) -> None:
    """Linked into place once it is whole and on disk; whoever comes second keeps what the first has made."""
    draft = path.with_name(f".secret-{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.write(secrets.token_bytes(SECRET_BYTES))
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        path.hardlink_to(draft)
    draft.unlink()
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file that somebody else has written, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int:
    """Hold the folder for one server: a descriptor that keeps the lock while it is open. Raises ConflictError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(descriptor, 16, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise ConflictError(
            f"another pi-fleet serves {path.parent} (process {owner})", hint="stop it first, or choose another --data"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until nobody else of this machine is in a block with this path."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def user_name(uid: int) -> str:
    """The name of a user of this machine, or ``uid 1234``."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def owner_of(path: Path) -> str:
    """The name of the user whom a file or folder belongs to."""
    return user_name(path.stat().st_uid)
