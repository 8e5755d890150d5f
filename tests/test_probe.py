"""Reading a machine: hostile files, hidden trees, and recorded trees that stay inside themselves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem, set_gid, set_uid

from pi_agent.device import probe as probing
from pi_agent.device.probe import (
    ANSWERED,
    ask_mailbox,
    mailbox_answer,
    mailbox_request,
    probe,
    read_bounded,
    read_facts,
)
from pi_agent.errors import BoardError, NotARaspberryPiError, UnreadableBoardError, UsageError
from pi_agent.facts import MAX_TEXT

TEXT = "Hardware\t: BCM2835\nRevision\t: a01041\nSerial\t\t: 00000000c3a91e5f\n"
CODE = bytes.fromhex("00a01041")


def put(root: Path, path: str, raw: bytes | str) -> Path:
    """A file below ``root``."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return target


def become_user() -> None:
    """Go on as an ordinary user in the fake file system. Skips the test where that may read everything (pyfakefs 4)."""
    closed = Path("/closed")
    closed.touch(0o400)
    set_uid(1000)
    set_gid(1000)
    with contextlib.suppress(PermissionError):
        os.close(os.open(closed, os.O_RDONLY))  # as the agent reads
        pytest.skip("this pyfakefs lets an ordinary user read everything")


@pytest.mark.parametrize("base", ["proc/device-tree", "sys/firmware/devicetree/base"])
def test_either_path_to_the_device_tree_suffices(tmp_path: Path, base: str) -> None:
    """A sandbox may hide one of the two; the other one is read, and named as the origin."""
    put(tmp_path, f"{base}/system/linux,revision", CODE)
    put(tmp_path, f"{base}/serial-number", b"00000000c3a91e5f\0")
    board = probe(str(tmp_path))
    assert (board.type, board.serial) == ("2B", "00000000c3a91e5f")
    assert board.sources["revision"] == f"/{base}/system/linux,revision"


def test_a_given_file_speaks_for_itself(tmp_path: Path) -> None:
    """``cpuinfo`` alone mixes in nothing of this machine; with a root it replaces that root's text only."""
    file = put(tmp_path, "copy.txt", TEXT)
    facts = read_facts(cpuinfo=str(file))
    assert (facts.cpuinfo, facts.trees, facts.mailbox, facts.failures) == (TEXT, {}, {}, {})
    put(tmp_path, "proc/device-tree/system/linux,revision", bytes.fromhex("00a02082"))
    board = probe(str(tmp_path), str(file))
    assert board.type == "2B"
    assert len(board.conflicts) == 1


def test_a_link_that_the_user_names_is_followed(tmp_path: Path) -> None:
    """--cpuinfo may name a symbolic link: the user chose it."""
    (tmp_path / "link").symlink_to(put(tmp_path, "copy.txt", TEXT))
    assert probe(cpuinfo=str(tmp_path / "link")).type == "2B"


