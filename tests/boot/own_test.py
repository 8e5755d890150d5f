"""The test that the package carries (``packaging/debian/tests``), run by Debian's autopkgtest in an installed system."""

from __future__ import annotations

import os
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
    shutil.rmtree(lab.root / "etc/apt/sources.list.d")  # what it needs is there, but for the package
    (lab.root / "etc/apt/sources.list.d").mkdir()
    (lab.root / "etc/apt/sources.list").unlink(missing_ok=True)
    subprocess.run(["mount", "-t", "proc", "proc", lab.root / "proc"], check=True)  # it runs in a mere chroot
    subprocess.run(["mount", "--bind", "/dev", lab.root / "dev"], check=True)
    command = ["autopkgtest", "--quiet", str(deb), str(source), "--", "chroot", str(lab.root)]
    here = {name: value for name, value in os.environ.items() if name != "TMPDIR"}  # it would be looked for in there
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=280, stdin=subprocess.DEVNULL, env=here
    )
    if done.returncode:
        raise AssertionError(f"autopkgtest ended with {done.returncode}: {(done.stdout + done.stderr)[-6000:]}")
    passed = [line.split()[0] for line in (done.stdout + done.stderr).splitlines() if " PASS" in line]
    if "token" not in passed:
        raise AssertionError(f"only these have passed: {passed}")
    return ", ".join(passed)
