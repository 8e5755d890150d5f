"""Read what this machine (or a recorded tree) says about itself. Reading only: ``pi_agent.board`` does the thinking.

Rules kept here:

* Nothing that is read is trusted: a file is opened without waiting and without following a link, must be a regular
  file (procfs and sysfs files are), and gives at most 1 MiB. All of it together gets 2 seconds; what is not there by
  then is reported as missing.
* ``/proc/device-tree`` and ``/sys/firmware/devicetree/base`` are the same tree, but a sandbox may hide either one,
  so both are asked. Not being able to read one of them says nothing.
* A recorded tree (``root``) never reaches out of itself into the machine it is replayed on.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path

from pi_agent.board import Board, identify, needs_mailbox
from pi_agent.errors import UsageError
from pi_agent.evidence import ABSENT, PERMISSION
from pi_agent.facts import CPUINFO, MAILBOX, MAX_TEXT, TREE_PROPERTIES, TREES, Facts, clean

LIMIT_SECONDS = 2.0

# The property channel of the VideoCore firmware: drivers/char/broadcom/vcio.c, _IOWR(100, 0, char *).
IOCTL_PROPERTY = 3 << 30 | struct.calcsize("P") << 16 | 100 << 8
TAGS = {"revision": 0x0001_0002, "serial": 0x0001_0004}
ANSWERED = 0x8000_0000


def probe(root: str = "/", cpuinfo: str | None = None) -> Board:
    """The board that this machine, or the tree recorded under ``root``, is.

    ``cpuinfo`` is a file to read in place of ``ROOT/proc/cpuinfo``; without a ``root`` of its own it speaks for
    itself, and nothing of this machine is mixed in. Raises ``NotARaspberryPiError`` or ``UnreadableBoardError``, and
    ``UsageError`` when there is no ``root``.
    """
    check_root(root)
    return identify(read_facts(root, cpuinfo))


def check_root(root: str) -> None:
    """Raise UsageError unless ``root`` is a folder."""
    if not os.path.isdir(root):  # noqa: PTH112 - Path.is_dir() raises for a folder that may not be entered
        raise UsageError(f"no such folder: {clean(root, 256)}", hint="--root takes a folder that board --record wrote")


def read_facts(root: str = "/", cpuinfo: str | None = None, *, limit: float = LIMIT_SECONDS) -> Facts:
    """Everything there is to read, within ``limit`` seconds. Failures are part of the facts; nothing is raised."""
    gathering = _Gathering()
    reader = threading.Thread(target=gathering.run, args=(root, cpuinfo), name="probe", daemon=True)
    reader.start()
    reader.join(limit)
    return gathering.facts(late=reader.is_alive(), limit=limit)


@dataclass
class _Gathering:
    """What has been read so far. A file that hangs holds up its own thread only."""

    cpuinfo: str | None = None
    cpuinfo_origin: str = CPUINFO
    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    mailbox: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    reading: str = CPUINFO

    def run(self, root: str, cpuinfo: str | None) -> None:
        self.cpuinfo_origin = clean(cpuinfo, 256) if cpuinfo else CPUINFO
        raw = self.read(self.cpuinfo_origin, Path(cpuinfo) if cpuinfo else _below(root, CPUINFO), follow=bool(cpuinfo))
        self.cpuinfo = None if raw is None else raw.decode("utf-8", "replace")
        if cpuinfo and root == "/":
            return
        for tree in TREES:
            self.read_tree(tree, _below(root, tree))
        if root == "/" and needs_mailbox(self.facts()):
            self.read_mailbox()

    def facts(self, *, late: bool = False, limit: float = LIMIT_SECONDS) -> Facts:
        failures = dict(self.failures)
        if late:
            failures[self.reading] = f"no answer within {limit:g} s"
        trees = {origin: dict(properties) for origin, properties in self.trees.copy().items() if properties}
        return Facts(self.cpuinfo, self.cpuinfo_origin, trees, dict(self.mailbox), failures)

    def read_tree(self, origin: str, directory: Path | None) -> None:
        properties = self.trees[origin] = {}
        for name in TREE_PROPERTIES:
            raw = self.read(f"{origin}/{name}", directory / name, optional=True) if directory else None
            if raw is not None:
                properties[name] = raw
        if not properties:
            self.failures.setdefault(origin, ABSENT)

    def read(self, origin: str, path: Path | None, *, follow: bool = False, optional: bool = False) -> bytes | None:
        self.reading = origin
        try:
            if path is None:
                raise FileNotFoundError
            return read_bounded(path, follow=follow)
        except FileNotFoundError:
            if not optional:
                self.failures[origin] = ABSENT
        except PermissionError:
            self.failures[origin] = PERMISSION
        except OSError as error:
            self.failures[origin] = error.strerror or "cannot be read"
        return None

    def read_mailbox(self) -> None:
        self.reading = MAILBOX
        try:
            self.mailbox = ask_mailbox(Path(MAILBOX))
        except FileNotFoundError:
            self.failures[MAILBOX] = ABSENT
        except PermissionError:
            self.failures[MAILBOX] = PERMISSION
        except OSError as error:
            self.failures[MAILBOX] = error.strerror or "no answer"


def read_bounded(path: Path, *, follow: bool = False) -> bytes:
    """At most 1 MiB of a regular file, without waiting. Raises ``OSError`` for anything else (a FIFO, a directory)."""
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY | (0 if follow else os.O_NOFOLLOW)
    )
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        chunks = []
        left = MAX_TEXT
        while chunk := os.read(descriptor, min(left, 1 << 16)):
            chunks.append(chunk)
            left -= len(chunk)
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def ask_mailbox(device: Path) -> dict[str, int]:
    """Ask the firmware for ``revision`` and ``serial``. Raises ``OSError`` when there is no such device or no answer."""
    descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        answers = {}
        for name, tag in TAGS.items():
            message = mailbox_request(tag)
            ioctl(descriptor, IOCTL_PROPERTY, message, True)
            answers[name] = mailbox_answer(message)
        return answers
    finally:
        os.close(descriptor)


def mailbox_request(tag: int) -> bytearray:
    """One property request with room for 8 bytes: size, request code, tag, room, 0, value, value, end tag (u32 each)."""
    return bytearray(struct.pack("=8I", 32, 0, tag, 8, 0, 0, 0, 0))


def mailbox_answer(message: bytes | bytearray) -> int:
    """The number in an answered request, low word first. Raises ``OSError`` when the firmware did not answer it."""
    _, code, _, _, length, low, high, _ = struct.unpack("=8I", message)
    if code != ANSWERED or not length & ANSWERED:
        raise OSError(0, "the firmware did not answer")
    return int(low | high << 32 if length & 0xFF > 4 else low)


def _below(root: str, path: str) -> Path | None:
    """``path`` under ``root``; None when links lead out of it (a chroot's /proc/device-tree points at the host's)."""
    if root == "/":
        return Path(path)
    base = Path(os.path.realpath(root))
    full = base / path.lstrip("/")
    return full if Path(os.path.realpath(full)).is_relative_to(base) else None
