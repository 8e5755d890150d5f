"""``pi-fleet``: the commands of an operator.

Everything but ``serve`` is a REST call over ``DATA/fleet.sock`` and needs the standard library only, so that it starts
fast. stdout is data; stderr is words, which begin with what a query meant.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pi_agent import __version__
from pi_agent.errors import ConfigError, ConflictError, PiAgentError, QueryError, UsageError
from pi_agent.fleet import client, output
from pi_agent.fleet.settings import Settings, load, setup_command

ACTIONS = {
    "approve": "let devices have tokens",
    "reject": "turn down devices that wait for approval",
    "quarantine": "refuse tokens for a while; release ends it",
    "release": "end a quarantine",
    "revoke": "refuse tokens for good",
}
DEVICE_ID = re.compile(r"pi-[0-9a-f]{16}")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
PAGE = 500
EPILOG = """\
exit codes: 0 done; 1 failed; 2 usage; 3 nothing matched; 4 not authorised; 5 unreachable; 6 conflict; 130 interrupted

example:
  pi-fleet serve
  pi-fleet devices model:2b memory:1gb auth:1d
  pi-fleet approve status:pending serial:*8f3a --reason 'kitchen display'
"""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
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


def _complain(error: PiAgentError) -> None:
    _say(f"error: {error}")
    if error.hint:
        _say(f"hint: {error.hint}")
    if isinstance(error, QueryError) and error.suggestion:
        _say(f"try: {error.suggestion}")


def _say(text: str) -> None:
    sys.stderr.write(output.plain(text) + "\n")


# The parser.


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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the server"))
    _add_devices(commands.add_parser("devices", help="list the devices of a query"))
    _add_device(commands.add_parser("device", help="show one device and its history"))
    for name, what in ACTIONS.items():
        _add_action(commands.add_parser(name, help=what, description=what.capitalize() + "."), name)
    _add_tokens(commands)
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bind", metavar="HOST:PORT", help="where to listen (default 127.0.0.1:8080; port 0 is any)")
    parser.add_argument(
        "--issuer", metavar="URL", help="the name devices know it by, such as https://fleet.example.org"
    )
    parser.add_argument("--audience", help="whom access tokens are for (default: the issuer)")
    parser.add_argument("--scopes", help="what a new device may ask for (default: device)")
    parser.add_argument("--token-lifetime", metavar="SECONDS", help="life of an access token (default 1800)")
    parser.add_argument(
        "--no-rate-limit",
        dest="rate_limit",
        action="store_const",
        const=False,
        help="serve everybody as fast as they ask",
    )
    parser.set_defaults(run=_serve)


def _add_devices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("query", nargs="*", help="such as model:2b memory:1gb auth:1d; without one, all devices")
    parser.add_argument("-o", "--output", choices=output.FORMS, default="table", help="how to print them")
    parser.add_argument("--json", dest="output", action="store_const", const="json", help="the same as -o json")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N devices")
    parser.add_argument(
        "--sort", default="name", metavar="FIELD", help="such as auth, or -auth for the newest first (default name)"
    )
    parser.set_defaults(run=_devices)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the id of the device")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=_device)


def _add_action(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument("query", nargs="+", help="a query, or the id of a device")
    parser.add_argument("--reason", default="", metavar="TEXT", help="why; kept in the audit log")
    parser.add_argument("--yes", action="store_true", help="do not ask; at most --max devices are changed")
    parser.add_argument(
        "--max", type=int, default=1, metavar="N", help="with --yes, refuse when more match (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="print what changed as JSON")
    parser.set_defaults(run=_act, action=name)


def _add_tokens(commands: Any) -> None:
    token = commands.add_parser("enrollment-token", help="make a token that approves devices as they enroll")
    token.add_argument("--uses", type=int, default=1, metavar="N", help="how many devices it is for (default 1)")
    token.add_argument(
        "--ttl", default="1d", metavar="AGE", help="how long it is good, such as 30m, 12h, 1d (default 1d)"
    )
    token.add_argument("--serial", metavar="HEX", help="the one board it is for")
    token.add_argument("--json", action="store_true", help="as JSON")
    token.set_defaults(run=_enrollment_token)
    link = commands.add_parser("sign-in-link", help="make a link that opens the pages, once")
    link.add_argument("--operator", default="operator", metavar="NAME", help="who signs in with it")
    link.add_argument("--json", action="store_true", help="as JSON")
    link.set_defaults(run=_sign_in_link)


# The commands.


def _settings(arguments: argparse.Namespace) -> Settings:
    return load(vars(arguments), os.environ, config=arguments.config)


def _serve(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    try:
        from pi_agent.fleet.server import serve  # Django and uvicorn, which only the server needs
    except ModuleNotFoundError as error:
        raise ConfigError(f"the server needs {error.name}, which is not installed", hint=client.EXTRA) from error
    return serve(settings)


def _devices(arguments: argparse.Namespace) -> int:
    fleet, query = client.connect(_settings(arguments)), " ".join(arguments.query)
    if arguments.limit is not None and arguments.limit < 1:
        raise UsageError("--limit is at least 1")
    answer = _pages(fleet, query, arguments.sort, arguments.limit)
    _say(f"{_count(answer['total'])}: {answer['meaning']}")
    sys.stdout.write(output.render(arguments.output, answer, int(time.time())))
    if len(answer["items"]) < answer["total"]:
        _say(f"{len(answer['items'])} of them are shown")
    return 0


def _pages(fleet: client.Fleet, query: str, sort: str, limit: int | None) -> dict[str, Any]:
    """The answer with the devices of all pages in it, up to ``limit``."""
    answer = fleet.get("/devices", query=query, sort=sort, limit=min(limit or PAGE, PAGE))
    items = answer["items"]
    while answer["next"] and (limit is None or len(items) < limit):
        size = PAGE if limit is None else min(PAGE, limit - len(items))
        answer |= fleet.get("/devices", query=query, sort=sort, limit=size, cursor=answer["next"])
        items += answer["items"]
    return answer | {"items": items}


def _count(number: int) -> str:
    return f"{number} device{'' if number == 1 else 's'}"


def _device(arguments: argparse.Namespace) -> int:
    device = client.connect(_settings(arguments)).get(f"/devices/{_path(arguments.id)}")
    sys.stdout.write(json.dumps(device, indent=2) + "\n" if arguments.json else output.card(device, int(time.time())))
    return 0


def _path(text: str) -> str:
    if not DEVICE_ID.fullmatch(text):
        raise UsageError(f"{text!r} is not the id of a device", hint=f"pi-fleet devices {text}")
    return text


def _act(arguments: argparse.Namespace) -> int:
    fleet, query = client.connect(_settings(arguments)), " ".join(arguments.query)
    query = f"id:{query}" if DEVICE_ID.fullmatch(query) else query
    path, request = f"/devices/{arguments.action}", {"query": query, "reason": arguments.reason}
    preview = fleet.post(path, request | {"dry_run": True})
    _show_preview(preview)
    if not preview["matched"]:
        return 3
    if not preview["changed"]:
        _say("nothing to do")
        return 0
    change = fleet.post(path, request | {"max": _confirmed(arguments, preview)})
    _say(f"{_count(len(change['changed']))} {change['status']}")
    names = "".join(f"{device['id']}\n" for device in change["changed"])
    sys.stdout.write(json.dumps(change, indent=2) + "\n" if arguments.json else names)
    return 0


def _show_preview(preview: dict[str, Any]) -> None:
    ready = preview["changed"]
    _say(f"{_count(preview['matched'])}: {preview['meaning']}")
    others = preview["matched"] - len(ready)
    if others and ready:
        _say(f"{_count(others)} of them cannot become {preview['status']}, and will stay as they are")
    for line in output.table(ready[:20], int(time.time())).splitlines() if ready else ():
        _say(line)
    if len(ready) > 20:
        _say(f"and {len(ready) - 20} more")


def _confirmed(arguments: argparse.Namespace, preview: dict[str, Any]) -> int:
    """How many devices the operator expects to match. Raises when that was not said, or was not this number."""
    if arguments.yes:
        return int(arguments.max)
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm", hint=f"add --yes --max {preview['matched']}")
    matched = preview["matched"]
    sys.stderr.write(f"type {matched} to {arguments.action} {_count(len(preview['changed']))}: ")
    sys.stderr.flush()
    if sys.stdin.readline().strip() != str(matched):
        raise ConflictError("not confirmed; nothing has changed")
    return int(matched)


def _enrollment_token(arguments: argparse.Namespace) -> int:
    request = {"uses": arguments.uses, "ttl": _seconds(arguments.ttl), "serial": arguments.serial}
    made = client.connect(_settings(arguments), create=True).post("/enrollment-tokens", request)
    board = f" with serial {made['serial']}" if made["serial"] else ""
    _say(f"approves {_count(made['uses'])}{board} until {made['expires']}; it is shown only once")
    _say(f"on the device: {setup_command(made['issuer'])} --enrollment-token-file FILE")
    sys.stdout.write(json.dumps(made, indent=2) + "\n" if arguments.json else f"{made['token']}\n")
    return 0


def _seconds(age: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}[smhdw]", age):
        raise UsageError(f"{age!r} is not an age", hint="write 30m, 12h or 1d")
    return int(age[:-1]) * UNITS[age[-1]]


def _sign_in_link(arguments: argparse.Namespace) -> int:
    made = client.connect(_settings(arguments), create=True).post("/sign-in-links", {"operator": arguments.operator})
    _say(f"signs {made['operator']} in, once, until {made['expires']}")
    sys.stdout.write(json.dumps(made, indent=2) + "\n" if arguments.json else f"{made['url']}\n")
    return 0
