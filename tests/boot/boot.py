"""Boot what we ship: ``tests/boot/run --help``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import fleet_unit
import lab
import own_test
import roots
import suite
from board_files import BOARDS
from lab import Lab
from life import ROOT, Life, Step
from server import Fleet
from vm import MODELS, emulated

SUITES = ("bookworm", "trixie")
TESTS = {f"{release}-tests": release for release in SUITES}
PLACES = (*SUITES, *TESTS, *BOARDS)
LIMITS = dict.fromkeys(SUITES, 900) | dict.fromkeys(TESTS, 1800) | dict.fromkeys(BOARDS, 1500)
NEEDED = ("mmdebstrap", "systemd-nspawn", "unshare", "nsenter", "dpkg-buildpackage", "lintian", "autopkgtest")
NEEDED_FOR_BOARDS = ("qemu-system-arm", "qemu-system-aarch64", "fdtput", "mke2fs", "cpio", "depmod", "modprobe")
APT = {
    "systemd-nspawn": "systemd-container",
    "dpkg-buildpackage": "dpkg-dev",
    "qemu-system-aarch64": "qemu-system-arm",
    "fdtput": "device-tree-compiler",
    "mke2fs": "e2fsprogs",
    "depmod": "kmod",
    "modprobe": "kmod",
}
EPILOG = """\
The package is built from this tree; Debian's packages come from this machine's apt mirror and are kept in
$PI_AGENT_LAB (~/.cache/pi-agent-lab). Needs root. Nothing else of this machine is changed.

example:
  tests/boot/run --reduced             one Debian, without what takes its time (CI)
  tests/boot/run trixie raspi3b        Debian 13 in a container, and an emulated Raspberry Pi 3
  tests/boot/run bookworm-tests        the package's own test, and the device's with Debian 12's Python
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests/boot/run",
        description="Install the package under real systemd, and on emulated Raspberry Pis.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("where", nargs="*", metavar="WHERE", help=f"{', '.join(PLACES)} (default: all)")
    parser.add_argument("--reduced", action="store_true", help="one Debian in a container, the short way")
    parser.add_argument(
        "--limit",
        type=int,
        metavar="SECONDS",
        help="end it all after this time (900 for each Debian, 1800 for its tests, 1500 for each board)",
    )
    parser.add_argument("--debs", type=Path, metavar="DIR", help="use old/*.deb and new/*.deb from here, build nothing")
    args = parser.parse_args()
    where = args.where or (["bookworm"] if args.reduced else [*PLACES])
    if unknown := [name for name in where if name not in PLACES]:
        parser.error(f"there is no {unknown[0]!r}: choose from {', '.join(PLACES)}")
    check_machine(boards=any(name in BOARDS for name in where))
    lab.enter_namespace()
    for name in where:
        root(name)  # fetched once, which takes its time, and is none of what is timed
    limit = args.limit or sum(LIMITS[name] for name in where)
    signal.signal(signal.SIGALRM, lambda *_: give_up(limit))
    signal.alarm(limit)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="pi-agent-boot-") as home:
        return run(where, Path(home), args)


def check_machine(*, boards: bool) -> None:
    """End with 2 and the command to run where something is missing."""
    if os.geteuid() != 0:
        sys.exit("error: only root can boot things\nhint: sudo tests/boot/run")
    missing = [tool for tool in NEEDED + NEEDED_FOR_BOARDS * boards if not shutil.which(tool)]
    if missing:
        packages = " ".join(sorted({APT.get(tool, tool) for tool in missing}))
        sys.stderr.write(f"error: not installed: {', '.join(missing)}\n")
        sys.stderr.write(f"hint: apt install --no-install-recommends {packages}\n")
        sys.exit(2)


def give_up(limit: int) -> NoReturn:
    sys.exit(f"error: not done within {limit} s")


def run(where: list[str], home: Path, args: argparse.Namespace) -> int:
    old, new = packages(home, args.debs)
    failed = []
    with Fleet(home).running() as fleet:
        for name in where:
            try:
                folder = home / name
                folder.mkdir()
                if name in SUITES:
                    container(name, fleet, old, new, folder, whole=not args.reduced)
                elif name in TESTS:
                    own_tests(name, old, folder)
                else:
                    walk(name, emulated(name, fleet, old, folder))
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                say(f"{name}: FAILED: {type(error).__name__}: {error}")
                failed.append(name)
    say(f"boot: {len(where) - len(failed)} of {len(where)} ok" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


def container(release: str, fleet: Fleet, old: Path, new: Path, home: Path, *, whole: bool) -> None:
    tree = roots.tree(root(release))
    with Lab(tree, release) as machine, closing(Life(machine, fleet, old, new, home, whole=whole).steps()) as steps:
        walk(release, steps)
    if whole and fleet_unit.fits(tree):
        with Lab(tree, release) as machine, closing(fleet_unit.steps(machine)) as steps:
            walk(release, steps)


def root(name: str) -> Path:
    """The tar of the root file system that is started for ``name``."""
    if name in TESTS:
        return roots.rootfs(TESTS[name], roots.native(), "-tests", suite.PACKAGES)
    if name in SUITES:
        return roots.rootfs(name, roots.native())
    return roots.rootfs(MODELS[name].suite, MODELS[name].arch)


def own_tests(name: str, deb: Path, home: Path) -> None:
    tree = roots.tree(root(name))
    with Lab(tree, name) as machine:
        walk(name, [("the package's own test, by autopkgtest", lambda: own_test.run(machine, deb, home))])
    with Lab(tree, name) as machine, closing(suite.steps(machine)) as steps:
        walk(name, steps)


def walk(name: str, steps: Iterable[Step]) -> None:
    """Take each step, and say how long it took and what it saw."""
    for sentence, step in steps:
        begun = time.monotonic()
        try:
            saw = step()
        except BaseException:
            say(f"{name}: not so: {sentence}")
            raise
        detail = f": {saw}" if isinstance(saw, str) else ""
        say(f"{name}: {sentence} ({time.monotonic() - begun:.1f} s){detail}")


def packages(home: Path, given: Path | None) -> tuple[Path, Path]:
    """Two versions of the package, the second one newer."""
    if given:
        return next(given.glob("old/*.deb")), next(given.glob("new/*.deb"))
    begun = time.monotonic()
    for version, folder in ((), "old"), (("--version", "99.0"), "new"):
        command = [ROOT / "packaging" / "build-deb", *version, home / folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    say(f"built two versions of the package, lintian clean ({time.monotonic() - begun:.1f} s)")
    return packages(home, home)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
