"""``pi-agent refresh``: ask the server for a new token now, and say how that went. Ends a sign-out, too."""

from __future__ import annotations

import argparse
import sys

from pi_agent import client
from pi_agent.device import api

HELP = "fetch a new token now"
EXIT_CODES = {"pending": 4, "refused": 4, "failed": 5}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audience", metavar="URI", help="whom the token is for (default: as configured)")
    parser.add_argument("--scope", metavar="SCOPES", help="scopes, separated by spaces (default: as configured)")
    parser.add_argument("--timeout", type=int, default=30, metavar="SECONDS", help="how long to wait for it (30)")
    parser.epilog = (
        "exit code: 0 there is a new token, 4 waits for approval or was refused, 5 no answer, also when the token from "
        "before is still good. Root signs in again with this after: pi-agent sign-out"
    )


def run(args: argparse.Namespace) -> int:
    """0, 4 or 5 by how the attempt went. Raises AgentError (4, 5) and TransportError (5) when there is no token at all."""
    client.renew(audience=args.audience, scope=args.scope, runtime=args.runtime, timeout=args.timeout)
    status = client.ask("/v1/status", runtime=args.runtime)
    default = status["tokens"][0]
    audience, scope = api.chosen((default["audience"], default["scope"]), args.audience, args.scope)
    found = (each for each in status["tokens"] if (each["audience"], each["scope"]) == (audience, scope))
    asked = next(found, {"message": "", "outcome": "token"})  # it came, and was let go for somebody else's since
    sys.stderr.write(f"{status['sentence'] if asked is default else asked['message'] or 'token ok'}\n")
    return EXIT_CODES.get(asked["outcome"], 0)
