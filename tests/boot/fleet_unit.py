"""The fleet server under its own unit: does it run with the sandbox that the unit promises?

The packages come from the project's environment, so this needs a Debian whose Python is of the same minor version.
"""

from __future__ import annotations

import json
import shutil
import sys
import sysconfig
import time
from collections.abc import Generator
from pathlib import Path

from lab import Lab, Machine
from life import ROOT, Step, contains, same

COMMAND = """\
#!/usr/bin/python3 -I
import sys
sys.path[:0] = ["/opt/source", "/opt/packages"]
from pi_agent.fleet.cli import main
sys.exit(main())
"""
FLEET = "/opt/pi-fleet/bin/pi-fleet"
PATIENCE = 30.0


def fits(tree: Path) -> bool:
    return (tree / f"usr/bin/python3.{sys.version_info.minor}").exists()


def steps(lab: Lab) -> Generator[Step, None, None]:
    for name in ("pi-fleet.service", "pi-fleet.sysusers"):
        shutil.copy(ROOT / "systemd" / name, lab.root / "opt")
    for folder in ("opt/pi-fleet/bin", "opt/source", "opt/packages"):
        (lab.root / folder).mkdir(parents=True)
    (lab.root / FLEET[1:]).write_text(COMMAND)
    (lab.root / FLEET[1:]).chmod(0o755)
    binds = [f"{ROOT}/src:/opt/source", f"{sysconfig.get_path('purelib')}:/opt/packages"]
    with lab.boot(binds=binds) as machine:
        yield "fleet server: starts in its sandbox, and answers", lambda: _start(machine)
        yield "fleet server: root on this machine is its operator", lambda: _operate(machine)
        yield "fleet server: takes a reload, and goes on", lambda: _reload(machine)
        yield "fleet server: ends when it is told to", lambda: _stop(machine)


def _start(machine: Machine) -> None:
    machine.run("install", "-D", "-m", "644", "/opt/pi-fleet.sysusers", "/etc/sysusers.d/pi-fleet.conf")
    machine.run("systemd-sysusers")
    machine.run("install", "-m", "644", "/opt/pi-fleet.service", "/etc/systemd/system/")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", "--now", "pi-fleet")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = machine.run(
            "curl", "-s", "http://127.0.0.1:8080/.well-known/oauth-authorization-server", codes=range(256)
        )
        if answer:
            same(json.loads(answer)["issuer"], "http://127.0.0.1:8080")
            return
        time.sleep(0.3)
    raise AssertionError(machine.run("journalctl", "-u", "pi-fleet", "-o", "cat", "-n", "20"))


def _operate(machine: Machine) -> None:
    shown = machine.run(FLEET, "--data", "/var/lib/pi-fleet", "devices", "-o", "json")
    same(json.loads(shown)["items"], [])
    same(machine.run("find", "/var/lib/pi-fleet", "-not", "-user", "pi-fleet"), "")


def _reload(machine: Machine) -> None:
    before = machine.show("pi-fleet", "MainPID")
    machine.run("systemctl", "reload", "pi-fleet")
    _operate(machine)
    same(machine.show("pi-fleet", "MainPID"), before)


def _stop(machine: Machine) -> None:
    machine.run("systemctl", "stop", "pi-fleet")
    same(machine.show("pi-fleet", "Result"), "success")
    contains(machine.run("journalctl", "-u", "pi-fleet", "-o", "cat"), "Stopped")
