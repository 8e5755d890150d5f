"""``pi-agent sign-out``: revoke this board's tokens at the server and hold none until told otherwise."""

from __future__ import annotations

import argparse
import sys

from pi_agent import client

HELP = "revoke the tokens at the server, and hold none until: pi-agent refresh"
PATIENCE = 130.0  # a request that is under way is waited for, and then it is one worker per 30 KiB of tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "key and enrollment stay; to give them up: pi-agent wipe-identity. The next start signs in again"


def run(args: argparse.Namespace) -> int:
    """1 when the server did not revoke them all. Raises AgentError (4) for a caller who is neither root nor the agent's user,
    TransportError (5).
    """
    answer = client.ask("/v1/sign-out", method="POST", runtime=args.runtime, timeout=PATIENCE)
    sys.stderr.write(f"{answer['sentence']}\n")
    return 0 if answer["revoked"] else 1