@pytest.mark.parametrize("name", ["proc/cpuinfo", "proc/device-tree/system/linux,revision"])
def test_a_fifo_is_refused_at_once(tmp_path: Path, name: str) -> None:
    """A-08, RA-27: a FIFO nobody writes to neither hangs nor counts as a file."""
    (tmp_path / name).parent.mkdir(parents=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UnreadableBoardError):
        probe(str(tmp_path))
    assert read_facts(str(tmp_path)).failures[f"/{name}"] == "not a regular file"


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A-08, RA-27: a directory in place of cpuinfo is unreadable, with the reason."""
    (tmp_path / "proc" / "cpuinfo").mkdir(parents=True)
    with pytest.raises(UnreadableBoardError, match="not a regular file"):
        probe(str(tmp_path))


def test_a_device_is_refused() -> None:
    """A-08: /dev/zero would never end."""
    with pytest.raises(UnreadableBoardError, match="not a regular file"):
        probe(cpuinfo="/dev/zero")


HOSTILE = {
    "ten megabytes": b"x" * (10 << 20),
    "ten megabytes behind a board": TEXT.encode() + b"\n" * (10 << 20),
    "binary": bytes(range(256)) * 64,
    "one endless line": b"Revision : " + b"a" * (2 << 20),
    "a hundred thousand lines": b"Serial : 1\n" * 100_000,
    "NULs": b"\0" * 4096,
    "NULs inside": b"Revision\0 : a01041\nSerial : \x00\x00\n",
    "escapes": b"Hardware : \x1b]0;owned\x07\x1b[2J\nRevision : \x1b[31ma01041\n",
    "not UTF-8": b"Hardware : BCM2835\nRevision : a01041\nModel : Raspberry Pi \xff\xfe\n",
    "UTF-16": TEXT.encode("utf-16"),
    "no final newline": TEXT.encode().rstrip(),
    "empty": b"",
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_have_one_of_three_outcomes(tmp_path: Path, raw: bytes) -> None:
    """A-08, RA-28: as cpuinfo and as every property, nothing unprintable and nothing endless comes out."""
    file = put(tmp_path, "proc/cpuinfo", raw)
    for name in ("model", "compatible", "serial-number", "system/linux,revision"):
        put(tmp_path, f"proc/device-tree/{name}", raw)
    for arguments in ((str(tmp_path), None), ("/", str(file))):
        try:
            board = probe(*arguments)
        except BoardError as error:
            assert str(error).isprintable()
            assert len(str(error)) < 500
        else:
            texts = (board.model, board.kernel_model or "", *board.conflicts, *board.notes)
            assert all(text.isascii() and text.isprintable() and len(text) < 300 for text in texts)


def test_at_most_one_megabyte_is_read(tmp_path: Path) -> None:
    """A-08: reading stops at 1 MiB however long the file is."""
    assert len(read_bounded(put(tmp_path, "long", b"x" * (3 << 20)))) == MAX_TEXT


@pytest.mark.parametrize("name", ["nowhere", "cpuinfo"])
def test_a_root_that_is_no_folder_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    """Not that this may be a Raspberry Pi whose files cannot be read."""
    put(tmp_path, "cpuinfo", TEXT)
    with pytest.raises(UsageError, match=f"^no such folder: .*/{name}$"):
        probe(str(tmp_path / name))


def test_a_recorded_tree_cannot_lead_out(tmp_path: Path) -> None:
    """Links in a recorded tree, final or on the way, do not reach the machine it is replayed on."""
    outside = tmp_path / "outside"
    put(outside, "system/linux,revision", CODE)
    put(outside, "cpuinfo", TEXT)
    (tmp_path / "root" / "proc").mkdir(parents=True)
    (tmp_path / "root" / "proc" / "device-tree").symlink_to(outside)
    (tmp_path / "root" / "proc" / "cpuinfo").symlink_to(outside / "cpuinfo")
    with pytest.raises(UnreadableBoardError, match="nothing could be read"):
        probe(str(tmp_path / "root"))


def test_a_link_is_followed_only_on_request(tmp_path: Path) -> None:
    """A-08: the last step of a path is no link, unless the user named it."""
    (tmp_path / "link").symlink_to(put(tmp_path, "file", "text"))
    assert read_bounded(tmp_path / "link", follow=True) == b"text"
    with pytest.raises(OSError, match="symbolic links"):
        read_bounded(tmp_path / "link")


def test_a_loop_of_links_is_a_failure_not_a_crash(tmp_path: Path) -> None:
    """A link to itself is unreadable."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "cpuinfo").symlink_to("cpuinfo")
    with pytest.raises(UnreadableBoardError):
        probe(str(tmp_path))


def test_a_file_under_lease_is_not_waited_for(tmp_path: Path) -> None:
    """A-08: opening never blocks; a file that another process holds is reported, at once."""
    file = put(tmp_path, "leased", TEXT)
    hold = f"import fcntl, os, time; fd = os.open({str(file)!r}, os.O_RDWR); fcntl.fcntl(fd, {fcntl.F_SETLEASE}, {fcntl.F_WRLCK}); "
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import signal; signal.signal({int(signal.SIGIO)}, signal.SIG_IGN); {hold}print('held', flush=True); time.sleep(30)",
        ],
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"held\n":
            pytest.skip("this file system gives no leases")
        with pytest.raises(UnreadableBoardError, match="temporarily unavailable"):
            probe(cpuinfo=str(file))
    finally:
        holder.kill()
        holder.communicate()


