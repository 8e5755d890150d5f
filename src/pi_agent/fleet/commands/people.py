"""``enrollment-token``, ``sign-in-link``, ``operator``, ``token`` and ``webhook``: who may come in, and who is told."""

from __future__ import annotations

import argparse
from typing import Any

from pi_agent.fleet import client, output
from pi_agent.fleet.commands.common import count, fleet_of, printed, say, seconds
from pi_agent.fleet.settings import setup_command


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
    made = fleet_of(arguments, create=True).post("/sign-in-links", request)
    say(f"signs {made['operator']} in as {made['role']}, once, until {made['expires']}")
    return printed(arguments, made, f"{made['url']}\n")


def operator_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/operators")
    return printed(
        arguments, answer, table(answer["items"], {"name": "NAME", "role": "ROLE", "since": "SINCE", "by": "BY"})
    )


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
    names = ("prefix", "operator", "role", "note", "expires", "used", "revoked")
    return printed(arguments, answer, table(answer["items"], {name: name.upper() for name in names}))


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
    answer = fleet_of(arguments).get("/webhooks")
    items = [item | {"events": " ".join(item["events"])} for item in answer["items"]]
    names = ("id", "url", "events", "waiting", "last_error")
    return printed(arguments, answer, table(items, {name: name.upper().replace("_", " ") for name in names}))


def webhook_remove(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/webhooks/{client.segment(arguments.id)}")
    say(f"webhook {arguments.id} is told nothing more")
    return printed(arguments, answer, "")


def table(items: list[dict[str, Any]], columns: dict[str, str]) -> str:
    if not items:
        say("none")
        return ""
    rows = [
        [output.plain(str(item[name])) if item[name] not in (None, "") else "-" for name in columns] for item in items
    ]
    return output.aligned([list(columns.values()), *rows])
