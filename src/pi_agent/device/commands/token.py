"""``pi-agent token``: the access token, alone, on stdout."""

from __future__ import annotations

import argparse
import sys

from pi_agent import client

HELP = "print an access token"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--min-valid", type=int, default=60, metavar="SECONDS", help="how long it must still be good (60)"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--header", action="store_true", help="as an Authorization header, for: curl -H @-")
    kind.add_argument("--json", action="store_true", help="as JSON, with its expiry")
    parser.epilog = "example: pi-agent token --header | curl -H @- https://api.example/telemetry"


def run(args: argparse.Namespace) -> int:
    """Raises AgentError (4) when the agent has no token to give, TransportError (5) when there is no agent."""
    if args.json:
        status, body = client.get(f"/v1/token?min_valid={args.min_valid}", runtime=args.runtime)
        if status == 200:
            sys.stdout.write(body.decode() + "\n")
            return 0
    token = client.token(min_valid=args.min_valid, runtime=args.runtime)
    text = f"Authorization: Bearer {token}" if args.header else token
    sys.stdout.write(text + ("\n" if args.header or sys.stdout.isatty() else ""))
    return 0
