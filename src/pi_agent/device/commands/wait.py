"""``pi-agent wait``: until the agent has a token, for scripts and units that are of no use without one."""

from __future__ import annotations

import argparse
import time

from pi_agent import client
from pi_agent.errors import AgentError, PiAgentError, TransportError

HELP = "wait until there is an access token"
PAUSE = 0.25


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait (60)")
    parser.epilog = "exit code: 0 there is one, 1 not in time, 4 waits for approval or was refused, 5 no agent"


def run(args: argparse.Namespace) -> int:
    """Raises what stood in the way when the time is over: AgentError (1 or 4), TransportError (5)."""
    deadline = time.monotonic() + args.timeout
    while True:
        left = deadline - time.monotonic()
        wait = max(0, min(int(left), 30))
        try:
            client.ask(client.token_target(min_valid=1, wait=wait), runtime=args.runtime, timeout=wait + client.MARGIN)
        except (AgentError, TransportError) as error:
            if left <= 0:
                raise _in_time(error) from error
        else:
            return 0
        time.sleep(min(PAUSE, max(0.0, deadline - time.monotonic())))


def _in_time(error: PiAgentError) -> PiAgentError:
    if isinstance(error, AgentError):
        error.exit_code = 4 if error.status == 403 else 1
    return error
