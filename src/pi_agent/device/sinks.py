"""Where the token goes besides the socket: a file, an environment file, hooks. Files are for folders in memory (/run).

A file is made under a random name with O_EXCL | O_NOFOLLOW and its final mode, then renamed, so that a reader sees the
old token or the new one; it goes when the token has ended or the device was refused. No flush to disk: there is none
below /run. Nothing is written into a folder where others may write, too. A full, read-only or shared folder is a warning,
never the end of anything (requirements E-06 to E-09, RA-22).
"""

# ruff: noqa: PTH108, PTH113, PTH116, PTH118, PTH208
# (pathlib would cost the resident two megabytes)
from __future__ import annotations

import os

FILE_MODE = 0o640
RANDOM = 6  # bytes of a temporary name


def write(path: str, data: bytes, gid: int | None) -> str:
    """Put ``data`` at ``path``. The answer is "" or what went wrong."""
    folder, name = os.path.split(path)
    temporary = f".{name}.{os.urandom(RANDOM).hex()}"
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        return f"cannot write {path}: {error.strerror}"
    try:
        found = os.fstat(handle)
        if not _is_kept(found):
            owner = (
                f"belongs to uid {found.st_uid}"
                if found.st_uid not in (0, os.geteuid())
                else "may be written by others"
            )
            return f"cannot write {path}: {folder} {owner}, who could put another token there; name a folder of its own"
        _write_new(temporary, data, handle, gid)
        os.rename(temporary, name, src_dir_fd=handle, dst_dir_fd=handle)
    except OSError as error:
        _forget(temporary, handle)
        return f"cannot write {path}: {error.strerror}"
    finally:
        os.close(handle)
    return ""


def sweep(path: str) -> None:
    """Remove what a ``write`` of ``path`` that was cut off has left behind."""
    folder, name = os.path.split(path)
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for leftover in names:
        if leftover.startswith(f".{name}.") and len(leftover) == len(f".{name}.") + 2 * RANDOM:
            remove(os.path.join(folder, leftover))


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        return  # never written, or its folder is gone


def environment(token: str, expires_at: int) -> bytes:
    """An environment file as systemd's EnvironmentFile= reads it. A bearer token holds nothing that needs quoting."""
    return f"PI_AGENT_TOKEN={token}\nPI_AGENT_TOKEN_EXPIRES_AT={expires_at}\n".encode()


def bare(head: str) -> str:
    """The access token in the first half of an answer: ``{"access_token": "...", ...``."""
    return head.partition('"access_token": "')[2].partition('"')[0]


def hooks(directory: str, event: str) -> list[str]:
    """The programs to run for ``event`` (``token``, ``refused``, ``failed``), in order: DIRECTORY/on-EVENT.d/*.

    Only what root or we own and nobody else may write, in a folder of the same kind, is run.
    """
    folder = os.path.join(directory, f"on-{event}.d")
    if not directory or not _is_ours(folder):
        return []
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
    return [path for path in paths if _is_ours(path) and os.access(path, os.X_OK) and os.path.isfile(path)]


def _is_ours(path: str) -> bool:
    try:
        found = os.stat(path)
    except OSError:
        return False
    return _is_kept(found)


def _is_kept(found: os.stat_result) -> bool:
    """Root or we own it, and nobody else may write there."""
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def _write_new(name: str, data: bytes, folder: int, gid: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(name, flags, FILE_MODE if gid is not None else 0o600, dir_fd=folder)
    try:
        if gid is not None:
            os.fchown(handle, -1, gid)
            os.fchmod(handle, FILE_MODE)  # the umask may have taken the group's bit
        while data:
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def _forget(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        return
