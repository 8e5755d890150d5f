"""``pi-agent run``: read settings, board and identity once, then become the thin resident."""

from __future__ import annotations

import argparse
import os
import sys

HELP = "run the agent in the foreground (what the systemd service does)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "stops on SIGTERM and SIGINT; SIGUSR1 asks for a new token now; SIGHUP reads the settings again"


def run(args: argparse.Namespace) -> int:
    """Replaces this process by the resident, so that nothing imported here stays in memory. Raises PiAgentError."""
    from pi_agent.device import alarm, frames
    from pi_agent.device.preparation import prepare

    fields = prepare(vars(args))
    reader, writer = os.pipe()
    os.write(writer, frames.pack(fields))
    os.close(writer)
    os.set_inheritable(reader, True)
    code = f"import sys; sys.path[:0] = [{_home()!r}]; from pi_agent.device.agent import main; main({reader}, {alarm.make()})"
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code])  # noqa: S606  # no shell is wanted


def _home() -> str:
    import pi_agent

    return os.path.dirname(os.path.dirname(os.path.realpath(pi_agent.__file__)))
