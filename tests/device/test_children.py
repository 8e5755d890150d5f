"""Processes of the resident: whatever becomes of one, and whatever cannot be had for it, the resident goes on as before."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from device.living import living
from pi_agent.device import children


def handles() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_more_than_a_pipe_holds_is_an_error_and_no_wait() -> None:
    """Nobody reads before the child is there, so a blocking write would never end."""
    before = handles()
    with pytest.raises(OSError, match="more to say than a pipe holds"):
        children.Child([sys.executable, "-c", ""], 1.0, "worker", said=b"x" * 2**21)
    assert handles() == before


def test_ra36_a_child_that_cannot_be_had_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last descriptor went to the first pipe: that one is closed again."""
    pipe2, calls = os.pipe2, []

    def second_fails(flags: int) -> tuple[int, int]:
        calls.append(flags)
        if len(calls) == 2:
            raise OSError(24, "Too many open files")
        return pipe2(flags)

    before = handles()
    monkeypatch.setattr(os, "pipe2", second_fails)
    with pytest.raises(OSError, match="Too many open files"):
        children.Child(["/bin/true"], 1.0, "worker")
    assert handles() == before


def test_a_hook_that_became_another_user_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with the setuid bit cannot be killed by us; that it cannot is nothing to die of."""

    def refuse(*_: int) -> None:
        raise PermissionError

    child = children.Child(["/bin/true"], 1.0, "hook")
    monkeypatch.setattr(os, "killpg", refuse)
    child.end()


def test_a_child_that_somebody_else_has_waited_for_is_let_go() -> None:
    """No process of that number is ours any more: the list of those that are to be waited for gets shorter all the same."""
    child = children.Child(["/bin/cat"], 1.0, "hook")
    os.kill(child._pid, signal.SIGKILL)
    os.waitpid(child._pid, 0)
    child.end()
    assert child._pid not in children._ended


def test_the_agent_lives_where_sigchld_is_ignored(tmp_path: Path) -> None:
    """Some who start us ignore it, and an ignored signal is inherited: no child could be waited for."""
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    with living(tmp_path) as pi, pi.running(wrapper=(sys.executable, "-c", ignoring)) as agent:
        pi.state("ok")
        assert pi.get("/v1/token")[0] == 200
        rows = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
        ignored = next(int(row.split()[1], 16) for row in rows if row.startswith("SigIgn:"))
        assert not ignored & 1 << (signal.SIGCHLD - 1)
