"""``pi-agent run``: read settings, board and identity once, then become the thin resident."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys

HELP = "run the agent in the foreground (what the systemd service does)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "stops on SIGTERM and SIGINT; SIGUSR1 asks for a new token now"


def run(args: argparse.Namespace) -> int:
    """Replaces this process by the resident, so that nothing imported here stays in memory. Raises PiAgentError."""
    fields = prepare(args)
    reader, writer = os.pipe()
    from pi_agent.device import frames

    os.write(writer, frames.pack(fields))
    os.close(writer)
    os.set_inheritable(reader, True)
    code = f"import sys; sys.path[:0] = [{_home()!r}]; from pi_agent.device.agent import main; main({reader})"
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", code])  # noqa: S606  # no shell is wanted


def prepare(args: argparse.Namespace) -> dict[str, str]:
    """The settings of the resident and its workers, as the fields of a frame."""
    import json

    from pi_agent.board import board_claims
    from pi_agent.device import config, files, identity
    from pi_agent.device.commands.board import to_json
    from pi_agent.device.probe import probe

    settings = config.load(vars(args))
    known = identity.load(settings.state)
    board = probe(str(settings.root))
    known.check_board(board.serial or "")
    files.sweep(settings.state)
    files.make_directory(settings.runtime, 0o750)
    return {
        "python": sys.executable,
        "path": os.pathsep.join(os.path.realpath(entry) for entry in sys.path if os.path.isdir(entry)),
        "state": str(settings.state),
        "runtime": str(settings.runtime),
        "root": str(settings.root),
        "issuer": known.issuer,
        "client_id": known.client_id,
        "board": json.dumps(board_claims(board)),
        "board_document": json.dumps(to_json(board)),
        "scope": settings.token_scope,
        "resource": settings.token_resource,
        "assertion_lifetime": str(settings.token_assertion_lifetime),
        "ca_file": settings.server_ca_file,
        "proxy": settings.server_proxy,
        "loopback_http": str(settings.server_loopback_http),
        "spread": str(settings.token_spread),
        "phase": f"{_phase(known.kid):.6f}",
    }


def _phase(kid: str) -> float:
    """Where in the spread this device stands: always the same, and evenly over a fleet."""
    return int.from_bytes(hashlib.sha256(kid.encode()).digest()[:4], "big") / 2**32


def _home() -> str:
    import pi_agent

    return os.path.dirname(os.path.dirname(os.path.realpath(pi_agent.__file__)))
