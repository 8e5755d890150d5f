"""``pi-agent refresh``: ask the server for a new token now, and say how that went. Ends a sign-out, too."""

from __future__ import annotations

import argparse
import sys

from pi_agent import client

HELP = "fetch a new token now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audience", metavar="URI", help="whom the token is for (default: as configured)")
    parser.add_argument("--scope", metavar="SCOPES", help="scopes, separated by spaces (default: as configured)")
    parser.add_argument("--timeout", type=int, default=30, metavar="SECONDS", help="how long to wait for it (30)")
    parser.epilog = "root signs in again with this after: pi-agent sign-out"


def run(args: argparse.Namespace) -> int:
    """Raises AgentError (4), TransportError (5)."""
    client.renew(audience=args.audience, scope=args.scope, runtime=args.runtime, timeout=args.timeout)
    sys.stderr.write(f"{client.ask('/v1/status', runtime=args.runtime)['sentence']}\n")
    return 0
