"""Files that hold an identity: who else may touch them, and that no planted name and no interruption redirects a write."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from device.conftest import needs_root
from pi_agent.device import files
from pi_agent.errors import KeyFileError

SECRET = b"secret\n"
NOBODY = 65534


def refused(action: Callable[[], object]) -> KeyFileError:
    with pytest.raises(KeyFileError) as caught:
        action()
    assert "secret" not in str(caught.value)
    return caught.value


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def leftovers(folder: Path) -> list[str]:
    return [name for name in names(folder) if name.startswith(".")]


@pytest.fixture
def private(state: Path) -> Path:
    """A file as the agent writes it."""
    path = state / "key.pem"
    files.create(path, SECRET)
    return path


# what may be read


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a10_a_file_that_only_we_can_open_is_read(private: Path, mode: int) -> None:
    """Any mode without a bit for group and others will do."""
    private.chmod(mode)
    assert files.read_private(private) == SECRET


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o660, 0o777, 0o4644])
def test_a10_ra30_a_file_open_to_others_is_refused_with_the_command_that_helps(private: Path, mode: int) -> None:
    """A single bit for group or others is one too many; the hint closes it."""
    private.chmod(mode)
    assert refused(lambda: files.read_private(private)).hint == f"chmod 600 {private}"


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o770, 0o720, 0o702])
def test_a10_e09_a_folder_that_others_may_write_in_is_refused(private: Path, mode: int) -> None:
    """In a folder like /tmp anybody could put another file in the key's place: neither read nor written there."""
    private.parent.chmod(mode)
    assert refused(lambda: files.read_private(private)).hint == f"chmod go-w {private.parent}"
    refused(lambda: files.replace(private, b"x"))
    refused(lambda: files.create(private.with_name("other"), b"x"))
    assert names(private.parent) == ["key.pem"]


@needs_root
def test_a10_a_file_or_folder_of_another_user_is_refused(private: Path) -> None:
    """Whoever owns the file can change it at any moment."""
    os.chown(private, NOBODY, NOBODY)
    assert "another user" in str(refused(lambda: files.read_private(private)))
    os.chown(private, 0, 0)
    os.chown(private.parent, NOBODY, NOBODY)
    assert "another user" in str(refused(lambda: files.read_private(private)))


def test_a10_a_symlink_is_refused_even_to_a_good_file(private: Path) -> None:
    """The last part of the path is never followed."""
    link = private.with_name("link")
    link.symlink_to(private)
    refused(lambda: files.read_private(link))


def test_a10_a_folder_that_is_a_symlink_is_refused(private: Path) -> None:
    """Nor is the folder, which its owner could turn elsewhere."""
    link = private.parent.with_name("link")
    link.symlink_to(private.parent)
    refused(lambda: files.read_private(link / "key.pem"))
    refused(lambda: files.replace(link / "key.pem", b"x"))
    refused(lambda: files.make_directory(link, 0o700))


def test_a10_a_hard_link_is_refused(private: Path, tmp_path: Path) -> None:
    """A second name elsewhere keeps the key readable after it was replaced or wiped here."""
    os.link(private, tmp_path / "second")
    assert "second name" in str(refused(lambda: files.read_private(private)))
    (tmp_path / "second").unlink()
    assert files.read_private(private) == SECRET


def test_a10_a_second_name_of_our_own_does_not_hide_a_third(private: Path, tmp_path: Path) -> None:
    """The leftover of an interrupted create is allowed for, once, and not for other links beside it."""
    os.link(private, private.with_name(".pi-agent-0011223344556677"))
    assert files.read_private(private) == SECRET
    os.link(private, tmp_path / "elsewhere")
    refused(lambda: files.read_private(private))


def test_a10_ra27_a_fifo_does_not_hang_and_is_refused(state: Path) -> None:
    """Opening a pipe that nobody writes to would wait for ever."""
    os.mkfifo(state / "key.pem", 0o600)
    assert "not a regular file" in str(refused(lambda: files.read_private(state / "key.pem")))


def test_a10_ra23_a_folder_or_a_socket_is_refused(state: Path) -> None:
    """Whatever else has a name is no key."""
    (state / "folder").mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.bind(str(state / "socket"))
    for name in ("folder", "socket"):
        refused(lambda name=name: files.read_private(state / name))  # type: ignore[misc]


def test_ra23_a_missing_file_is_told_apart_from_a_bad_one(state: Path) -> None:
    """FileNotFoundError says: not made yet."""
    with pytest.raises(FileNotFoundError):
        files.read_private(state / "key.pem")


def test_ra23_without_a_folder_there_is_no_file_and_no_place_for_one(tmp_path: Path) -> None:
    """Reading says "not made yet", as on a board that is not set up; writing says what is missing."""
    with pytest.raises(FileNotFoundError):
        files.read_private(tmp_path / "none" / "key.pem")
    for write in (files.create, files.replace):
        with pytest.raises(KeyFileError, match="No such file"):
            write(tmp_path / "none" / "key.pem", b"")


def test_a_file_longer_than_the_limit_is_refused(state: Path) -> None:
    """Exactly the limit is read; a byte more is not."""
    files.create(state / "big", b"x" * 100)
    assert files.read_private(state / "big", limit=100) == b"x" * 100
    refused(lambda: files.read_private(state / "big", limit=99))


