"""``pi-agent exec -- PROG``: run a program with a token, and see to it that its token stays good.

The token is in an environment variable, or in a file that only the child has open (``--fd``): there it is replaced in
place, and read again from the start. When a new token is there the child is left alone (the default, with ``--fd``),
sent a signal, or ended and started again.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

from pi_agent.device.commands import token
from pi_agent.errors import AgentError, PiAgentError, TransportError, UsageError

HELP = "run a program with an access token in its environment"
GRACE = 10.0
SHORTEST, LONGEST = 1.0, 300.0
SIGNALS = ("HUP", "USR1", "USR2", "TERM")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    token.add_choice(parser)
    parser.add_argument("--variable", default="PI_AGENT_TOKEN", metavar="NAME", help="its name (PI_AGENT_TOKEN)")
    parser.add_argument(
        "--fd",
        action="store_true",
        help="pass a file descriptor instead: its number is in NAME_FD, as /dev/fd/N it reads",
    )
    parser.add_argument(
        "--on-rotation",
        choices=("restart", "none", *SIGNALS),
        help="what happens when there is a new token (restart; with --fd: none)",
    )
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="-- PROG ...", help="the program and its arguments"
    )
    parser.epilog = "example: pi-agent exec --on-rotation HUP -- ./uploader --verbose"


def run(args: argparse.Namespace) -> int:
    """The program's exit code (128 + N when signal N ended it). Raises UsageError, AgentError, TransportError."""
    program = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not program:
        raise UsageError("exec needs a program to run", hint="pi-agent exec -- PROG")
    return Runner(args, program).run()


class Runner:
    """One program and its token. ``self._held`` is a memory file with the token, or -1; ``self._ending`` the signal that is to
    end us, or 0: from then on no program is started, whatever becomes of the token. A SIGINT that the program has survived
    when there is a new token was not the end.
    """

    _child: subprocess.Popen[bytes]

    def __init__(self, args: argparse.Namespace, program: list[str]) -> None:
        self._args = args
        self._program = program
        self._rotation = args.on_rotation or ("none" if args.fd else "restart")
        self._held = os.memfd_create("token", 0) if args.fd else -1
        self._ending = 0

    def run(self) -> int:
        current = token.fetch(self._args)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        self._start(current)
        while (code := self._wait()) is None:
            fresh = self._fetch() or current
            if fresh != current:
                current = fresh
                self._rotate(fresh)
        return code if code >= 0 else 128 - code

    def _start(self, access_token: str) -> None:
        passed: tuple[int, ...] = ()
        if self._held >= 0:
            self._fill(access_token)
            environment, passed = {f"{self._args.variable}_FD": str(self._held)}, (self._held,)
        else:
            environment = {self._args.variable: access_token}
        try:
            self._child = subprocess.Popen(self._program, env=os.environ | environment, pass_fds=passed)  # noqa: S603  # the user's own program
        except OSError as error:
            raise UsageError(f"cannot run {self._program[0]}: {error.strerror}") from error
        if self._ending:  # it came a moment ago, when there was no program to pass it on to
            self._child.send_signal(self._ending)

    def _wait(self) -> int | None:
        """The exit code when the program has ended within half the life of its token, else None."""
        try:
            return self._child.wait(self._pause())
        except subprocess.TimeoutExpired:
            return None

    def _pause(self) -> float:
        from pi_agent import client

        try:
            status = client.ask("/v1/status", runtime=self._args.runtime)
        except PiAgentError:
            return SHORTEST
        soonest = min((each["next_attempt_in"] for each in status["tokens"]), default=0)
        return float(min(max(soonest + 1.0, SHORTEST), LONGEST))

    def _fetch(self) -> str:
        """A token, or "" while there is none to be had: the program goes on with the one it has."""
        try:
            return token.fetch(self._args)
        except (AgentError, TransportError) as error:
            sys.stderr.write(f"pi-agent: {error}\n")
            time.sleep(SHORTEST)
            return ""

    def _rotate(self, access_token: str) -> None:
        if self._held >= 0:
            self._fill(access_token)
        if self._rotation == "restart":
            if self._ending == signal.SIGINT and self._child.poll() is None:
                self._ending = 0
            if not self._ending:
                self._end()
            if not self._ending:  # nor has it come in the meantime
                self._start(access_token)
        elif self._rotation != "none":
            self._child.send_signal(signal.Signals[f"SIG{self._rotation}"])

    def _fill(self, access_token: str) -> None:
        """Replace the token in place: a token of another length is never read with the tail of the old one."""
        data = access_token.encode("ascii") + b"\n"
        os.pwrite(self._held, data, 0)
        os.ftruncate(self._held, len(data))

    def _end(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _pass_on(self, number: int, _: object) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._ending = number
        if hasattr(self, "_child"):
            self._child.send_signal(number)
