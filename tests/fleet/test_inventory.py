"""The Ansible inventory, by Ansible itself: which hosts and groups there are, and that a device's words stay words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.live import LiveFleet
from fleet.support import BOARD, Pi

SOURCE = Path(__file__).resolve().parents[2] / "src"
PLAYBOOK = """
- hosts: all
  gather_facts: false
  connection: local
  tasks:
    - debug: msg="{{ pi_agent }}"
    - debug: var=hostvars[inventory_hostname]
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    fleet = LiveFleet(tmp_path_factory.mktemp("inventory") / "data")
    yield fleet
    fleet.stop()


def ansible(
    live: LiveFleet, folder: Path, program: str, *words: str, more: str = ""
) -> subprocess.CompletedProcess[str]:
    """A program of Ansible with an inventory file of our plugin, which lies in ``folder`` with whatever it writes."""
    inventory = folder / "pi_agent.yml"
    inventory.write_text(f"plugin: pi_agent.fleet.pi_agent\ndata: {live.data}\nquery: id:*\nsuffix: .lan\n{more}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PI_FLEET_", "ANSIBLE_"))}
    environment |= {
        "HOME": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(SOURCE),
        "ANSIBLE_COLLECTIONS_PATH": str(SOURCE),
        "ANSIBLE_INVENTORY_ENABLED": "pi_agent.fleet.pi_agent",
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
    }
    command = [str(Path(sys.executable).with_name(program)), "-i", str(inventory), *words]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def enroll(live: LiveFleet, name: str, agent: dict[str, Any] | None = None, **board: Any) -> str:
    pi = Pi(issuer=live.issuer, board=BOARD | board)
    kind = {"content-type": "application/json"}
    nonce = live.request("POST", "/oauth/register", json.dumps(pi.registration(None)).encode(), kind).json["nonce"]
    proof = pi.proof(nonce, **({"agent": agent} if agent else {}))
    body = json.dumps(pi.registration(nonce, client_name=name, proof=proof)).encode()
    return str(live.request("POST", "/oauth/register", body, kind).json["client_id"])


def plain(value: Any) -> Any:
    """A value as ``--list`` writes it: what is no template is marked so."""
    return value.get("__ansible_unsafe", value) if isinstance(value, dict) else value


def test_hosts_and_groups(live: LiveFleet, tmp_path: Path) -> None:
    """A host for each device, by its name when that is its own, in groups of what is known of it."""
    enroll(live, "attic", serial="00000000000000a1")
    twins = [enroll(live, "kitchen", serial=f"00000000000000b{number}") for number in range(2)]
    done = ansible(live, tmp_path, "ansible-inventory", "--list")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    facts = {name: plain(value) for name, value in found["_meta"]["hostvars"]["attic"].items()}
    assert (facts["ansible_host"], facts["pi_serial"]) == ("attic.lan", "00000000000000a1")
    assert {"attic", *twins} <= set(found["model_2b"]["hosts"]) and "kitchen" not in found["model_2b"]["hosts"]
    assert {"memory_1gb", "status_pending"} <= set(found)


def test_no_name_is_taken_for_another_device(live: LiveFleet, tmp_path: Path) -> None:
    """A device that is called like the id of another has a host of its own, by its own id."""
    first = enroll(live, "the name of no host", serial="00000000000000d1")
    second = enroll(live, first, serial="00000000000000d2")
    done = ansible(live, tmp_path, "ansible-inventory", "--list")
    assert done.returncode == 0, done.stderr
    hosts = json.loads(done.stdout)["_meta"]["hostvars"]
    serials = [plain(hosts[name]["pi_serial"]) for name in (first, second)]
    assert serials == ["00000000000000d1", "00000000000000d2"]
    assert "ansible_host" not in hosts[first] | hosts[second]


def test_no_name_is_taken_for_a_group_or_for_this_machine(live: LiveFleet, tmp_path: Path) -> None:
    """``hosts: all`` means all, ``hosts: localhost`` the operator's own machine, and a group is its members."""
    names = ("all", "ungrouped", "All", "localhost", "127.0.0.1", "kiosks", "attics", "zz", "cellar", "Cellar")
    made = [enroll(live, name, serial=f"00000000000000e{number}") for number, name in enumerate(names)]
    more = "groups: {kiosks: pi_id is defined, attics: pi_name == 'zz'}\n"
    done = ansible(live, tmp_path, "ansible-inventory", "--list", more=more)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    hosts = found["_meta"]["hostvars"]
    by_id = {one for name, one in zip(names, made, strict=True) if name != "zz"}
    assert by_id < set(hosts) and set(names) & set(hosts) == {"zz"}
    assert not any("ansible_host" in hosts[one] for one in by_id)
    assert by_id < set(found["kiosks"]["hosts"]) and found["attics"]["hosts"] == ["zz"]
    assert "same name" not in done.stderr


def test_d07_what_a_device_says_is_no_template(live: LiveFleet, tmp_path: Path) -> None:
    """A version that names a command is printed as it is, and nothing runs on the operator's machine."""
    words = "{{lookup('pipe','touch ran')}}"
    enroll(live, words, {"version": words, "key": "file"}, serial="00000000000000c1")
    (tmp_path / "play.yml").write_text(PLAYBOOK)
    done = ansible(live, tmp_path, "ansible-playbook", str(tmp_path / "play.yml"))
    assert "lookup(" in done.stdout, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_fleet_that_is_not_there_is_told_in_its_own_words(live: LiveFleet, tmp_path: Path) -> None:
    """With the reason, and no inventory."""
    (tmp_path / "none").mkdir()
    other = LiveFleet.__new__(LiveFleet)
    other.data = tmp_path / "none"
    done = ansible(other, tmp_path, "ansible-inventory", "--list")
    assert "there is no fleet in" in " ".join(done.stderr.split())
