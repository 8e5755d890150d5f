"""The parts of the boot tests that need neither root nor a machine: what counts as a write, and what was recorded."""

from __future__ import annotations

from pathlib import Path

import pytest
from flash import card_writes

from pi_agent.device.probe import probe

RECORDED = Path(__file__).resolve().parent / "recorded"
BOARDS = {
    "pi-zero-debian-12": ("900092", "/proc/cpuinfo"),
    "pi-2b-a21041-debian-12": ("a21041", "/proc/cpuinfo"),
    "pi-3b-debian-13": ("a02082", "/proc/device-tree/serial-number"),
}


@pytest.mark.parametrize(
    ("line", "written"),
    [
        (
            '7 openat(AT_FDCWD</>, "/var/lib/pi-agent/x", O_RDWR|O_CREAT, 0600) = 3</var/lib/pi-agent/x>',
            "/var/lib/pi-agent/x",
        ),
        ('7 write(3</var/log/y>, ""..., 3) = 3', "/var/log/y"),
        ('7 rename("/etc/a.new", "/etc/a") = 0', "/etc/a.new"),
        ('7 unlinkat(AT_FDCWD</>, "/etc/a", 0) = 0', "/etc/a"),
        ('7 mkdir("/var/x", 0700) = 0', "/var/x"),
        ("7 ftruncate(3</var/log/y>, 0) = 0", "/var/log/y"),
    ],
)
def test_writes_to_the_card(line: str, written: str) -> None:
    """A write, and whatever changes a folder, is seen with the name of the file."""
    assert card_writes([line]) == [written]


@pytest.mark.parametrize(
    "line",
    [
        '7 openat(AT_FDCWD</>, "/etc/pi-agent/config.toml", O_RDONLY|O_CLOEXEC) = 3</etc/pi-agent/config.toml>',
        '7 openat(AT_FDCWD</>, "/run/pi-agent/token.new", O_WRONLY|O_CREAT, 0600) = 3</run/pi-agent/token.new>',
        '7 write(5<UNIX-STREAM:[123]>, ""..., 30) = 30',
        '7 readlink("/usr/bin/python3", ""..., 4096) = 10',
        '7 unlink("/etc/a") = -1 ENOENT (No such file or directory)',
    ],
)
def test_what_is_no_write(line: str) -> None:
    """Reading, sockets, memory and what failed are not writes."""
    assert card_writes([line]) == []


@pytest.mark.parametrize("name", BOARDS)
def test_recordings(name: str) -> None:
    """What was recorded on the emulated boards still decodes: the code by the device tree, since mainline prints none."""
    board = probe(str(RECORDED / name))
    revision, serial_from = BOARDS[name]
    assert str(board.revision) == revision
    assert (board.sources["revision"], board.sources["serial"]) == (
        "/proc/device-tree/system/linux,revision",
        serial_from,
    )
    cpuinfo = (RECORDED / name / "proc" / "cpuinfo").read_text()
    assert [line for line in cpuinfo.splitlines() if line.startswith("Revision")] in ([], ["Revision\t: 0000"])
