"""A real server, Debian's Chromium, and the checks of axe-core; each test says why it is skipped where one of them is missing."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.live import LiveFleet

AXE = "axe-core@4.14.1"
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")  # no longer: its event loop would be in the way of Django in the tests after it
def chromium() -> Iterator[Any]:
    """The browser."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, which looks for what shuts people out."""
    folder = tmp_path_factory.mktemp("axe")
    npm = shutil.which("npm")
    done = npm and subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, timeout=120, check=False)
    if not done or done.returncode:
        pytest.skip("axe-core cannot be fetched with npm")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        archive.extract("package/axe.min.js", folder, filter="data")
    return (folder / "package" / "axe.min.js").read_text()


@pytest.fixture
def live(tmp_path: Path) -> Iterator[LiveFleet]:
    fleet = LiveFleet(tmp_path / "data")
    yield fleet
    fleet.stop()
