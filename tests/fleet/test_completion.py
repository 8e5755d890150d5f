"""TAB in real shells: where a query is typed, the words come from the fleet that the line names."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.live import COMMAND, LiveFleet, run

FILES = {"bash": "pi-fleet", "zsh": "_pi-fleet", "fish": "pi-fleet.fish"}
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], "source {file}"),
    "zsh": (
        ["zsh", "-f", "-i"],
        "bindkey -e; fpath=({folder} $fpath); autoload -U compinit; compinit -u -d {folder}/dump",
    ),
    "fish": (["fish", "--no-config", "-i"], "source {file}"),
}
DEADLINE = 30.0
DONE = "completed:"


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A server with the device kitchen, a 2B."""
    fleet = LiveFleet(tmp_path_factory.mktemp("tab") / "data")
    fleet.enroll()
    yield fleet
    fleet.stop()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion files, as ``pi-fleet completion`` prints them, and a ``pi-fleet`` for PATH."""
    folder = tmp_path_factory.mktemp("home")
    for shell, name in FILES.items():
        (folder / shell).mkdir()
        (folder / shell / name).write_text(run("completion", shell).stdout)
    program = folder / "pi-fleet"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o755)
    return folder


def completed(shell: str, home: Path, typed: str) -> str:
    """The line that an interactive shell has after ``typed`` and TAB: it is made to echo it."""
    command, load = SHELLS[shell]
    file = home / shell / FILES[shell]
    environment = {"PATH": f"{home}:/usr/bin:/bin", "HOME": str(home), "TERM": "dumb", "LC_ALL": "C.UTF-8"}
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, environment)
    try:
        os.write(terminal, f" {load.format(file=file, folder=file.parent)}; echo rea''dy\n".encode())
        said(terminal, "ready")
        os.write(terminal, f"{typed}\t\x01echo comple''ted: \x05 :end\n".encode())
        return said(terminal, ":end\r\n", after=DONE).partition(":end")[0].strip()
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


def said(terminal: int, until: str, after: str = "") -> str:
    """What a shell says from ``after`` on, once it has said ``until`` behind that."""
    text, end = "", time.monotonic() + DEADLINE
    while time.monotonic() < end:
        _, found, behind = text.rpartition(after) if after else ("", " ", text)
        if found and until in behind:
            return behind
        if select.select([terminal], [], [], 0.5)[0]:
            text += os.read(terminal, 65536).decode(errors="replace")
    raise AssertionError(f"the shell said {text!r}")


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("typed", "whole"),
    [
        ("devices mod", "devices model:"),
        ("devices memory:1gb model:zero2", "devices memory:1gb model:zero2w"),
        ("approve status:pen", "approve status:pending"),
        ("devices name:kit", "devices name:kitchen"),
        ("device kit", "device name:kitchen"),
        ("devices --count", "devices --count-by"),
    ],
)
def test_tab_completes_a_query(live: LiveFleet, home: Path, shell: str, typed: str, whole: str) -> None:
    """Fields, their values, and the names that only the server knows; options as everywhere."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    start = f"pi-fleet --data {live.data}"
    assert completed(shell, home, f"{start} {typed}") == f"{start} {whole}"
