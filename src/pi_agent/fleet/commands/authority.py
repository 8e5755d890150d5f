"""``keys``, ``resource-server``, ``rule`` and ``device add``: what the authorization server works with."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pi_agent.errors import ConfigError, MalformedTokenError, UsageError
from pi_agent.fleet import client
from pi_agent.fleet.commands.common import AS_JSON, command, confirmed, fleet_of, group, listed, printed, say

MAX_KEY = 16 * 1024


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    keys = group(commands, "keys", "the keys that sign access tokens")
    command(keys, "list", "all keys, and when they sign", keys_list).add_argument("--json", **AS_JSON)
    parser = command(keys, "rotate", "make a new key, which signs once everybody knows it", keys_rotate)
    parser.add_argument("--now", action="store_true", help="it signs at once; some may not know it yet")
    parser.add_argument("--json", **AS_JSON)
    parser = command(keys, "retire", "believe a key no more, nor the tokens it signed", keys_retire)
    parser.add_argument("kid", type=str.strip, metavar="KID", help="which one")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", **AS_JSON)
    _add_servers(group(commands, "resource-server", "services that devices call, and that may ask about tokens"))
    _add_rules(group(commands, "rule", "which devices may have which scopes, and at whom"))
    parser = command(commands, "device-add", "add a device by its public key, without the device", device_add)
    what = "its public key, PEM or JWK; - is stdin"
    parser.add_argument("--key", "--jwk", dest="key", type=Path, required=True, metavar="FILE", help=what)
    parser.add_argument("--name", default="", metavar="NAME", help="what to call it")
    parser.add_argument("--serial", metavar="HEX", help="the serial of its board")
    parser.add_argument("--revision", metavar="HEX", help="the revision code of its board, such as a01041")
    parser.add_argument("--approve", action="store_true", help="let it have tokens at once")
    parser.add_argument("--json", **AS_JSON)


def _add_servers(servers: Any) -> None:
    parser = command(servers, "add", "let a service ask about tokens for its audience", resource_server_add)
    parser.add_argument("name", metavar="NAME", help="what to call it")
    parser.add_argument("--audience", required=True, metavar="TEXT", help="what its tokens are for, such as its URL")
    parser.add_argument("--scopes", default="device", help="what devices may have there (default device)")
    parser.add_argument("--for", dest="devices", nargs="+", metavar="QUERY", help="which devices (default: all)")
    parser.add_argument("--json", **AS_JSON)
    command(servers, "list", "all of them, without their secrets", resource_server_list).add_argument(
        "--json", **AS_JSON
    )
    parser = command(servers, "remove", "forget one", resource_server_remove)
    parser.add_argument("name", metavar="NAME", help="which one")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _add_rules(rules: Any) -> None:
    parser = command(rules, "add", "let the devices of a query have scopes", rule_add)
    parser.add_argument("query", nargs="+", metavar="QUERY", help="which devices, such as tag:kitchen")
    parser.add_argument("--scopes", required=True, help="what they may ask for, separated by spaces")
    parser.add_argument("--audience", metavar="TEXT", help="at whom (default: the fleet's own audience)")
    parser.add_argument("--json", **AS_JSON)
    command(rules, "list", "all of them", rule_list).add_argument("--json", **AS_JSON)
    command(rules, "remove", "take one away", rule_remove).add_argument("id", metavar="ID", help="its number")


def keys_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/keys")
    say("the private keys are sealed" if answer["sealed"] else "the private keys lie open in the database")
    return listed(arguments, answer, "kid", "state", "created", "signs_from", "published_until")


def keys_rotate(arguments: argparse.Namespace) -> int:
    made = fleet_of(arguments).post("/keys", {"at_once": arguments.now})
    say(f"the new key signs from {made['signs_from']}" + (" (now)" if arguments.now else ", once everybody knows it"))
    return printed(arguments, made, f"{made['kid']}\n")


def keys_retire(arguments: argparse.Namespace) -> int:
    fleet = fleet_of(arguments)
    _confirm(arguments, "every token that this key has signed is refused from now on", "retire it")
    answer = fleet.delete(f"/keys/{client.segment(arguments.kid)}")
    say(
        f"retired; resource servers that have the key in memory may believe it until {answer['cached_until']}, and one that "
        "does not reach the fleet longer, for a day at most"
    )
    for key in fleet.get("/keys")["items"]:
        if key["state"] == "signing":
            say(f"now {key['kid']} signs")
    return printed(arguments, answer, "")


def _confirm(arguments: argparse.Namespace, what: str, to_do: str) -> None:
    """Say what follows, and wait for a yes. Raises UsageError without one."""
    if arguments.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to confirm", hint="add --yes")
    say(what)
    if not confirmed(to_do, 1):
        raise UsageError("not confirmed; nothing has changed")


def resource_server_add(arguments: argparse.Namespace) -> int:
    request = {
        "name": arguments.name,
        "audience": arguments.audience,
        "scopes": arguments.scopes,
        "query": " ".join(arguments.devices) if arguments.devices else "id:*",
    }
    made = fleet_of(arguments, create=True).post("/resource-servers", request)
    say(f"{made['name']} may ask about tokens for {made['audience']}; its secret is shown only once")
    return printed(arguments, made, f"{made['client_id']}\t{made['client_secret']}\n")


def resource_server_list(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).get("/resource-servers")
    return listed(arguments, answer, "name", "client_id", "audience", "created", "created_by")


def resource_server_remove(arguments: argparse.Namespace) -> int:
    fleet = fleet_of(arguments)
    _confirm(arguments, "it can ask about no token any more, and its secret is not given again", "remove it")
    answer = fleet.delete(f"/resource-servers/{client.segment(arguments.name)}")
    say(f"{arguments.name} learns nothing about tokens any more")
    return printed(arguments, answer, "")


def rule_add(arguments: argparse.Namespace) -> int:
    request = {"query": " ".join(arguments.query), "scopes": arguments.scopes, "audience": arguments.audience}
    made = fleet_of(arguments, create=True).post("/rules", request)
    say(f"{made['scopes']} at {made['audience']} for devices where {made['meaning']}")
    return printed(arguments, made, f"{made['id']}\n")


def rule_list(arguments: argparse.Namespace) -> int:
    return listed(arguments, fleet_of(arguments).get("/rules"), "id", "audience", "scopes", "meaning")


def rule_remove(arguments: argparse.Namespace) -> int:
    answer = fleet_of(arguments).delete(f"/rules/{client.segment(arguments.id)}")
    say(f"rule {arguments.id} is gone; tokens that it gave live on until they end")
    return printed(arguments, answer, "")


def device_add(arguments: argparse.Namespace) -> int:
    """A device by its public key, without the device."""
    request = {
        "jwk": read_key(arguments.key),
        "name": arguments.name,
        "serial": arguments.serial,
        "revision": arguments.revision,
        "approve": arguments.approve,
    }
    made = fleet_of(arguments, create=True).post("/devices/add", request)
    say(f"{made['id']} is {made['status']}; its key {made['kid']} is for {made['alg']}")
    return printed(arguments, made, f"{made['id']}\n")


def read_key(path: Path) -> dict[str, Any]:
    """The public key in a file, PEM or a JWK, as a JWK; ``-`` is standard input. Raises ConfigError."""
    try:
        text = sys.stdin.read(MAX_KEY) if str(path) == "-" else path.read_bytes()[:MAX_KEY].decode("utf-8")
        value = _from_pem(text, path) if "-----BEGIN" in text else json.loads(text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is neither PEM nor JSON"
        raise ConfigError(f"cannot read the key in {path}: {reason}", path=str(path), key="key") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds no JWK", path=str(path), key="key", hint="a JSON object with kty, crv, x, y")
    return value


def _from_pem(text: str, path: Path) -> dict[str, str]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from pi_agent.jwk import public_key

    if "PRIVATE KEY" in text:
        hint = "give the public half only: openssl pkey -in KEY.pem -pubout"
        raise ConfigError(f"{path} holds a private key", path=str(path), key="key", hint=hint)
    try:
        return public_key(load_pem_public_key(text.encode())).jwk  # type: ignore[arg-type]  # it refuses other kinds
    except (MalformedTokenError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"the key in {path} cannot be used: {error}", path=str(path), key="key") from error
