"""``pi-agent``: one command a file in ``commands/``; this one finds it, runs it, and says what went wrong.

Data goes to stdout, words go to stderr: ``error:``, then ``hint:`` with the next step. With ``--json`` an error is a
JSON object on stdout, too. Only the command that is asked for is imported.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from pi_agent import __version__
from pi_agent.command_line import Parser, asks_for_help
from pi_agent.device.commands import COMMANDS, in_place
from pi_agent.errors import PiAgentError

FIRST_STEP = "sudo pi-agent setup https://fleet.example"
EPILOG = """\
exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 not approved; 5 unreachable; 6 conflict; 130 interrupted

example:
  sudo pi-agent setup https://fleet.example
  pi-agent token --header | curl -H @- https://api.example/telemetry
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code is returned."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = parse(arguments)
    try:
        code: int = _command(args.command).run(args)
        sys.stdout.flush()
    except PiAgentError as error:
        return _report(error, args, arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return _stop_writing()  # the reader has left; nothing more to say to it
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _stop_writing(_report(PiAgentError(f"{where}{error.strerror or error}"), args, arguments))
    return code


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command that a line asks for. Raises SystemExit where it makes none, as argparse does."""
    words = asks_for_help(arguments)
    return _parser(words).parse_args(words)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = Parser(
        prog="pi-agent",
        description="The identity agent for Raspberry Pi: proves which board this is, and keeps an access token ready.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pi-agent {__version__}")
    parser.add_argument("--config", metavar="FILE", help="settings file (default /etc/pi-agent/config.toml)")
    parser.add_argument("--state", metavar="DIR", help="folder of the key and the identity (default /var/lib/pi-agent)")
    parser.add_argument("--runtime", metavar="DIR", help="folder of the socket (default /run/pi-agent)")
    parser.add_argument("--root", metavar="DIR", help="where /proc is read (default /)")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parser.names = COMMANDS
    named = [word for word in arguments if word in COMMANDS][:1]
    for name in named or COMMANDS:
        module = _command(name)
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
    return parser


def _stop_writing(code: int = 1) -> int:
    """Point standard output to nowhere, so that the interpreter's own last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _command(name: str) -> ModuleType:
    return importlib.import_module("pi_agent.device.commands." + name.replace("-", "_"))


def _report(error: PiAgentError, args: argparse.Namespace, arguments: list[str]) -> int:
    if args.debug:
        raise error
    text, hint = _explain(error, args, arguments)
    if getattr(args, "json", False):
        print(json.dumps({"schema": "pi-agent.error/1", "error": text, "hint": hint}))
    sys.stderr.write(f"error: {text}\n")
    if hint:
        sys.stderr.write(f"hint: {hint}\n")
    return error.exit_code


def _explain(error: PiAgentError, args: argparse.Namespace, arguments: list[str]) -> tuple[str, str | None]:
    """The error and its hint, for whoever has typed this command: two causes are known here alone."""
    is_closed = isinstance(error.__cause__, PermissionError) and getattr(error, "reason", "") != "permission"
    if is_closed and os.geteuid() != 0:
        import shlex

        return str(error), f"it takes root: sudo pi-agent {shlex.join(arguments)}"
    if getattr(error, "reason", "") == "no-agent":
        settings = args.config or os.environ.get("PI_AGENT_CONFIG") or "/etc/pi-agent/config.toml"
        if not os.path.exists(settings):  # noqa: PTH110  # pathlib is dear, and a token is asked for often
            return f"no agent is running: there is no {settings}", in_place(FIRST_STEP, args)
    return str(error), error.hint and in_place(error.hint, args)
