"""``enrollment-token``, ``sign-in-link``, ``operator``, ``token`` and ``webhook``: who may come in, and who is told."""

from __future__ import annotations

import argparse
from typing import Any

from pi_agent.fleet import client
from pi_agent.fleet.commands.common import AS_JSON, command, count, fleet_of, group, listed, printed, say, seconds
from pi_agent.fleet.settings import setup_command

ROLES = ("reader", "approver", "admin")


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    _add_entrances(commands)
    _add_people(
        group(commands, "operator", "who may do what"), group(commands, "token", "operator tokens, for programs")
    )
    _add_webhooks(group(commands, "webhook", "who is told when a device waits, looks like a copy, or was revoked"))


def _add_entrances(commands: Any) -> None:
    token = command(commands, "enrollment-token", "make a token that approves devices as they enroll", enrollment_token)
    token.add_argument("--uses", type=int, default=1, metavar="N", help="how many devices it is for (default 1)")
    token.add_argument(
        "--ttl", default="1d", metavar="AGE", help="how long it is good, such as 30m, 12h, 1d (default 1d)"
    )
    token.add_argument("--serial", metavar="HEX", help="the one board it is for")
    token.add_argument("--json", **AS_JSON)
    link = command(commands, "sign-in-link", "make a link that opens the pages, once", sign_in_link)
    link.add_argument("--operator", default="operator", metavar="NAME", help="who signs in with it (default operator)")
    link.add_argument("--role", choices=ROLES, help="for somebody who is no operator yet")
    link.add_argument("--json", **AS_JSON)


def _add_people(operators: Any, tokens: Any) -> None:
    command(operators, "list", "who may do what", operator_list).add_argument("--json", **AS_JSON)
    parser = command(operators, "set", "make somebody an operator, or change their role", operator_set)
    parser.add_argument("name", metavar="NAME", help="who")
    parser.add_argument("role", choices=ROLES, help="what they may do")
    parser = command(operators, "remove", "end somebody's role, sessions and tokens", operator_remove)
    parser.add_argument("name", metavar="NAME", help="who")
    parser = command(tokens, "make", "make a token for a program", token_make)
    parser.add_argument("operator", metavar="NAME", help="the operator it works for")
    parser.add_argument("--role", choices=ROLES, default="reader", help="what it may do (default reader)")
    parser.add_argument("--ttl", default="90d", metavar="AGE", help="how long it is good (default 90d)")
    parser.add_argument("--note", default="", metavar="TEXT", help="what it is for")
    parser.add_argument("--json", **AS_JSON)
    command(tokens, "list", "all tokens, without their secrets", token_list).add_argument("--json", **AS_JSON)
    parser = command(tokens, "revoke", "end a token at once", token_revoke)
    parser.add_argument("prefix", metavar="PREFIX", help="how it begins, such as pfo_1a2b3c4d")


def _add_webhooks(webhooks: Any) -> None:
    parser = command(webhooks, "add", "tell an address what happens", webhook_add)
    parser.add_argument("url", metavar="URL", help="https://HOST/PATH")
    parser.add_argument(
        "events", nargs="*", metavar="EVENT", help="pending, clone, quarantined, revoked (default: all)"
    )
    parser.add_argument("--json", **AS_JSON)
    command(webhooks, "list", "all webhooks, and how the newest delivery went", webhook_list).add_argument(
        "--json", **AS_JSON
    )
    parser = command(webhooks, "remove", "tell an address nothing more", webhook_remove)
    parser.add_argument("id", metavar="ID", help="its number")


def enrollment_token(arguments: argparse.Namespace) -> int:
    """A token that approves devices as they enroll."""
    request = {"uses": arguments.uses, "ttl": seconds(arguments.ttl), "serial": arguments.serial}
    made = fleet_of(arguments, create=True).post("/enrollment-tokens", request)
    board = f" with serial {made['serial']}" if made["serial"] else ""
    say(f"approves {count(made['uses'])}{board} until {made['expires']}; it is shown only once")
    say(f"on the device: {setup_command(made['issuer'])} --enrollment-token-file FILE")
    return printed(arguments, made, f"{made['token']}\n")


def sign_in_link(arguments: argparse.Namespace) -> int:
    """A link that opens the pages, once."""
    request = {"operator": arguments.operator, "role": arguments.role}
    fleet = fleet_of(arguments, create=True)
    made = fleet.post("/sign-in-links", request)
    say(f"signs {made['operator']} in as {made['role']}, once, until {made['expires']}")
    if not fleet.served:
        say("no server runs here; the link works as soon as one does, at the address that it then has")
    return printed(arguments, made, f"{made['url']}\n")


def operator_list(arguments: argparse.Namespace) -> int:
    return listed(arguments, fleet_of(arguments).get("/operators"), "name", "role", "since", "by")


def operator_set(arguments: argparse.Namespace) -> int:
    path = f"/operators/{client.segment(arguments.name)}"
    made = fleet_of(arguments, create=True).put(path, {"role": arguments.role})
    say(f"{made['name']} is {made['role']}")
    return printed(arguments, made, "")


def operator_remove(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/operators/{client.segment(arguments.name)}")
    say(f"{arguments.name} is no operator any more; their sessions and tokens have ended")
    return printed(arguments, answer, "")


def token_make(arguments: argparse.Namespace) -> int:
    """A token with which a program works for an operator."""
    request = {
        "operator": arguments.operator,
        "role": arguments.role,
        "ttl": seconds(arguments.ttl),
        "note": arguments.note,
    }
    made = fleet_of(arguments).post("/tokens", request)
    say(f"{made['role']} for {made['operator']} until {made['expires']}; it is shown only once")
    say("elsewhere: PI_FLEET_TOKEN=... pi-fleet --server URL devices")
    return printed(arguments, made, f"{made['token']}\n")


def token_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/tokens")
    return listed(arguments, answer, "prefix", "operator", "role", "note", "expires", "used", "revoked")


def token_revoke(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/tokens/{client.segment(arguments.prefix)}")
    say(f"{arguments.prefix} opens nothing any more")
    return printed(arguments, answer, "")


def webhook_add(arguments: argparse.Namespace) -> int:
    """An address that is told what happens."""
    made = fleet_of(arguments).post("/webhooks", {"url": arguments.url, "events": arguments.events})
    say(f"webhook {made['id']} is told of: {', '.join(made['events'])}")
    say("the secret that signs what it is sent is shown only once")
    return printed(arguments, made, f"{made['secret']}\n")


def webhook_list(arguments: argparse.Namespace) -> int:
    return listed(arguments, fleet_of(arguments).get("/webhooks"), "id", "url", "events", "waiting", "last_error")


def webhook_remove(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/webhooks/{client.segment(arguments.id)}")
    say(f"webhook {arguments.id} is told nothing more")
    return printed(arguments, answer, "")
