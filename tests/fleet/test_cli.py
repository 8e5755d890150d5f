"""``pi-fleet`` as an operator types it: with a server, and without one. Exit codes, words on stderr, data on stdout; D-07."""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from fleet.live import CLEAN, COMMAND, LiveFleet, run
from pi_agent.fleet import cli, output
from pi_agent.fleet.client import Fleet
from pi_agent.fleet.commands import COMMANDS, changes
from pi_agent.fleet.shown import fingerprint

DEVICE = {
    "id": "pi-0000000000000001", "name": "kitchen", "status": "pending", "status_reason": "", "flag": "", "model": "2B",
    "model_name": "Raspberry Pi 2 Model B", "memory_mib": 1024, "serial": "00000000c0ffee01", "revision": "a01041",
    "pcb_revision": "1.1", "soc": "BCM2836", "maker": "Sony UK", "simulated": False, "agent": "0.1.0", "key": "file", "keys": [],
    "late": None,
    "overvoltage": False, "warranty": False,
    "tags": [], "scope": "device", "created": "2026-11-20T00:00:00Z", "auth": None, "seen": None, "refused": None, "refused_reason": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A server with two devices: kitchen (2B) is approved, and a second one waits."""
    fleet = LiveFleet(tmp_path_factory.mktemp("cli") / "data")
    fleet.enroll()
    fleet.enroll(approved=False, board=None)
    yield fleet
    fleet.stop()


def test_a_list_begins_with_what_was_asked(live: LiveFleet) -> None:
    """Words on stderr, rows on stdout."""
    done = live.cli("devices", "model:2b", "memory:1gb")
    assert done.returncode == 0
    assert done.stderr.startswith("1 device: model is 2B, memory is 1 GiB\n")
    heading, row = done.stdout.splitlines()
    assert "STATUS" in heading and "kitchen" in row and "1 GB" in row


def test_whose_fleet_it_is_may_be_said_anywhere(live: LiveFleet) -> None:
    """``--data`` after the command, with or without an equals sign, is what it is before it."""
    for option in (["--data", str(live.data)], [f"--data={live.data}"]):
        done = run("devices", "model:2b", *option, "-o", "name")
        assert (done.returncode, len(done.stdout.splitlines())) == (0, 1), done.stderr
    assert cli.parse(["serve", "--data", "here", "--database", "there"]).data == Path("here")


def test_no_device_is_no_error(live: LiveFleet) -> None:
    """An empty answer says so on stderr, leaves stdout without rows, and ends with 0, as --help has it."""
    assert "0 done, also when a list is empty" in run("--help").stdout
    done = live.cli("devices", "model:5", "-o", "name")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("0 devices: model is 5")


def test_each_form_of_output(live: LiveFleet) -> None:
    """Names, JSON with its schema first, JSON lines, CSV with a heading."""
    names = live.cli("devices", "-o", "name").stdout.split()
    answer = json.loads(live.cli("devices", "--json").stdout)
    assert next(iter(answer)) == "schema" and answer["schema"] == "pi-fleet.devices/1"
    lines = [json.loads(line) for line in live.cli("devices", "-o", "jsonl").stdout.splitlines()]
    rows = list(csv.DictReader(io.StringIO(live.cli("devices", "-o", "csv").stdout)))
    for found in (answer["items"], lines, rows):
        assert sorted(device["id"] for device in found) == sorted(names)
    assert len(names) == 2
    assert len(live.cli("devices", "--limit", "1", "-o", "name").stdout.split()) == 1


def test_a_bad_query_comes_with_a_good_one(live: LiveFleet) -> None:
    """Exit 2, the mistake, and a query that would work."""
    done = live.cli("devices", "modle:2b")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and "model:2b" in done.stderr


def test_one_device(live: LiveFleet) -> None:
    """By its id, with its history; a device that is not there is exit 3, and what is no id is exit 2."""
    name = live.cli("devices", "model:2b", "-o", "name").stdout.strip()
    done = live.cli("device", name)
    assert (done.returncode, "Raspberry Pi 2 Model B" in done.stdout) == (0, True)
    assert live.cli("device", "pi-0000000000000000").returncode == 3
    assert live.cli("device", "../../etc").returncode == 2


def test_a_change_wants_to_be_confirmed(live: LiveFleet) -> None:
    """Without a terminal nothing changes but with --yes, and then at most --max devices; nothing matched is exit 3."""
    done = live.cli("approve", "status:pending")
    assert done.returncode == 2 and "--yes --max 1" in done.stderr
    assert live.cli("quarantine", "id:*", "--yes", "--reason", "test").returncode == 6
    assert live.cli("approve", "model:cm4", "--yes").returncode == 3
    assert live.cli("devices", "status:approved", "-o", "name").stdout.count("\n") == 1


def test_a_device_is_called_something_else(live: LiveFleet) -> None:
    """By its id or a query; 3 when there is none, and nothing is printed but what changed."""
    name = live.cli("devices", "model:2b", "-o", "name").stdout.strip()
    done = live.cli("rename", "model:2b", "hall way", "--reason", "moved")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{name} is called hall way\n")
    assert live.cli("devices", 'name:"hall way"', "-o", "name").stdout.strip() == name
    assert "named so already" in live.cli("rename", name, "hall way").stderr
    assert live.cli("rename", "model:5", "x").returncode == 3
    assert live.cli("rename", "id:*", "x").returncode == 6


def test_a_reason_without_quotes_is_no_query(live: LiveFleet) -> None:
    """It would be about other devices than were meant."""
    done = live.cli("revoke", "model:2b", "--reason", "lost", "or", "stolen", "--yes", "--max", "9")
    assert (done.returncode, done.stdout) == (2, "") and "unrecognized arguments: or stolen" in done.stderr


def test_what_stays_as_it_is_is_told(live: LiveFleet) -> None:
    """With why, and 0 when all is as wished already; 6 when it is not and cannot be."""
    name = live.cli("devices", "model:2b", "-o", "name").stdout.strip()
    change = ("--yes", "--max", "9", "--reason", "test")
    done = live.cli("approve", name, *change)
    assert (done.returncode, done.stdout) == (0, "") and "nothing to do: 1 is approved already\n" in done.stderr
    assert live.cli("quarantine", name, *change).returncode == 0
    done = live.cli("approve", name, *change)
    assert (done.returncode, done.stdout) == (6, "") and "1 is quarantined until a release\n" in done.stderr
    done = live.cli("release", "id:*", *change)
    assert done.returncode == 0 and "as they are will stay: 1 is pending\n" in done.stderr


@pytest.mark.parametrize(("typed", "code"), [("2\n", 6), ("y\n", 6), ("\n", 6), ("1\n", 0)])
def test_on_a_terminal_the_count_is_typed_back(live: LiveFleet, typed: str, code: int) -> None:
    """The number of devices, and nothing else, is a yes. What was done is one id a line."""
    command = [*COMMAND, "--data", str(live.data), "quarantine", "model:2b", "--reason", "test"]
    keyboard, terminal = pty.openpty()
    process = subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLEAN
    )
    os.write(keyboard, typed.encode())
    stdout, stderr = process.communicate(timeout=30)
    os.close(keyboard)
    os.close(terminal)
    assert process.returncode == code, stderr
    assert "1 device: model is 2B" in stderr
    assert bool(stdout) == (code == 0)
    if code == 0:
        assert live.cli("release", "model:2b", "--yes", "--reason", "test").returncode == 0


def test_on_a_terminal_the_reason_can_be_typed(live: LiveFleet) -> None:
    """After the count, where the line gave none; it is the one in the audit log. An empty one changes nothing."""
    for reason, code in (("", 2), ("it smells", 0)):
        keyboard, terminal = pty.openpty()
        command = [*COMMAND, "--data", str(live.data), "quarantine", "model:2b"]
        process = subprocess.Popen(
            command, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, text=True, env=CLEAN
        )
        os.write(keyboard, f"1\n{reason}\n".encode())
        _, stderr = process.communicate(timeout=30)
        os.close(keyboard)
        os.close(terminal)
        assert process.returncode == code, stderr
    assert live.cli("release", "model:2b", "--yes", "--reason", "test").returncode == 0
    assert "it smells" in live.cli("audit", "action:device.quarantine").stdout


class Forgetful:
    """A fleet that has lost a device since it was listed."""

    shown = (("pi-1", "approved"), ("pi-2", "approved"))

    def stream(self, path: str, **parameters: str) -> Iterator[bytes]:
        yield "".join(json.dumps({"id": one, "status": status}) + "\n" for one, status in self.shown).encode()

    def post(self, path: str, members: dict[str, Any]) -> dict[str, Any]:
        return {"count": len(members["ids"]) - 1, "unknown": ["pi-2"]}


def test_devices_that_have_gone_meanwhile_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """They are on stderr, and not among those that were changed."""
    arguments = argparse.Namespace(action="tag", reason="x", json=False)
    request, preview = {"query": "id:*"}, {"status": "tagged", "selection": f"1-{fingerprint(Forgetful.shown)}"}
    assert changes._in_steps(arguments, cast(Fleet, Forgetful()), "/devices/tag", request, preview) == 0
    out, err = capsys.readouterr()
    assert (out, "1 device not there any more: pi-2\n" in err) == ("pi-1\n", True)


def test_a_token_and_a_link_are_data(live: LiveFleet) -> None:
    """The secret alone on stdout; what it is for on stderr."""
    token = live.cli("enrollment-token", "--uses", "2", "--ttl", "1h")
    assert token.returncode == 0 and len(token.stdout.split()) == 1
    assert "2 devices" in token.stderr and token.stdout.strip() not in token.stderr
    link = live.cli("sign-in-link", "--operator", "alice", "--role", "approver")
    assert link.stdout.startswith(f"{live.issuer}/sign-in/")
    assert live.cli("sign-in-link", "--operator", "alice").returncode == 0
    for words, said in ((("tim",), "there is no operator 'tim'"), (("alice", "--role", "admin"), "alice is approver")):
        refused = live.cli("sign-in-link", "--operator", *words)
        assert refused.returncode == 2 and f"error: {said}\nhint: pi-fleet " in refused.stderr
    assert "tim" not in live.cli("operator", "list").stdout
    assert live.cli("enrollment-token", "--ttl", "soon").returncode == 2
    refused = live.cli("enrollment-token", "--serial", "xyz")
    assert (refused.returncode, "'xyz' is no serial" in refused.stderr) == (2, True)


def test_without_a_fleet_the_next_step_is_named(tmp_path: Path) -> None:
    """Reading what is not there is exit 5, and creates nothing."""
    done = run("--data", str(tmp_path / "none"), "devices")
    assert (done.returncode, done.stdout) == (5, "")
    assert "hint: " in done.stderr and "serve" in done.stderr
    assert not (tmp_path / "none").exists()


def test_without_a_server_a_script_can_prepare_one(tmp_path: Path) -> None:
    """A token made before the first start enrolls a device after it."""
    data = tmp_path / "data"
    made = run("--data", str(data), "enrollment-token")
    token = made.stdout.strip()
    assert made.stderr.startswith(f"a new fleet begins in {data}\n")
    link = run("--data", str(data), "sign-in-link")
    assert "no server runs here" in link.stderr and "a new fleet" not in link.stderr
    assert run("--data", str(data), "devices").stderr.startswith("0 devices")
    assert (data / "fleet.sqlite3").stat().st_mode & 0o777 == 0o600
    assert token


@pytest.mark.parametrize(
    ("options", "environment", "code", "words"),
    [
        (["devices"], {"PI_FLEET_ISUER": "https://x"}, 2, "did you mean issuer?"),
        (["serve", "--issuer", "http://fleet.example"], {}, 2, "issuer must be https://HOST"),
        (["serve", "--issuer", "https://u@fleet.example"], {}, 2, "issuer must be https://HOST"),
        (["serve", "--token-lifetime", "5"], {}, 2, "300 to 86400"),
        (["serve", "--bind", "nonsense"], {}, 2, "HOST:PORT"),
        (["aprove"], {}, 2, "there is no command 'aprove'\nhint: did you mean approve?"),
        (["operator", "sett"], {}, 2, "did you mean set? pi-fleet operator --help"),
        (["devices", "--cuont-by", "model"], {}, 2, "did you mean --count-by? pi-fleet devices --help"),
    ],
)
def test_a_wrong_setting_is_named(
    tmp_path: Path, options: list[str], environment: dict[str, str], code: int, words: str
) -> None:
    """Where it stands, which it is, and what it should be; no traceback."""
    done = run("--data", str(tmp_path / "data"), *options, env=environment)
    assert done.returncode == code
    assert words in done.stderr and "Traceback" not in done.stderr


def test_help_is_a_command_too(tmp_path: Path) -> None:
    """``help operator set`` is ``operator set --help``, and ``help`` alone is the page of all."""
    assert run("help", "operator", "set").stdout == run("operator", "set", "--help").stdout
    assert run("help").stdout == run("--help").stdout != ""


def test_a_hint_is_about_the_fleet_of_the_line(tmp_path: Path) -> None:
    """What the hint says to type reaches the same fleet as the line that failed, also by a folder with a space."""
    there = tmp_path / "the fleet"
    assert f"pi-fleet --data '{there}' serve" in run("--data", str(there), "doctor").stderr
    run("--data", str(there), "enrollment-token")
    (there / "fleet.sqlite3-shm").unlink(missing_ok=True)
    done = run("--data", str(there), "devices", "@nosuch")
    assert f"pi-fleet --data '{there}' view list" in done.stderr


def test_a_folder_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    """With the command that closes it."""
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    data.chmod(0o755)
    done = run("--data", str(data), "serve", "--bind", "127.0.0.1:0")
    assert done.returncode == 2
    assert f"hint: chmod 700 {data}" in done.stderr


def test_help_ends_with_an_example() -> None:
    """And lists every command."""
    text = run("--help").stdout
    for name in (
        "serve",
        "devices",
        "device",
        "approve",
        "reject",
        "quarantine",
        "release",
        "revoke",
        "enrollment-token",
        "sign-in-link",
    ):
        assert name in text
    assert "pi-fleet devices model:2b memory:1gb auth:1d" in text


def test_a_command_to_a_server_loads_little(live: LiveFleet) -> None:
    """A list needs the standard library only, and of that neither TLS nor the parsers of mail and TOML, nor the settings."""
    dear = [
        *("django", "cryptography", "ssl", "email", "http", "tomllib", "logging", "tempfile", "sqlite3"),
        *("dataclasses", "inspect", "typing", "shutil", "pi_agent.catalogue", "pi_agent.fleet.settings"),
    ]
    code = f"import sys; from pi_agent.fleet.cli import main; main(); print([n for n in {dear} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code, "--data", str(live.data), "devices"],
        capture_output=True,
        text=True,
        check=True,
        env=CLEAN,
    )
    assert done.stdout.endswith("[]\n")


def test_each_file_of_commands_has_those_that_are_looked_for_in_it() -> None:
    """A command that is in another file than the table says would not be found."""
    for module, names in COMMANDS.items():
        parsers = argparse.ArgumentParser().add_subparsers()
        importlib.import_module(f"pi_agent.fleet.commands.{module}").add_commands(parsers)
        assert set(parsers.choices) == names


def test_a_value_may_be_called_like_a_command(live: LiveFleet) -> None:
    """``pi-fleet devices audit`` asks for devices with the word audit, whatever else is a command."""
    assert run("--data", str(live.data), "devices", "audit").stderr.startswith("0 devices")
    assert cli.parse(["--data", "tag", "audit"]).run.__name__ == "audit"
    assert cli.parse(["--data", "tag", "devices", "-o", "csv"]).output == "csv"


@pytest.mark.parametrize(
    "words", [("backup", "copy.db"), ("restore", "copy.db"), ("simulate", "1"), ("doctor",), ("migrate",)]
)
def test_what_only_works_on_the_server_itself_says_so(live: LiveFleet, tmp_path: Path, words: tuple[str, ...]) -> None:
    """A fleet elsewhere was named: the one in the folder here is not touched in its place."""
    told = run("--server", "http://127.0.0.1:9", "--data", str(live.data), *words)
    assert (told.returncode, told.stdout) == (2, "")
    assert "works on the server's own machine, not at http://127.0.0.1:9" in told.stderr
    told = run(*words, env=CLEAN | {"PI_FLEET_SERVER": "http://127.0.0.1:9"})
    assert told.returncode == 2 and "--data" in told.stderr


def test_a_reader_that_leaves_is_no_traceback(live: LiveFleet) -> None:
    """``pi-fleet devices | head -0``."""
    process = subprocess.Popen(
        [*COMMAND, "--data", str(live.data), "devices"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    select.select([process.stderr], [], [], 10)
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)


HOSTILE = ("\x1b]0;owned\x07", "\x1b[2J", "a\rb\nc", "abc\u202edef", "\u2066x", "\x9b31m")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("form", ["table", "wide"])
def test_d07_no_device_reaches_the_terminal(text: str, form: str) -> None:
    """Escapes, line breaks and writing directions are shown as ?, in every column."""
    device = DEVICE | dict.fromkeys(("name", "model", "serial", "agent", "maker"), text) | {"tags": [text]}
    printed = output.render(form, {"items": [device]}, 0)
    assert all(line.isprintable() for line in printed.splitlines()) and text not in printed
    assert len(printed.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "columns"), [("kitchen", 7), ("küche", 5), ("日本", 4), ("e\u0301a", 2), ("한글a", 5), ("🙂", 2)]
)
def test_columns_are_as_wide_as_they_are_shown(text: str, columns: int) -> None:
    """A wide character takes two places and a mark none, so the columns beside them stand in one line."""
    table = output.table([DEVICE | {"name": text}, DEVICE | {"name": "x" * 12}], 0, ("name", "status"))
    _, row, _ = table.splitlines()
    assert row == text + " " * (14 - columns) + "pending"


@pytest.mark.parametrize("text", ["=cmd()", "+1", "-1", "@sum", "\t=1", "\r=1"])
def test_d07_no_cell_is_a_formula(text: str) -> None:
    """A spreadsheet takes it for text."""
    (cell,) = next(csv.reader([output.csv_text([text])]))
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_fleet_that_is_not_there_is_how_to_begin(tmp_path: Path) -> None:
    """Both ways to one, as they can be typed here: without --data where that is the folder that is looked in anyway."""
    absent = run("devices", env={"PI_FLEET_DATA": str(tmp_path / "none")})
    assert absent.returncode == 5
    assert "hint: pi-fleet serve begins one, pi-fleet simulate 200 makes one" in absent.stderr
    assert f"pi-fleet --data {tmp_path / 'none'} serve" in run("--data", str(tmp_path / "none"), "devices").stderr


def test_a_mistake_is_corrected_once(live: LiveFleet) -> None:
    """The better query is named, and not twice."""
    assert live.cli("devices", "modle:2b").stderr.count("model:2b") == 1
    assert live.cli("devices", "auth:>30d").stderr.count("auth:older:30d") == 1
