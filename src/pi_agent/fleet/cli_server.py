"""The commands of ``pi-fleet`` about the server itself, by name and option: what it signs, who asks it, where it keeps it."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from pi_agent.fleet.commands import authority, data, local
from pi_agent.fleet.options import OPTIONS
from pi_agent.fleet.settings import Settings

JSON = ("--json",)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Every setting is an option. Their defaults stay None here, so that the environment and the file are asked, too."""
    defaults = {field.name: field.default for field in fields(Settings)}
    for name, option in OPTIONS.items():
        if not option.flag:
            continue
        flag = "--" + name.replace("_", "-")
        names = ("--database", flag) if name == "database_url" else (flag,)
        default = defaults[name]
        shown = (
            f" (default {default:g})"
            if isinstance(default, float)
            else " (default true)"
            if default is True
            else f" (default {default})"
            if default
            else ""
        )
        parser.add_argument(*names, dest=name, metavar=option.metavar, help=option.help + shown)
    parser.add_argument(
        "--no-rate-limit",
        dest="rate_limit",
        action="store_const",
        const=False,
        help="serve everybody as fast as they ask",
    )
    parser.set_defaults(run=local.serve)


def add_authority(commands: Any) -> None:
    """``keys``, ``resource-server``, ``rule``, ``device add``."""
    keys = _group(commands, "keys", "the keys that sign access tokens")
    _command(keys, "list", "all keys, and when they sign", authority.keys_list).add_argument(*JSON, **AS_JSON)
    parser = _command(keys, "rotate", "make a new key, which signs once everybody knows it", authority.keys_rotate)
    parser.add_argument("--now", action="store_true", help="it signs at once; some may not know it yet")
    parser.add_argument(*JSON, **AS_JSON)
    parser = _command(keys, "retire", "believe a key no more, nor the tokens it signed", authority.keys_retire)
    parser.add_argument("kid", metavar="KID", help="which one")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument(*JSON, **AS_JSON)
    _add_servers(_group(commands, "resource-server", "services that devices call, and that may ask about tokens"))
    _add_rules(_group(commands, "rule", "which devices may have which scopes, and at whom"))
    parser = _command(
        commands, "device-add", "add a device by its public key, without the device", authority.device_add
    )
    parser.add_argument("--jwk", type=Path, required=True, metavar="FILE", help="its public key as a JWK; - is stdin")
    parser.add_argument("--name", default="", metavar="NAME", help="what to call it")
    parser.add_argument("--serial", metavar="HEX", help="the serial of its board")
    parser.add_argument("--revision", metavar="HEX", help="the revision code of its board, such as a01041")
    parser.add_argument("--approve", action="store_true", help="let it have tokens at once")
    parser.add_argument(*JSON, **AS_JSON)


def _add_servers(servers: Any) -> None:
    parser = _command(servers, "add", "let a service ask about tokens for its audience", authority.resource_server_add)
    parser.add_argument("name", metavar="NAME", help="what to call it")
    parser.add_argument("--audience", required=True, metavar="TEXT", help="what its tokens are for, such as its URL")
    parser.add_argument("--scopes", default="device", help="what devices may have there (default device)")
    parser.add_argument("--for", dest="query", nargs="+", metavar="QUERY", help="which devices (default: all)")
    parser.add_argument(*JSON, **AS_JSON)
    _command(servers, "list", "all of them, without their secrets", authority.resource_server_list).add_argument(
        *JSON, **AS_JSON
    )
    parser = _command(servers, "remove", "forget one", authority.resource_server_remove)
    parser.add_argument("name", metavar="NAME", help="which one")


def _add_rules(rules: Any) -> None:
    parser = _command(rules, "add", "let the devices of a query have scopes", authority.rule_add)
    parser.add_argument("query", nargs="+", metavar="QUERY", help="which devices, such as tag:kitchen")
    parser.add_argument("--scopes", required=True, help="what they may ask for, separated by spaces")
    parser.add_argument("--audience", metavar="TEXT", help="at whom (default: the fleet's own audience)")
    parser.add_argument(*JSON, **AS_JSON)
    _command(rules, "list", "all of them", authority.rule_list).add_argument(*JSON, **AS_JSON)
    _command(rules, "remove", "take one away", authority.rule_remove).add_argument(
        "id", metavar="ID", help="its number"
    )


def add_data(commands: Any) -> None:
    """``migrate``, ``backup``, ``restore``, ``doctor``."""
    _command(commands, "migrate", "bring the database to this version of the program", data.migrate)
    parser = _command(commands, "backup", "copy the database to a file, also while the server runs", data.backup)
    parser.add_argument("file", type=Path, metavar="FILE", help="a new file")
    parser.add_argument(*JSON, **AS_JSON)
    parser = _command(commands, "restore", "put a backup in the place of the database", data.restore)
    parser.add_argument("file", type=Path, metavar="FILE", help="the backup")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep-revocations", action="store_true", help="what was revoked since stays revoked")
    choice.add_argument("--forget-revocations", action="store_true", help="it does not")
    parser.add_argument(*JSON, **AS_JSON)
    parser = _command(commands, "doctor", "what is wrong, and what to do about it", data.doctor)
    parser.add_argument(*JSON, **AS_JSON)
    parser.add_argument("--accept-clock", action="store_true", help="believe this clock, and not the times in the past")


AS_JSON: dict[str, Any] = {"action": "store_true", "help": "as JSON"}


def _command(commands: Any, name: str, what: str, run: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    parser.set_defaults(run=run)
    return parser


def _group(commands: Any, name: str, what: str) -> Any:
    parser = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    return parser.add_subparsers(required=True, metavar="COMMAND")
