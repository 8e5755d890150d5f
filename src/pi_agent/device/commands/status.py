"""``pi-agent status``: how the agent is, in a dozen lines."""

from __future__ import annotations

import argparse
import json

from pi_agent import client
from pi_agent.errors import TransportError

HELP = "say how the agent is, and what to do if it is not well"
EXIT_CODES = {"ok": 0, "pending": 4, "refused": 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the status as JSON")
    parser.epilog = "exit code: 0 has a token, 1 has none, 3 is not running, 4 waits for approval or was refused"


def run(args: argparse.Namespace) -> int:
    """0, 1 or 4 by the agent's state. Raises TransportError with exit code 3 when no agent runs."""
    try:
        status = client.ask("/v1/status", runtime=args.runtime)
    except TransportError as error:
        error.exit_code = 3
        raise
    print(json.dumps(status) if args.json else _lines(status))
    return EXIT_CODES.get(status["state"], 0 if status["token_expires_in"] else 1)


def _lines(status: dict[str, object]) -> str:
    board, failure = status["board"], status["failure"]
    assert isinstance(board, dict)
    memory = f"{board['memory_mib']} MiB" if board["memory_mib"] else "memory unknown"
    rows = [
        ("state", status["sentence"]),
        ("board", f"{board['model']}, {memory}, revision {board['revision']}, serial {board['serial'] or 'unknown'}"),
        ("server", status["issuer"]),
        ("device id", status["client_id"]),
        ("refreshes", f"{status['refreshes']} of {status['attempts']} attempts"),
    ]
    if isinstance(failure, dict):
        rows += [("why", failure["message"])]
        rows += [("next step", failure["hint"])] if failure["hint"] else []
    return "\n".join(f"{name:<11}{value}" for name, value in rows)
