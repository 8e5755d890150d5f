"""The device's own tests in a Debian's Python, with the libraries and the pytest that it packages.

``./dev test`` runs the same tests with the libraries of the lock, which ``./dev lock --upgrade`` makes the newest ones.
"""

from __future__ import annotations

from collections.abc import Generator

from lab import Lab, Machine
from life import ROOT, Step

PACKAGES = (
    "python3-pytest",
    "python3-pytest-xdist",
    "python3-hypothesis",
    "python3-pyfakefs",
    "softhsm2",
    "git",
    "dpkg-dev",
    "apt-utils",  # autopkgtest's
)
TESTS = "tests/device tests/hall tests/test_board.py tests/test_probe.py tests/test_revision.py tests/test_fixtures.py"
COMMAND = f"cd /opt/project && PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 exec python3 -m pytest -p no:cacheprovider -q -n 2 {TESTS}"
VERSIONS = """
import sys
from importlib.metadata import version
names = ("requests-oauthlib", "oauthlib", "pyjwt", "cryptography")
print("Python", sys.version.split()[0], *(f"{name} {version(name)}" for name in names), sep=", ")
"""
LIMIT = 1500


def steps(lab: Lab) -> Generator[Step, None, None]:
    (lab.root / "opt/project").mkdir(parents=True)
    with lab.boot(binds=[f"{ROOT}:/opt/project"]) as machine:
        yield "the device's tests, with this Debian's Python and libraries", lambda: _run(machine)


def _run(machine: Machine) -> str:
    versions = machine.run("python3", "-c", VERSIONS).strip()
    said = machine.run("timeout", str(LIMIT), "sh", "-c", COMMAND, codes=range(256), timeout=LIMIT + 30).strip()
    summary = said.splitlines()[-1] if said else ""
    if " passed" not in summary or "failed" in summary or "error" in summary:
        raise AssertionError(f"{versions}: {said[-12000:]}")
    return f"{summary.strip('= ')} ({versions})"
