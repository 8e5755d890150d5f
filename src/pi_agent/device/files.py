"""Files that hold an identity: written so that a reader finds the old or the new, never half, whoever else is at work.

Every file is made under a random name with O_EXCL and O_NOFOLLOW and its final mode, flushed, and put in place by one
``link`` (never over another file) or ``rename``; then the directory is flushed. Planted links, pipes and directories
therefore cannot redirect a write, and a power cut cannot tear one (requirements A-10, E-08, E-09, RA-18, RA-29).
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pi_agent.errors import KeyFileError, KeyStoreError

ROOM = 64 * 1024  # a key and an identity, each with the one that it replaces, and the folder's own blocks

_TEMPORARY = ".pi-agent-"


def make_directory(path: Path, mode: int) -> None:
    """Make ``path`` (and its parents) with ``mode`` unless it is there. Raises KeyFileError when others may write in it."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
    except FileExistsError:
        raise KeyFileError(f"{path} is not a directory", path=str(path)) from None
    except OSError as error:
        raise _failed("make the directory", path, error) from error
    with as_owner_of(path):
        check_directory(path)


def check_directory(path: Path) -> None:
    """Raise KeyFileError unless ``path`` is a real directory of root's or ours that no one else may write in.

    Raises FileNotFoundError when there is none.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        raise
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
    try:
        _check_private(handle, path)
        data = os.read(handle, limit + 1)
    except OSError as error:
        raise _failed("read", path, error) from error
    finally:
        os.close(handle)
    if len(data) > limit:
        raise KeyFileError(f"{path} is longer than {limit} bytes", path=str(path))
    return data


def _check_private(handle: int, path: Path) -> None:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        raise KeyFileError(f"{path} is not a regular file", path=str(path), hint=f"ls -l {path}")
    if found.st_uid != os.geteuid():
        raise KeyFileError(f"{path} belongs to another user", path=str(path), hint=f"ls -l {path}")
    if found.st_mode & 0o077:
        raise KeyFileError(f"{path} is open to others", path=str(path), hint=f"chmod 600 {path}")
    if _is_linked_elsewhere(handle, path.parent):
        raise KeyFileError(f"{path} has a second name", path=str(path), hint=f"find / -xdev -samefile {path}")


def _is_linked_elsewhere(handle: int, directory: Path) -> bool:
    """Whether a file has names beyond its own and that of a ``create`` which is at work this moment, or was cut off."""
    if os.fstat(handle).st_nlink == 1:
        return False
    inode = os.fstat(handle).st_ino
    ours = sum(entry.inode() == inode for entry in os.scandir(directory) if entry.name.startswith(_TEMPORARY))
    return os.fstat(handle).st_nlink - ours > 1  # looked at again: the other name may have gone in between


def create(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path``, where nothing may be yet. Raises FileExistsError, or KeyFileError when it cannot be written."""
    _place(path, data, mode, replace=False)


def replace(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Put ``data`` at ``path`` in place of what is there. Raises KeyFileError when it cannot be written."""
    _place(path, data, mode, replace=True)


@contextmanager
def as_owner_of(directory: Path) -> Iterator[None]:
    """Root works in ``directory`` as the user whose it is, so that the service can go on with what was written.

    With the groups of that user, since a key may be behind a device that is open to one (/dev/tpmrm0, /dev/vcio).
    Anybody else, and root in root's own, works as before.
    """
    owner = directory.stat() if os.geteuid() == 0 and directory.is_dir() else None
    if owner is None or owner.st_uid == 0:
        yield
        return
    groups = os.getgroups()
    os.setgroups(_groups_of(owner.st_uid, owner.st_gid))
    os.setegid(owner.st_gid)
    os.seteuid(owner.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _groups_of(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]  # a user without a name


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Alone among the processes that ask for ``directory`` this way. Raises KeyFileError."""
    try:
        handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed("open", directory, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Take ``path`` away, durably; it may be gone already. Raises KeyFileError."""
    try:
        path.unlink(missing_ok=True)
        sync(path.parent)
    except OSError as error:
        raise _failed("remove", path, error) from error


def sync(directory: Path) -> None:
    """Wait until what was made, renamed or removed in ``directory`` is on disk. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(directory: Path) -> None:
    """Remove what an interrupted write left behind. On a disk that takes no change it stays (RA-21)."""
    for leftover in directory.glob(_TEMPORARY + "*"):
        with suppress(OSError):
            leftover.unlink(missing_ok=True)


def trouble(directory: Path) -> str:
    """Why nothing can be kept in ``directory``, or "": its file system is read-only, or full. Nothing is written to find out."""
    try:
        found = os.statvfs(directory)
    except OSError as error:
        return f"{directory} cannot be used: {error.strerror}"
    if found.f_flag & os.ST_RDONLY:
        return f"{directory} is on a read-only file system"
    # A file system that counts neither blocks nor files says 0 of 0.
    if (found.f_blocks and found.f_bavail * found.f_frsize < ROOM) or (found.f_files and not found.f_favail):
        return f"the file system of {directory} is full"
    return ""


def _place(path: Path, data: bytes, mode: int, *, replace: bool) -> None:
    try:
        check_directory(path.parent)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _place_in(directory, path.name, data, mode, replace=replace)
        finally:
            os.close(directory)
    except FileExistsError:
        raise
    except OSError as error:
        raise _failed("write", path, error) from error


def _place_in(directory: int, name: str, data: bytes, mode: int, *, replace: bool) -> None:
    temporary = f"{_TEMPORARY}{os.urandom(8).hex()}"
    try:
        _write_new(temporary, data, mode, directory)
        if replace:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        else:
            os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.unlink(temporary, dir_fd=directory)
        os.fsync(directory)
    except OSError:
        _forget(temporary, directory)
        raise


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
    kind = KeyFileError if error.errno in (errno.ELOOP, errno.EACCES) else KeyStoreError  # a link, or another's file
    look = f"df {path.parent}" if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"ls -ld {path.parent}"
    return kind(f"cannot {what} {path}: {error.strerror}", path=str(path), hint=look)
