"""SIGHUP: the settings that are read last are the ones that hold, for the socket and the files, too."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from device.conftest import needs_root
from device.resident import Home, a_home
from pi_agent.device import agent, children, frames, outlets
from pi_agent.device.tokens import Slot


@pytest.fixture
def home() -> Iterator[Home]:
    with a_home("https://fleet.example/token") as home:
        yield home


@pytest.fixture
def living(home: Home) -> Iterator[agent.Agent]:
    living = agent.Agent(home.fields())
    yield living
    living._stop()


def test_the_settings_are_read_by_one_reader_at_a_time(
    home: Home, living: agent.Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many signals come while one reads, one more reads after it, so what the last signal was about holds."""
    fifos: list[Path] = []

    def reader(_: dict[str, str], deadline: float) -> children.Child:
        fifos.append(home.folder / f"answer-{len(fifos)}")
        os.mkfifo(fifos[-1])
        return children.Child(["/bin/cat", str(fifos[-1])], deadline, "reload")

    def answer(fifo: Path, scope: str) -> None:
        ((handle, child),) = living._children.items()
        fifo.write_bytes(frames.pack(home.fields() | {"outcome": "settings", "scope": scope}))
        while living._children.get(handle) is child:
            assert select.select([handle], [], [], 10)[0]
            living._on_child(handle)

    monkeypatch.setattr(children, "settings_reader", reader)
    for _ in range(5):
        living._on_signals(bytes([signal.SIGHUP]))
    assert len(fifos) == len(living._children) == 1
    answer(fifos[0], "old")
    assert (len(fifos), len(living._children), living.tokens.default.scope) == (2, 1, "old")
    answer(fifos[1], "new")
    assert (len(fifos), len(living._children), living.tokens.default.scope) == (2, 0, "new")


@needs_root
def test_another_group_may_use_the_socket_at_once(home: Home, living: agent.Agent) -> None:
    """``local.group``, changed or taken away, changes whom the socket is for; callers need no restart for it."""
    door = home.runtime / "agent.sock"
    for group, gid in (("2000", 2000), ("2001", 2001), ("", os.getegid())):
        living._on_reload(home.fields() | {"outcome": "settings", "socket_gid": group}, 1.0)
        assert (door.stat().st_gid, door.stat().st_mode & 0o777) == (gid, 0o660)


@needs_root
def test_another_group_may_read_the_token_file_at_once(tmp_path: Path) -> None:
    """The file of the old group goes, and one for the new group comes with the token of before."""
    path = tmp_path / "token"
    settings = {"token_file": str(path), "environment_file": "", "hooks": ""}
    slot = Slot("", "", 0.0)
    slot.asked = 0.0
    slot.keep({"outcome": "token", "head": '{"access_token": "t", ', "tail": "}", "expires_in": "100"}, 0.5)
    outlet = outlets.Outlets(settings, 2000)
    outlet.put(slot, 1.0, changed=True, start=lambda *_: None)
    assert (path.stat().st_gid, path.stat().st_mode & 0o777) == (2000, 0o640)
    outlet.change(settings, 2001)
    assert not path.exists()
    outlet.sweep(slot, 2.0)
    assert (path.read_text(), path.stat().st_gid) == ("t", 2001)
