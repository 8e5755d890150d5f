"""``pi-agent status``: how the agent is, in a dozen lines."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pi_agent import client
from pi_agent.errors import TransportError

HELP = "say how the agent is, and what to do if it is not well"
EXIT_CODES = {"ok": 0, "pending": 4, "refused": 4, "signed-out": 1}
MOST_LINES = 12


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
    print(json.dumps(status) if args.json else lines(status))
    return EXIT_CODES.get(status["state"], 0 if status["token_expires_in"] else 1)


def lines(status: dict[str, Any]) -> str:
    """At most ``MOST_LINES`` lines for a person."""
    board, failure, others = status["board"], status["failure"], status["tokens"][1:]
    rows = [
        ("state", status["sentence"]),
        (
            "board",
            f"{board['model']}, {_memory(board)}, revision {board['revision']}, serial {board['serial'] or 'unknown'}",
        ),
        ("server", status["issuer"]),
        ("device id", f"{status['client_id']}, key: {status['key']}"),
        ("refreshes", f"{status['refreshes']} of {status['attempts']} attempts"),
    ]
    if others:
        good = sum(other["expires_in"] > 0 for other in others)
        rows.append(("more", f"{good} of {len(others)} tokens for other audiences or scopes are good"))
    rows += [("warning", warning) for warning in status["warnings"][:2]]
    if failure:
        rows.append(("why", failure["message"]))
        approve = f"an operator runs: pi-fleet approve {status['client_id']}" if status["state"] == "pending" else ""
        rows.append(("next step", failure["hint"] or approve or "sudo pi-agent doctor"))
    return "\n".join(f"{name:<11}{value}" for name, value in rows[:MOST_LINES])


def _memory(board: dict[str, Any]) -> str:
    mib = board["memory_mib"]
    if not mib:
        return "memory unknown"
    return f"{mib // 1024} GB" if mib % 1024 == 0 else f"{mib} MB"
