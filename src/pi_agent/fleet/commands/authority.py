"""``keys``, ``resource-server``, ``rule`` and ``device add``: what the authorization server works with."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pi_agent.errors import ConfigError, UsageError
from pi_agent.fleet import client
from pi_agent.fleet.commands.common import confirmed, fleet_of, printed, say
from pi_agent.fleet.commands.people import table

MAX_JWK = 16 * 1024


def keys_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/keys")
    names = ("kid", "state", "created", "signs_from", "published_until")
    say("the private keys are sealed" if answer["sealed"] else "the private keys lie open in the database")
    return printed(arguments, answer, table(answer["items"], {name: name.upper().replace("_", " ") for name in names}))


def keys_rotate(arguments: argparse.Namespace) -> int:
    made = fleet_of(arguments).post("/keys", {"at_once": arguments.now})
    say(f"the new key signs from {made['signs_from']}" + (" (now)" if arguments.now else ", once everybody knows it"))
    return printed(arguments, made, f"{made['kid']}\n")


def keys_retire(arguments: argparse.Namespace) -> int:
    fleet = fleet_of(arguments)
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to confirm", hint="add --yes")
        say("every token that this key has signed is refused from now on")
        if not confirmed("retire it", 1):
            raise UsageError("not confirmed; nothing has changed")
    answer = fleet.delete(f"/keys/{client.segment(arguments.kid)}")
    say(f"retired; resource servers that have the key in memory may believe it until {answer['cached_until']}")
    return printed(arguments, answer, "")


def resource_server_add(arguments: argparse.Namespace) -> int:
    request = {
        "name": arguments.name,
        "audience": arguments.audience,
        "scopes": arguments.scopes,
        "query": " ".join(arguments.query) if arguments.query else "id:*",
    }
    made = fleet_of(arguments, create=True).post("/resource-servers", request)
    say(f"{made['name']} may ask about tokens for {made['audience']}; its secret is shown only once")
    return printed(arguments, made, f"{made['client_id']}\t{made['client_secret']}\n")


def resource_server_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/resource-servers")
    names = ("name", "client_id", "audience", "created", "created_by")
    return printed(arguments, answer, table(answer["items"], {name: name.upper().replace("_", " ") for name in names}))


def resource_server_remove(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/resource-servers/{client.segment(arguments.name)}")
    say(f"{arguments.name} learns nothing about tokens any more")
    return printed(arguments, answer, "")


def rule_add(arguments: argparse.Namespace) -> int:
    request = {"query": " ".join(arguments.query), "scopes": arguments.scopes, "audience": arguments.audience}
    made = fleet_of(arguments, create=True).post("/rules", request)
    say(f"{made['scopes']} at {made['audience']} for devices where {made['meaning']}")
    return printed(arguments, made, f"{made['id']}\n")


def rule_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/rules")
    names = ("id", "audience", "scopes", "meaning")
    return printed(arguments, answer, table(answer["items"], {name: name.upper() for name in names}))


def rule_remove(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/rules/{client.segment(arguments.id)}")
    say(f"rule {arguments.id} is gone; tokens that it gave live on until they end")
    return printed(arguments, answer, "")


def device_add(arguments: argparse.Namespace) -> int:
    """A device by its public key, without the device."""
    request = {
        "jwk": read_jwk(arguments.jwk),
        "name": arguments.name,
        "serial": arguments.serial,
        "revision": arguments.revision,
        "approve": arguments.approve,
    }
    made = fleet_of(arguments, create=True).post("/devices/add", request)
    say(f"{made['id']} is {made['status']}; its key {made['kid']} is for {made['alg']}")
    return printed(arguments, made, f"{made['id']}\n")


def read_jwk(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ``-`` is standard input. Raises ConfigError."""
    try:
        text = sys.stdin.read(MAX_JWK) if str(path) == "-" else path.read_bytes()[:MAX_JWK].decode("utf-8")
        value = json.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ConfigError(f"cannot read the JWK in {path}: {reason}", path=str(path), key="jwk") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JWK", path=str(path), key="jwk", hint="a JSON object with kty, crv, x, y")
    return value
