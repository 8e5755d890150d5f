"""``pi-agent token``: the access token, alone, on stdout."""

from __future__ import annotations

import argparse
import json
import sys

from pi_agent import client

HELP = "print an access token"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_choice(parser)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--header", action="store_true", help="as an Authorization header, for: curl -H @-")
    kind.add_argument("--json", action="store_true", help="as JSON, with its expiry")
    parser.epilog = "example: pi-agent token --header | curl -H @- https://api.example/telemetry"


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which token is wanted; ``exec`` has them, too."""
    parser.add_argument("--audience", metavar="URI", help="whom the token is for (default: as configured)")
    parser.add_argument("--scope", metavar="SCOPES", help="scopes, separated by spaces (default: as configured)")
    parser.add_argument(
        "--min-valid", type=int, default=60, metavar="SECONDS", help="how long it must still be good (60)"
    )
    parser.add_argument(
        "--timeout", type=int, default=10, metavar="SECONDS", help="how long to wait for one that must be fetched (10)"
    )


def run(args: argparse.Namespace) -> int:
    """Raises AgentError (4 when refused, 5 when none can be had now), and TransportError (5) when there is no agent."""
    if args.json:
        target = client.token_target(
            audience=args.audience, scope=args.scope, min_valid=args.min_valid, wait=args.timeout
        )
        members = client.ask(target, runtime=args.runtime, timeout=args.timeout + client.MARGIN)
        sys.stdout.write(json.dumps({"schema": "pi-agent.token/1"} | members) + "\n")
        return 0
    token = fetch(args)
    text = f"Authorization: Bearer {token}" if args.header else token
    sys.stdout.write(text + ("\n" if args.header or sys.stdout.isatty() else ""))
    return 0


def fetch(args: argparse.Namespace) -> str:
    """The token that the arguments of ``add_choice`` describe."""
    return client.token(
        audience=args.audience,
        scope=args.scope,
        min_valid=args.min_valid,
        runtime=args.runtime,
        timeout=args.timeout,
    )