def test_a_file_that_hangs_costs_its_own_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RA-27: what was read before the limit counts, what hangs is named as missing."""
    put(tmp_path, "proc/cpuinfo", TEXT)
    put(tmp_path, "proc/device-tree/model", b"hangs")
    release = threading.Event()

    def slow(path: Path, *, follow: bool = False) -> bytes:
        if path.name == "model":
            release.wait(10)
        return read_bounded(path, follow=follow)

    monkeypatch.setattr(probing, "read_bounded", slow)
    facts = read_facts(str(tmp_path), limit=0.1)
    release.set()
    assert facts.cpuinfo == TEXT
    assert facts.failures["/proc/device-tree/model"] == "no answer within 0.1 s"


def test_a_container_on_a_pi_is_still_a_board(fs: FakeFilesystem) -> None:
    """With the device tree masked and no mailbox, cpuinfo at the real root suffices."""
    fs.create_file("/proc/cpuinfo", contents=TEXT)
    assert probe().type == "2B"


def test_proc_device_tree_is_a_link_on_a_real_machine(fs: FakeFilesystem) -> None:
    """At the real root the link /proc/device-tree is followed into /sys."""
    fs.create_file("/sys/firmware/devicetree/base/system/linux,revision", contents=CODE)
    fs.create_symlink("/proc/device-tree", "/sys/firmware/devicetree/base")
    board = probe()
    assert board.type == "2B"
    assert board.sources["revision"] == "/proc/device-tree/system/linux,revision"


def test_no_permission_is_its_own_outcome(fs: FakeFilesystem) -> None:
    """A file that exists and may not be read gives the command to read it."""
    fs.create_file("/proc/device-tree/system/linux,revision", contents=CODE, st_mode=stat.S_IFREG | 0o400)
    become_user()
    with pytest.raises(UnreadableBoardError, match="permission denied") as caught:
        probe()
    assert "sudo" in (caught.value.hint or "")


def test_no_permission_for_the_mailbox_names_the_group(fs: FakeFilesystem) -> None:
    """A Pi whose code is only in the firmware, asked by a user outside the group video."""
    fs.create_file("/proc/cpuinfo", contents="Hardware : BCM2835\nRevision : 0000\n")
    fs.create_file("/dev/vcio", st_mode=stat.S_IFCHR | 0o660)
    become_user()
    with pytest.raises(UnreadableBoardError, match="permission denied on /dev/vcio") as caught:
        probe()
    assert "usermod -aG video" in (caught.value.hint or "")


def test_the_mailbox_message_is_the_firmwares() -> None:
    """Tag 0x00010002 in eight words; the answer carries low word first, and an unanswered one is an error."""
    request = mailbox_request(0x0001_0002)
    assert struct.unpack("=8I", request) == (32, 0, 0x0001_0002, 8, 0, 0, 0, 0)
    answered = struct.pack("=8I", 32, ANSWERED, 0x0001_0002, 8, ANSWERED | 4, 0xA02082, 0xFFFF, 0)
    assert mailbox_answer(answered) == 0xA02082
    serial = struct.pack("=8I", 32, ANSWERED, 0x0001_0004, 8, ANSWERED | 8, 0xC3A91E5F, 0x10000000, 0)
    assert f"{mailbox_answer(serial):016x}" == "10000000c3a91e5f"
    with pytest.raises(OSError, match="did not answer"):
        mailbox_answer(request)


def test_a_device_that_is_no_mailbox_is_an_error() -> None:
    """A device that does not know the request fails as a device, not as a crash."""
    with pytest.raises(OSError):
        ask_mailbox(Path("/dev/null"))


@pytest.mark.skipif("vendor_id" not in Path("/proc/cpuinfo").read_text(), reason="not an x86 machine")
def test_this_machine_is_no_raspberry_pi() -> None:
    """The real /proc of an ordinary computer, read for real."""
    with pytest.raises(NotARaspberryPiError, match="vendor_id"):
        probe()
