"""The units under systemd's own eyes: they verify in silence, they are as closed as promised, and say what is open."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from configparser import ConfigParser
from pathlib import Path

import pytest

from pi_agent.errors import ConfigError, ConflictError, TransportError

SYSTEMD = Path(__file__).resolve().parents[2] / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.iterdir() if path.suffix in (".service", ".socket", ".target"))
MOST_EXPOSED = {"pi-agent.service": 1.5, "pi-agent-wait-online.service": 1.5, "pi-fleet.service": 2.0}
ROOTS = {"pi-agent-first-boot.service": 2.5}  # run once, as root, only where a card asks for it
BACK_OFF_SINCE = 254  # systemd's NEWS: RestartSteps=, RestartMaxDelaySec=

analyze = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(analyze is None, reason="systemd-analyze is not installed")


def unit(name: str) -> ConfigParser:
    """A unit's settings, of those that stand several times the last."""
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's words have capitals
    parser.read(SYSTEMD / name)
    return parser


def systemd_version() -> int:
    shown = subprocess.run([str(analyze), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"systemd (\d+)", shown)
    assert found
    return int(found[1])


def verify(folder: Path) -> tuple[int, str]:
    """What ``systemd-analyze verify`` says about the project's units in ``folder``; it exits 0 for a word it does not know."""
    names = [str(folder / name) for name in UNITS]
    done = subprocess.run([str(analyze), "verify", "--man=no", *names], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The units with commands that exist on every machine."""
    assert set(MOST_EXPOSED | ROOTS) == {name for name in UNITS if name.endswith(".service")}
    for name in UNITS:
        text = (SYSTEMD / name).read_text()
        (tmp_path / name).write_text(re.sub(r"(?m)^(Exec\w+=)\S+", r"\1/bin/true", text))
    return tmp_path


def test_the_fleet_server_can_be_reloaded() -> None:
    """As the documentation says of a renewed certificate: ``systemctl reload pi-fleet`` sends SIGHUP."""
    assert unit("pi-fleet.service")["Service"]["ExecReload"] == '/bin/sh -c "kill -HUP ${MAINPID}"'


def test_a_reload_before_the_program_runs_does_not_end_the_service() -> None:
    """SIGHUP is a clean end to systemd, after which Restart=on-failure starts nothing again."""
    assert unit("pi-fleet.service")["Service"]["RestartForceExitStatus"] == "SIGHUP"


def test_the_fleet_server_is_started_again_unless_a_setting_is_wrong() -> None:
    """An outage of the database, a port in use and another server in the folder pass; their exit codes are tried again."""
    prevented = unit("pi-fleet.service")["Service"]["RestartPreventExitStatus"].split()
    assert prevented == [str(ConfigError.exit_code)]
    assert {TransportError.exit_code, ConflictError.exit_code}.isdisjoint(map(int, prevented))


@needs_systemd
def test_units_verify(folder: Path) -> None:
    """Every unit is accepted without a word."""
    assert verify(folder) == (0, "")


@needs_systemd
def test_verify_would_complain(folder: Path) -> None:
    """A word that systemd does not know would be noticed."""
    text = (folder / "pi-agent.service").read_text()
    (folder / "pi-agent.service").write_text(text.replace("[Service]", "[Service]\nFooBar=yes", 1))
    assert "FooBar" in verify(folder)[1]


@needs_systemd
def test_back_off_verifies(folder: Path) -> None:
    """The drop-in with the growing pause is accepted by a systemd that knows it."""
    if systemd_version() < BACK_OFF_SINCE:
        pytest.skip(f"systemd here is {systemd_version()}; the drop-in is for {BACK_OFF_SINCE} and newer")
    (folder / "pi-agent.service.d").mkdir()
    shutil.copy(SYSTEMD / "pi-agent.back-off.conf", folder / "pi-agent.service.d")
    assert verify(folder) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", MOST_EXPOSED | ROOTS)
def test_exposure(name: str) -> None:
    """The unit is at most as exposed as promised, and every kind of exposure that is left is explained in it (E-10)."""
    limit = (MOST_EXPOSED | ROOTS)[name]
    command = [str(analyze), "security", "--offline=yes", "--no-pager", f"--threshold={limit * 10:.0f}"]
    done = subprocess.run([*command, "--json=short", str(SYSTEMD / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left = {row["json_field"]: float(row["exposure"]) for row in json.loads(done.stdout) if row["exposure"]}
    explained = re.findall(r"(?m)^#   (0\.\d)  ", (SYSTEMD / name).read_text())
    assert sorted(explained) == sorted(f"{exposure:.1f}" for exposure in left.values()), left


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_limits(name: str) -> None:
    """Each service has a user of its own, no core dumps, and limits for memory and tasks (E-10)."""
    service = unit(name)["Service"]
    assert service["User"] == service["Group"] == name.partition(".")[0].removesuffix("-wait-online")
    assert service["UMask"] == "0077"
    assert service["LimitCORE"] == "0"
    assert {"MemoryMax", "TasksMax"} <= set(service)
    assert service.get("StateDirectoryMode", "0700") == "0700"


def test_agent_sees_its_board_and_callers() -> None:
    """Nothing hides /proc/cpuinfo or the callers' user ids from the agent."""
    service = unit("pi-agent.service")["Service"]
    assert "ProcSubset" not in service
    assert "PrivateUsers" not in service


def test_agent_waits_for_nothing() -> None:
    """Without settings the agent is not started; without network or time it is."""
    agent = unit("pi-agent.service")["Unit"]
    assert agent["ConditionPathExists"] == "/etc/pi-agent/config.toml"
    assert not {"Wants", "Requires", "BindsTo"} & set(agent)


def test_settings_errors_are_final() -> None:
    """RA-23: exit code 2, which is a wrong setting or a key that cannot be used, does not start the agent again."""
    service = unit("pi-agent.service")["Service"]
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
