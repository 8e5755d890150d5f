"""``pi-fleet``: the commands of an operator, by name and option. What they do is in ``pi_agent.fleet.commands``.

Nearly every command is a REST call over ``DATA/fleet.sock``, or to another machine with an operator token, and needs
the standard library only, so that it starts fast. stdout is data; stderr is words, which begin with what a query meant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pi_agent import __version__
from pi_agent.errors import PiAgentError, QueryError
from pi_agent.fleet import output
from pi_agent.fleet.cli_server import add_authority, add_data, add_serve
from pi_agent.fleet.commands import changes, devices, enrolling, local, log, people
from pi_agent.fleet.commands.common import say

ACTIONS = {
    "approve": "let devices have tokens",
    "reject": "turn down devices that wait for approval",
    "quarantine": "refuse tokens for a while; release ends it",
    "release": "end a quarantine",
    "revoke": "refuse tokens for good",
}
ROLES = ("reader", "approver", "admin")
QUERY = "such as model:2b memory:1gb auth:1d, or @VIEW"
EPILOG = """\
exit codes: 0 done; 1 failed; 2 usage; 3 nothing matched; 4 not authorised; 5 unreachable; 6 conflict; 130 interrupted

example:
  pi-fleet serve
  pi-fleet devices model:2b memory:1gb auth:1d
  pi-fleet devices late:true --count-by model
  pi-fleet approve status:pending serial:*8f3a --reason 'kitchen display'
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except PiAgentError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left; nothing more to say to it
        return 1
    return code


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command that a line asks for. Raises SystemExit where it makes none, as argparse does."""
    return _parser().parse_args(_queries(argv))


def _queries(argv: Sequence[str]) -> list[str]:
    """The words of a command line, where ``-tag:lab`` and ``-(...)`` are terms of a query and ``--sort -auth`` has its value."""
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--sort":
            words[-1] = f"--sort={word}"
        elif words[-1:] == ["device"] and word == "add":  # a device that is called so is found by name:add
            words[-1] = "device-add"
        elif word[:1] == "-" and word[:2] != "--" and (":" in word or word[1:2] == "("):
            words.append(f" {word}")  # what begins with a space is no option to argparse, and the same to a query
        else:
            words.append(word)
    return words


def _complain(error: PiAgentError) -> None:
    say(f"error: {error}")
    if error.hint:
        say(f"hint: {error.hint}")
    if isinstance(error, QueryError) and error.suggestion:
        say(f"try: {error.suggestion}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pi-fleet",
        description="Know every Raspberry Pi of a fleet: which board it is, and when it authenticated.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pi-fleet {__version__}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the fleet")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: DATA/fleet.toml)")
    parser.add_argument("--server", metavar="URL", help="a fleet on another machine (default: $PI_FLEET_SERVER)")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="the operator token for it (default: $PI_FLEET_TOKEN)"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_serve(commands.add_parser("serve", help="run the server"))
    _add_questions(commands)
    for name, what in ACTIONS.items():
        _add_action(commands.add_parser(name, help=what, description=what.capitalize() + "."), name)
    _add_tag(commands.add_parser("tag", help="give tags to devices, and take them away"))
    enrolling.add_commands(commands, _add_confirmation)
    _add_log(commands)
    _add_tokens(commands)
    _add_people(
        _group(commands, "operator", "who may do what"), _group(commands, "token", "operator tokens, for programs")
    )
    _add_webhooks(_group(commands, "webhook", "who is told when a device waits, looks like a copy, or was revoked"))
    add_authority(commands)
    add_data(commands)
    _add_simulate(commands.add_parser("simulate", help="add devices that do not exist, for trying and load tests"))
    return parser


Run = Callable[[argparse.Namespace], int]


def _command(commands: Any, name: str, what: str, run: Run) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def _group(commands: Any, name: str, what: str) -> Any:
    return commands.add_parser(name, help=what, description=what.capitalize() + ".").add_subparsers(
        required=True, metavar="COMMAND"
    )


def _add_questions(commands: Any) -> None:
    parser = _command(commands, "devices", "list the devices of a query", devices.devices)
    parser.add_argument("query", nargs="*", metavar="QUERY", help=f"{QUERY}; without one, all devices")
    parser.add_argument("-o", "--output", choices=output.FORMS, default="table", help="how to print them")
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.add_argument("--columns", metavar="FIELDS", help="such as name,model,auth")
    parser.add_argument("--sort", metavar="FIELD", help="such as auth, or -auth for the newest first (default name)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help="stop after N devices (default 100; csv, jsonl, name: all)"
    )
    parser.add_argument("--all", action="store_true", help="show all of them")
    parser.add_argument("--count-by", metavar="FIELD", help="count them by a field instead")
    parser.add_argument("--watch", action="store_true", help="go on, with a line for every change")
    parser.add_argument(
        "--interval", type=float, default=2.0, metavar="SECONDS", help="how often --watch looks (default 2)"
    )
    parser = _command(commands, "device", "show one device and its history", devices.device)
    parser.add_argument("id", metavar="ID", help="its id, or a name or query that only it has")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser = _command(commands, "export", "write the devices of a query to a file", devices.export)
    parser.add_argument("file", type=Path, metavar="FILE", help="its name ends in .csv or .jsonl")
    parser.add_argument("query", nargs="*", metavar="QUERY", help=f"{QUERY}; without one, all devices")
    parser.add_argument("--columns", metavar="FIELDS", help="such as name,model,auth (default: all there are)")
    parser.add_argument("--sort", metavar="FIELD", help="such as auth (default: created)")
    parser = _command(commands, "suggest", "what could come next in a query; for a shell's completion", devices.suggest)
    parser.add_argument("words", nargs="*", metavar="WORD", help="the query so far")


def _add_action(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("query", nargs="+", metavar="QUERY", help="a query, or the id of a device")
    _add_confirmation(parser)
    parser.set_defaults(run=changes.act, action=name)


def _add_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="+", metavar="QUERY", help="a query, or the id of a device; then +TAG ...")
    parser.add_argument("--add", action="append", default=[], metavar="TAG", help="a tag to give")
    parser.add_argument("--remove", action="append", default=[], metavar="TAG", help="a tag to take away")
    _add_confirmation(parser)
    parser.set_defaults(run=changes.tag, action="tag")


def _add_confirmation(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="why; kept in the audit log")
    parser.add_argument("--yes", action="store_true", help="do not ask; at most --max devices are changed")
    parser.add_argument(
        "--max", type=int, default=1, metavar="N", help="with --yes, refuse when more match (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print what changed as JSON")


def _add_log(commands: Any) -> None:
    parser = _command(
        commands, "audit", "what was done, by whom; 'audit verify' proves that no line was changed", log.audit
    )
    parser.add_argument(
        "query", nargs="*", metavar="QUERY", help="such as actor:ann action:device.revoke at:1d, or verify"
    )
    parser.add_argument(
        "-o", "--output", choices=("table", "json", "jsonl", "yaml", "csv"), default="table", help="how to print it"
    )
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="the newest N lines (default 50)")
    parser.add_argument("--all", action="store_true", help="all lines")
    views = _group(commands, "view", "queries with names")
    parser = _command(views, "save", "save a query under a name", log.view_save)
    parser.add_argument("name", metavar="NAME", help="such as late-in-berlin")
    parser.add_argument("query", nargs="+", metavar="QUERY", help="what it asks")
    parser.add_argument("--columns", metavar="FIELDS", help="the columns it shows")
    parser.add_argument("--sort", metavar="FIELD", help="how it is sorted")
    _command(views, "list", "all views", log.view_list).add_argument("--json", action="store_true", help="as JSON")
    _command(views, "remove", "forget a view", log.view_remove).add_argument("name", metavar="NAME", help="which one")


def _add_tokens(commands: Any) -> None:
    token = _command(
        commands, "enrollment-token", "make a token that approves devices as they enroll", people.enrollment_token
    )
    token.add_argument("--uses", type=int, default=1, metavar="N", help="how many devices it is for (default 1)")
    token.add_argument(
        "--ttl", default="1d", metavar="AGE", help="how long it is good, such as 30m, 12h, 1d (default 1d)"
    )
    token.add_argument("--serial", metavar="HEX", help="the one board it is for")
    token.add_argument("--json", action="store_true", help="as JSON")
    link = _command(commands, "sign-in-link", "make a link that opens the pages, once", people.sign_in_link)
    link.add_argument("--operator", default="operator", metavar="NAME", help="who signs in with it")
    link.add_argument(
        "--role", choices=ROLES, default="admin", help="for somebody who is no operator yet (default admin)"
    )
    link.add_argument("--json", action="store_true", help="as JSON")


def _add_people(operators: Any, tokens: Any) -> None:
    _command(operators, "list", "who may do what", people.operator_list).add_argument(
        "--json", action="store_true", help="as JSON"
    )
    parser = _command(operators, "set", "make somebody an operator, or change their role", people.operator_set)
    parser.add_argument("name", metavar="NAME", help="who")
    parser.add_argument("role", choices=ROLES, help="what they may do")
    parser = _command(operators, "remove", "end somebody's role, sessions and tokens", people.operator_remove)
    parser.add_argument("name", metavar="NAME", help="who")
    parser = _command(tokens, "make", "make a token for a program", people.token_make)
    parser.add_argument("operator", metavar="NAME", help="the operator it works for")
    parser.add_argument("--role", choices=ROLES, default="reader", help="what it may do (default reader)")
    parser.add_argument("--ttl", default="90d", metavar="AGE", help="how long it is good (default 90d)")
    parser.add_argument("--note", default="", metavar="TEXT", help="what it is for")
    parser.add_argument("--json", action="store_true", help="as JSON")
    _command(tokens, "list", "all tokens, without their secrets", people.token_list).add_argument(
        "--json", action="store_true", help="as JSON"
    )
    parser = _command(tokens, "revoke", "end a token at once", people.token_revoke)
    parser.add_argument("prefix", metavar="PREFIX", help="how it begins, such as pfo_1a2b3c4d")


def _add_webhooks(webhooks: Any) -> None:
    parser = _command(webhooks, "add", "tell an address what happens", people.webhook_add)
    parser.add_argument("url", metavar="URL", help="https://HOST/PATH")
    parser.add_argument(
        "events", nargs="*", metavar="EVENT", help="pending, clone, quarantined, revoked (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    _command(webhooks, "list", "all webhooks, and how the newest delivery went", people.webhook_list).add_argument(
        "--json", action="store_true", help="as JSON"
    )
    parser = _command(webhooks, "remove", "tell an address nothing more", people.webhook_remove)
    parser.add_argument("id", metavar="ID", help="its number")


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("number", type=int, metavar="N", help="how many")
    parser.add_argument(
        "--days", type=int, default=30, metavar="D", help="how long ago the first one came (default 30)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="another number, another fleet (default 1)")
    parser.set_defaults(run=local.simulate)
