"""Ansible inventory from a pi-agent fleet: the devices of a query, grouped by model, memory, tag and status."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleParserError  # type: ignore[import-not-found]  # it is there wherever this runs
from ansible.plugins.inventory import BaseInventoryPlugin, Constructable  # type: ignore[import-not-found]  # the same
from ansible.utils.unsafe_proxy import wrap_var  # type: ignore[import-not-found]  # the same

from pi_agent.catalogue import fold, size_text
from pi_agent.errors import PiAgentError
from pi_agent.fleet import client, hosts
from pi_agent.fleet.place import default_data
from pi_agent.fleet.settings import load

DOCUMENTATION = """
name: pi_agent
short_description: Raspberry Pi fleets as inventory
description:
  - The devices of a query become hosts, in groups by model, memory, tag and status.
  - What a device says is only ever a value; names of groups are made of letters, digits and underscores.
  - A device goes by its name, or by its id where the name is no host name, or also another device's, host's or group's.
  - What other sources of the inventory have is only known when they stand before this one.
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: marks a file as one for this plugin
    required: true
    choices: [pi_agent.fleet.pi_agent]
  query:
    description: which devices, in the query language of pi-fleet
    default: status:approved
  server:
    description: the address of the fleet; without it, the fleet on this machine is asked
    env: [{name: PI_FLEET_SERVER}]
  token:
    description: an operator token, for a fleet elsewhere; better in the environment than in a file
    env: [{name: PI_FLEET_TOKEN}]
  data:
    description: the data folder of a fleet on this machine
  suffix:
    description: added to the name of a device to make ansible_host
    default: ""
"""
COLUMNS = "id,name,model,memory,serial,revision,soc,maker,status,auth,late,key,agent,tag,simulated"


class InventoryModule(BaseInventoryPlugin, Constructable):  # type: ignore[misc]  # their types are not known here
    NAME = "pi_agent.fleet.pi_agent"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(("pi_agent.yml", "pi_agent.yaml"))

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            lines = b"".join(
                self._fleet().stream("/devices.jsonl", query=self.get_option("query"), columns=COLUMNS, sort="name")
            )
        except PiAgentError as error:
            raise AnsibleParserError(f"{error}" + (f" ({error.hint})" if error.hint else "")) from error
        devices = [json.loads(line) for line in lines.splitlines()]
        taken = {name.lower() for name in (*inventory.hosts, *inventory.groups)}
        leading = {name for name in hosts.leading(device["name"] for device in devices) if name.lower() not in taken}
        for device in devices:
            self._add(device, by_name=device["name"] in leading and device["name"] not in inventory.groups)
        # A group can come with a later device: Ansible would take the host for it, or it for the host.
        for device in devices:
            if device["name"] in leading and device["name"] in inventory.groups and device["name"] in inventory.hosts:
                inventory.remove_host(inventory.get_host(device["name"]))
                self._add(device, by_name=False)

    def _fleet(self) -> client.Fleet:
        server = self.get_option("server")
        if server:
            return client.connect_to(server, self.get_option("token") or "")
        environ = {
            name: value for name, value in os.environ.items() if name not in ("PI_FLEET_SERVER", "PI_FLEET_TOKEN")
        }
        data = Path(self.get_option("data") or default_data(environ)).absolute()
        return client.connect(data, lambda: load({"data": data}, environ))

    def _add(self, device: dict[str, Any], *, by_name: bool) -> None:
        host = device["name"] if by_name else device["id"]
        self.inventory.add_host(host)
        if by_name:
            self.inventory.set_variable(host, "ansible_host", device["name"] + self.get_option("suffix"))
        for name, value in device.items():
            self.inventory.set_variable(host, f"pi_{name}", wrap_var(value))  # what a device says is never a template
        for group in groups(device):
            self.inventory.add_group(group)
            self.inventory.add_host(host, group=group)
        variables = self.inventory.get_host(host).get_vars()
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), variables, host, strict=strict)


def groups(device: dict[str, Any]) -> list[str]:
    """The groups of a device, such as ``model_2b`` and ``tag_kiosk``."""
    pairs = [("status", device["status"]), *(("tag", tag) for tag in device["tag"])]
    pairs += [("model", fold("model", device["model"]).replace("+", "_plus"))] if device["model"] else []
    pairs += [("memory", size_text(device["memory"]))] if device["memory"] else []
    return [re.sub(r"[^a-z0-9_]", "_", f"{kind}_{value}".lower()) for kind, value in pairs]
