"""What a running agent writes, by its system calls: everything on, several refreshes, and not a byte to the card."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from device.living import eventually, living
from device.rotating import Rotating
from pi_agent.device import identity
from pi_agent.device.keys import file

sys.path.append(str(Path(__file__).parents[1] / "boot"))
from flash import TRACE, card_writes  # a day of it, under systemd, is measured by ./dev boot

REFRESHES = 3


def test_a_server_that_always_wants_another_key_does_not_wear_the_card(tmp_path: Path) -> None:
    """F-04: one rotation a day at most; that it will not do more is a warning, and one line in the log."""
    with living(tmp_path) as pi:
        state = tmp_path / "state"
        server = Rotating(file.load(state).public_key(), pi.server.url)
        pi.answers.now, pi.answers.metadata = server, server.metadata
        with pi.running() as agent:
            for number in range(1, 7):
                server.is_due = True
                agent.send_signal(signal.SIGUSR1)
                eventually(lambda wanted=number: pi.status()["refreshes"] >= wanted, "refresh")  # type: ignore[misc]
            said = "the key is not rotated yet: the server asks for another, and the last is not a day old"
            assert pi.status()["warnings"] == [said]
            assert pi.log().count(said) == 1
        turned = identity.load(state)
        assert (turned.kid != pi.kid, turned.next_key, list(server.keys)) == (True, "", [turned.kid])
        assert sorted(path.name for path in state.glob("*.pem")) == sorted(
            key.removeprefix("file:") for key in (turned.previous_key, turned.key)
        )


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_refreshes_write_to_memory_alone(tmp_path: Path) -> None:
    """E-06: with files, a hook and callers, neither the resident nor a worker writes outside of the runtime folder."""
    with living(tmp_path) as pi:
        hook = tmp_path / "hooks/on-token.d/one"
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/sh\necho $PI_AGENT_EVENT >>{pi.runtime}/hooked\n")
        hook.chmod(0o755)
        files = f'token_file = "{pi.runtime}/token"\nenvironment_file = "{pi.runtime}/environment"\n'
        pi.configure(
            f'[server]\nissuer = "{pi.server.url}"\nloopback_http = true\n[sinks]\n{files}hooks = "{tmp_path}/hooks"\n'
        )
        with pi.running((*TRACE.split(), "-o", str(tmp_path / "calls"))) as strace:
            agent = int(Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text())
            for number in range(1, REFRESHES + 1):
                eventually(lambda wanted=number: pi.status()["refreshes"] >= wanted, "refresh")  # type: ignore[misc]
                pi.token()
                os.kill(agent, signal.SIGUSR1)
            hooked = Path(pi.runtime) / "hooked"
            eventually(lambda: hooked.read_text().count("token") >= REFRESHES, "every hook")
        calls = (tmp_path / "calls").read_text().splitlines()
        assert any("key.pem" in call for call in calls), "the workers were not seen"
        memory = (pi.runtime, f"{tmp_path}/log")  # the latter is this test's standard error
        written = [path for path in card_writes(calls) if not path.startswith(memory)]
        assert [path for path in written if "/__pycache__" not in path] == []  # the package brings these, and owns them
