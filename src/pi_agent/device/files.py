"""Files that hold an identity: written so that a reader finds the old or the new, never half, whoever else is at work.

Every file is made under a random name with O_EXCL and O_NOFOLLOW and its final mode, flushed, and put in place by one
``link`` (never over another file) or ``rename``; then the directory is flushed. Planted links, pipes and directories
therefore cannot redirect a write, and a power cut cannot tear one (requirements A-10, E-08, E-09, RA-18, RA-29).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pi_agent.errors import KeyFileError

_TEMPORARY = ".pi-agent-"


def make_directory(path: Path, mode: int) -> None:
    """Make ``path`` (and its parents) with ``mode`` unless it is there. Raises KeyFileError when others may write in it."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise KeyFileError(f"{path} is not a directory", path=str(path)) from None
    except OSError as error:
        raise _failed("make the directory", path, error) from error
    check_directory(path)


def check_directory(path: Path) -> None:
    """Raise KeyFileError unless ``path`` is a real directory of root's or ours that no one else may write in."""
    try:
        found = path.lstat()
    except OSError as error:
        raise _failed("look at", path, error) from error
    if not stat.S_ISDIR(found.st_mode):
        raise KeyFileError(f"{path} is not a directory", path=str(path), hint=f"ls -ld {path}")
    if found.st_uid not in (0, os.geteuid()):
        raise KeyFileError(f"{path} belongs to another user", path=str(path), hint=f"ls -ld {path}")
    if found.st_mode & 0o022:
        raise KeyFileError(f"{path} may be written by others", path=str(path), hint=f"chmod go-w {path}")


def read_private(path: Path, *, limit: int = 64 * 1024) -> bytes:
    """The bytes of a file that only its owner may read: regular, ours, mode 0600 or less, in a directory that is safe.

    Raises FileNotFoundError when there is none, KeyFileError when it is anything else or longer than ``limit`` bytes.
    """
    check_directory(path.parent)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _failed("open", path, error) from error
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"{path} is not a regular file", path=str(path), hint=f"ls -l {path}")
        if found.st_uid != os.geteuid():
            raise KeyFileError(f"{path} belongs to another user", path=str(path), hint=f"ls -l {path}")
        if found.st_mode & 0o077 or found.st_nlink != 1:
            raise KeyFileError(f"{path} is open to others, or linked twice", path=str(path), hint=f"chmod 600 {path}")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise KeyFileError(f"{path} is longer than {limit} bytes", path=str(path))
    return data


def create(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path``, where nothing may be yet. Raises FileExistsError, or KeyFileError when it cannot be written."""
    _place(path, data, mode, replace=False)


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` in place of what is there. Raises KeyFileError when it cannot be written."""
    _place(path, data, mode, replace=True)


def sweep(directory: Path) -> None:
    """Remove what an interrupted write left behind."""
    for leftover in directory.glob(_TEMPORARY + "*"):
        leftover.unlink(missing_ok=True)


def _place(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    check_directory(path.parent)
    temporary = f"{_TEMPORARY}{os.urandom(8).hex()}"
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            _write_new(temporary, data, mode, directory)
            if replace:
                os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
            else:
                os.link(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
                os.unlink(temporary, dir_fd=directory)
            os.fsync(directory)
        except OSError:
            _forget(temporary, directory)
            raise
    except FileExistsError:
        raise
    except OSError as error:
        raise _failed("write", path, error) from error
    finally:
        os.close(directory)


def _write_new(name: str, data: bytes, mode: int, directory: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, mode, dir_fd=directory), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _forget(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:
        return  # never made, or the disk is gone: sweep() meets it at the next start


def _failed(what: str, path: Path, error: OSError) -> KeyFileError:
    return KeyFileError(f"cannot {what} {path}: {error.strerror}", path=str(path), hint=f"ls -ld {path.parent}")
