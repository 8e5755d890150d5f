"""``pi-agent config``: what the settings are and where each comes from, and whether they are in order."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pi_agent.device.config import Settings

HELP = "show or check the settings"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print every setting as TOML")
    show.add_argument("--origin", action="store_true", help="say where each value comes from")
    show.add_argument("--json", action="store_true", help="print them as JSON, with origins")
    check = actions.add_parser("check", help="read the settings as the agent would, and say what is wrong")
    check.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.epilog = "example: pi-agent config show --origin"


def run(args: argparse.Namespace) -> int:
    """Raises ConfigError, which names file, line and setting."""
    from pi_agent.device import config, preparation

    settings = config.load(vars(args))
    if args.action == "check":
        for rule in settings.allow:
            preparation.resolve(rule)
        preparation.socket_gid(settings)
        warnings = preparation.warnings(settings)
        if args.json:
            print(json.dumps({"schema": "pi-agent.config-check/1", "warnings": warnings}))
        else:
            verdict = "the settings are in order" if settings.config.exists() else "not there; setup writes it"
            print("\n".join([f"{settings.config}: {verdict}", *(f"warning: {each}" for each in warnings)]))
        return 0
    show(settings, origin=args.origin, as_json=args.json)
    return 0


def show(settings: Settings, *, origin: bool, as_json: bool) -> None:
    from pi_agent.device import config

    values = {setting.name: getattr(settings, setting.attribute) for setting in config.SETTINGS}
    if as_json:
        members = {
            name: {"value": value if isinstance(value, int) else str(value), "origin": settings.origins[name]}
            for name, value in values.items()
        }
        print(json.dumps({"schema": "pi-agent.config/1", "settings": members}))
        return
    print(toml(values, settings.origins if origin else {}))
    for rule in settings.allow:
        print(f"\n[[local.allow]]{f'  # {rule.label}' if origin else ''}")
        given = {"user": rule.user, "group": rule.group, "audiences": rule.audiences, "scopes": rule.scopes}
        print("\n".join(f"{name} = {json.dumps(value)}" for name, value in given.items() if value))


def toml(values: Mapping[str, object], origins: Mapping[str, str]) -> str:
    """The settings as a TOML file, with their origins as comments."""
    from pi_agent.device.toml_file import literal

    tables: dict[str, list[str]] = {}
    for name, value in values.items():
        table, _, key = name.rpartition(".")
        text = f"{key} = {literal(value if isinstance(value, int) else str(value))}"
        origin = origins.get(name)
        tables.setdefault(table, []).append(f"{text:<44}# {origin}" if origin else text)
    return "\n\n".join("\n".join([f"[{table}]"] * bool(table) + rows) for table, rows in tables.items())