# Writing


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_e08_a_file_is_born_with_its_final_mode(state: Path, mask: int) -> None:
    """Under any umask a new file is 0600 from its first moment."""
    os.umask(mask)
    files.create(state / "key.pem", SECRET)
    files.replace(state / "identity.json", SECRET)
    for name in ("key.pem", "identity.json"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    assert leftovers(state) == []


def test_f06_create_never_overwrites(private: Path) -> None:
    """A second create leaves the first file as it was, and nothing beside it."""
    with pytest.raises(FileExistsError):
        files.create(private, b"other")
    assert private.read_bytes() == SECRET
    assert leftovers(private.parent) == []


def plant(kind: str, path: Path, target: Path) -> None:
    match kind:
        case "symlink":
            path.symlink_to(target)
        case "dangling symlink":
            path.symlink_to(target.with_name("nowhere"))
        case "hard link":
            os.link(target, path)
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()


PLANTED = ["symlink", "dangling symlink", "hard link", "fifo", "directory"]


@pytest.mark.parametrize("kind", PLANTED)
def test_e08_m10_ra29_a_planted_name_redirects_no_write(state: Path, tmp_path: Path, kind: str) -> None:
    """create refuses, replace puts a regular file in its place (or refuses a folder); the target is never touched."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    path = state / "key.pem"
    plant(kind, path, victim)
    with pytest.raises(FileExistsError):
        files.create(path, SECRET)
    if kind == "directory":
        refused(lambda: files.replace(path, SECRET))
    else:
        files.replace(path, SECRET)
        assert files.read_private(path) == SECRET
    assert victim.read_bytes() == b"untouched"
    assert not (tmp_path / "nowhere").exists()
    assert leftovers(state) == []


@pytest.mark.parametrize("kind", PLANTED)
def test_e08_a_planted_temporary_name_redirects_no_write(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Even if the random name were guessed and planted, nothing is written through it."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    monkeypatch.setattr(os, "urandom", lambda _: bytes(8))
    plant(kind, state / (".pi-agent-" + "00" * 8), victim)
    with pytest.raises((FileExistsError, KeyFileError)):
        files.replace(state / "key.pem", SECRET)
    assert victim.read_bytes() == b"untouched"
    assert not (tmp_path / "nowhere").exists()
    assert not (state / "key.pem").exists()


def test_e08_a_folder_that_turns_into_a_link_is_not_written_through(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E-08: a link takes the folder's place between the look at it and the write: what it leads to gets nothing."""
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    check = files.check_directory

    def checked_then_swapped(path: Path) -> None:
        check(path)
        path.rename(tmp_path / "moved")
        path.symlink_to(tmp_path / "elsewhere")

    monkeypatch.setattr(files, "check_directory", checked_then_swapped)
    refused(lambda: files.replace(state / "key.pem", SECRET))
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["open", "fdopen", "fsync", "rename", "link", "unlink"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT])
def test_ra21_a_failing_disk_leaves_old_or_new_and_our_error(
    state: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    """Whichever step fails first, the old file is whole or the new one is, and the reason is told."""
    path = state / "identity.json"
    files.replace(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        for write, target in ((files.replace, path), (files.create, state / "key.pem")):
            try:
                write(target, b"new")
            except KeyFileError as error:
                assert os.strerror(code) in str(error)
    assert path.read_bytes() in (b"old", b"new")
    if (state / "key.pem").exists():
        assert files.read_private(state / "key.pem") == b"new"
    files.sweep(state)
    assert leftovers(state) == []


def test_ra18_a_create_that_was_cut_off_after_its_link_can_be_read(state: Path) -> None:
    """Power fails between link and unlink: the file is whole, and its leftover name is not taken for a stranger's."""
    (state / ".pi-agent-00").write_bytes(SECRET)
    (state / ".pi-agent-00").chmod(0o600)
    os.link(state / ".pi-agent-00", state / "key.pem")
    assert files.read_private(state / "key.pem") == SECRET
    files.sweep(state)
    assert names(state) == ["key.pem"]


def test_a_reader_never_meets_half_a_file_or_a_second_name(state: Path) -> None:
    """While one thread creates and replaces, another reads: always nothing yet, or one whole content."""
    path, done, seen = state / "key.pem", threading.Event(), set()

    def read() -> None:
        while not done.is_set():
            try:
                seen.add(files.read_private(path))
            except FileNotFoundError:
                seen.add(b"")
            except KeyFileError as error:
                seen.add(str(error).encode())

    reader = threading.Thread(target=read)
    reader.start()
    for round_ in range(150):
        path.unlink(missing_ok=True)
        files.create(path, b"a" * 4096)
        files.replace(path, b"b" * (4096 + round_ % 2))
    done.set()
    reader.join()
    assert seen <= {b"", b"a" * 4096, b"b" * 4096, b"b" * 4097}


# Folders


def test_a_missing_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    """The folder itself gets the mode that was asked for."""
    files.make_directory(tmp_path / "a" / "b", 0o700)
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    files.make_directory(tmp_path / "a" / "b", 0o700)


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    """A file, and a link to nowhere, are no folder."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    refused(lambda: files.make_directory(tmp_path / "file", 0o700))
    refused(lambda: files.make_directory(tmp_path / "link", 0o700))
    refused(lambda: files.make_directory(tmp_path / "file" / "below", 0o700))


def test_sweep_removes_what_is_ours_and_nothing_else(private: Path) -> None:
    """Only names of interrupted writes go; a planted link goes without its target."""
    (private.parent / ".pi-agent-dead").write_bytes(b"half")
    (private.parent / ".pi-agent-link").symlink_to(private)
    (private.parent / ".other").touch()
    files.sweep(private.parent)
    assert names(private.parent) == [".other", "key.pem"]
