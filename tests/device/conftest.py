"""What the tests of the device share: a state folder as the agent wants it, and a machine without surprises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from device.living import Living, living

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests reaches the code, and files are born with the usual umask."""
    for name in [name for name in os.environ if name.startswith("PI_AGENT_") or name == "OAUTHLIB_INSECURE_TRANSPORT"]:
        monkeypatch.delenv(name)
    os.umask(0o022)


@pytest.fixture
def pi(tmp_path: Path) -> Iterator[Living]:
    """An enrolled board, and its server."""
    with living(tmp_path) as pi:
        yield pi


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """An empty state folder of mode 0700."""
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    return folder
