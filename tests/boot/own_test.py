"""The test that the package carries (``packaging/debian/tests``), run by Debian's autopkgtest in an installed system."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from lab import Lab
from life import ROOT

DEBIAN = ROOT / "packaging/debian"


def run(lab: Lab, deb: Path, home: Path) -> str:
    """Raises AssertionError with what was said when it does not pass. ``lab`` is thrown away afterwards."""
    source = home / "source"
    for name in ("tests", "control", "changelog"):
        target = source / "debian" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (DEBIAN / name).is_dir() else shutil.copy)(DEBIAN / name, target)
    for folder in ("etc/apt/sources.list.d", "etc/apt/sources.list"):  # what it needs is there, but for the package
        shutil.rmtree(lab.root / folder, ignore_errors=True)
        (lab.root / folder).unlink(missing_ok=True)
    command = ["autopkgtest", "--quiet", str(deb), str(source), "--", "chroot", str(lab.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise AssertionError(f"autopkgtest ended with {done.returncode}: {(done.stdout + done.stderr)[-6000:]}")
    return next(line for line in (done.stdout + done.stderr).splitlines() if "PASS" in line)
