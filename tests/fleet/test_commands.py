"""The commands for questions, changes, people and the log, as they are typed, against a simulated fleet."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.live import CLEAN, COMMAND, LiveFleet, run
from pi_agent.fleet import backup, cli, output, yaml
from pi_agent.fleet.progress import Progress


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """A server over 1,500 simulated devices."""
    data = tmp_path_factory.mktemp("commands") / "data"
    assert run("--data", str(data), "simulate", "1500").returncode == 0
    fleet = LiveFleet(data)
    yield fleet
    fleet.stop()


def test_a_simulated_fleet_is_plausible_and_says_so(live: LiveFleet) -> None:
    """Every device is marked, some of each status, some late, some with a serial twice; and the audit log is whole."""
    assert live.cli("devices", "simulated:false", "-o", "name").stdout == ""
    statuses = json.loads(live.cli("devices", "--count-by", "status", "-o", "json").stdout)["items"]
    assert {item["value"] for item in statuses} == {"pending", "approved", "rejected", "quarantined", "revoked"}
    assert sum(item["count"] for item in statuses) == 1500
    assert live.cli("devices", "late:true", "-o", "name").stdout
    serials = [line["serial"] for line in csv.DictReader(io.StringIO(live.cli("devices", "-o", "csv").stdout))]
    assert len(set(serials)) < len(serials) == 1500
    assert live.cli("audit", "verify").stdout.startswith("whole: ")


def test_the_same_seed_gives_the_same_fleet(tmp_path: Path) -> None:
    """And another seed another one."""
    names = []
    for place, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        run("--data", str(tmp_path / place), "simulate", "20", "--seed", seed)
        names.append(run("--data", str(tmp_path / place), "devices", "-o", "name").stdout)
    assert names[0] == names[1] != names[2]


def test_a_minus_is_a_term_and_not_an_option(live: LiveFleet) -> None:
    """``-tag:lab``, ``-(...)`` and ``--sort -auth`` mean what the guide says."""
    done = live.cli(
        "devices", "model:2b", "-tag:lab", "-(status:revoked auth:never)", "--sort", "-auth", "--limit", "2"
    )
    assert done.returncode == 0, done.stderr
    assert "tag is not lab" in done.stderr


@pytest.mark.parametrize("kid", ["-dP2ZlQS9L8n4Zsje8YZbT30R2VceguPSqQda0M8-Oc", "--" + "b" * 41, "b" * 43])
def test_a_key_may_begin_with_a_minus(kid: str) -> None:
    """A thumbprint is any base64url: it is the key that a command is about, before options and after them."""
    assert cli.parse(["keys", "retire", kid, "--yes"]).kid == cli.parse(["keys", "retire", "--yes", kid]).kid == kid
    with pytest.raises(SystemExit):
        cli.parse(["keys", "retire", "b" * 43, f"--resaon={'x' * 34}"])


def test_the_first_hundred_and_all(live: LiveFleet) -> None:
    """A table says that it is not all; streams, --all and --limit are what they say."""
    done = live.cli("devices")
    assert (len(done.stdout.splitlines()), "100 of them are shown" in done.stderr) == (101, True)
    assert len(live.cli("devices", "--all").stdout.splitlines()) == 1501
    assert len(live.cli("devices", "-o", "jsonl").stdout.splitlines()) == 1500
    assert len(live.cli("devices", "-o", "csv", "--limit", "7").stdout.splitlines()) == 8
    assert len(live.cli("devices", "-o", "name", "--limit", "7").stdout.splitlines()) == 7


def test_columns_by_the_words_of_the_language(live: LiveFleet) -> None:
    """In a table and in CSV; a wrong one is told the nearest."""
    assert live.cli("devices", "--columns", "name,tag,late", "--limit", "1").stdout.split()[:3] == [
        "NAME",
        "TAGS",
        "LATE",
    ]
    lines = live.cli("devices", "-o", "csv", "--columns", "id,memory", "--limit", "1").stdout.splitlines()
    assert lines[0] == "id,memory"
    wrong = live.cli("devices", "--columns", "name,modle")
    assert (wrong.returncode, "did you mean model?" in wrong.stderr) == (2, True)
    assert live.cli("devices", "--count-by", "serial").returncode == 2


def test_yaml_is_what_json_is(live: LiveFleet) -> None:
    """Read back by hand: each scalar of the JSON stands in the YAML, quoted where it could be something else."""
    text = live.cli("devices", "--limit", "2", "-o", "yaml").stdout
    assert text.startswith("schema: pi-fleet.devices/1\n")
    assert yaml.dump({"a": "yes", "b": "0010", "c": None, "d": [1, {"e": "x: y"}], "f": [], "g": "\x1b"}) == (
        'a: "yes"\nb: "0010"\nc: null\nd:\n  - 1\n  - e: "x: y"\nf: []\ng: "\\u001b"\n'
    )


@pytest.mark.parametrize(
    "text", ["🙂", "küche", "日本 🙂", '\\ud83d "\\', "a\x9b31m\x7f\u202e\u2028", "n", "1.0", "- a"]
)
def test_yaml_is_read_back_as_it_was(text: str) -> None:
    """By what others read it with; and nothing in it is more than ASCII, whatever the terminal is."""
    reader = pytest.importorskip("yaml", reason="PyYAML is not installed")
    value = {"name": text, "tags": [text, {text: None}]}
    written = yaml.dump(value)
    assert reader.safe_load(written) == value
    assert written.isascii() and "".join(written.split("\n")).isprintable()


def test_words_of_a_query_may_stand_after_an_option(live: LiveFleet) -> None:
    """Wherever they stand, they are one query; not so where something is changed, and what is no option is still refused."""
    first, *rest = live.cli(
        "devices", "model:2b", "-o", "csv", "memory:1gb", "--columns", "model,memory", "-tag:lab"
    ).stdout.split()
    assert first == "model,memory" and set(rest) == {"2B,1024"}
    changed = ["tag", "model:2b", "--reason", "x", "memory:1gb", "+kiosk"]
    for wrong in (changed, ["devices", "a", "--limit", "1", "b", "--lmit"], ["device", "a", "--json", "b"]):
        with pytest.raises(SystemExit):
            cli.parse(wrong)


def test_counts_of_what_is_not_known(live: LiveFleet) -> None:
    """An empty cell in CSV, where a dash would be a formula to be guarded against."""
    answer = {
        "by": "agent",
        "items": [{"value": None, "count": 2}, {"value": True, "count": 1}, {"value": "-1", "count": 1}],
    }
    assert output.counts("csv", answer) == "agent,count\n,2\ntrue,1\n'-1,1\n"
    assert output.counts("name", answer) == "-\ntrue\n-1\n"


def test_a_view_is_asked_by_its_name(live: LiveFleet) -> None:
    """With its columns, and with more terms beside it; one that is not there is exit 3."""
    assert live.cli("view", "save", "two-b", "model:2b", "OR", "model:3b", "--columns", "name,model").returncode == 0
    assert live.cli("devices", "@two-b", "--limit", "1").stdout.split()[:2] == ["NAME", "MODEL"]
    narrowed = live.cli("devices", "@two-b memory:1gb status:revoked", "-o", "csv", "--columns", "model,status").stdout
    assert {line.split(",")[1] for line in narrowed.splitlines()[1:]} == {"revoked"}
    assert live.cli("devices", " @two-b", "-o", "name").stdout == live.cli("devices", "@two-b", "-o", "name").stdout
    refused = live.cli("devices", "memory:1gb", "@two-b")
    assert refused.returncode == 2 and "hint: write @two-b memory:1gb" in refused.stderr
    assert "@two-b" in live.cli("view", "list").stdout
    assert live.cli("view", "remove", "two-b").returncode == 0
    assert live.cli("devices", "@two-b").returncode == 3
    assert live.cli("view", "save", "bad", "modle:2b").returncode == 2


def test_many_devices_are_changed_in_steps(live: LiveFleet) -> None:
    """More than a thousand at once: every one of them and no other, each with a line in the log."""
    wanted = set(live.cli("devices", "-status:revoked", "-o", "name").stdout.split())
    few = live.cli("tag", "-status:revoked", "+many", "--reason", "x", "--yes", "--max", "5")
    assert few.returncode == 6
    done = live.cli("tag", "-status:revoked", "+many", "--reason", "x", "--yes", "--max", "1500")
    assert done.returncode == 0, done.stderr
    assert set(live.cli("devices", "tag:many", "-o", "name").stdout.split()) == wanted
    events = live.cli("audit", "action:device.tag", "--all", "-o", "jsonl").stdout.splitlines()
    assert len(events) == len(wanted) > 1000
    done = live.cli("tag", "tag:many", "-many", "+few", "--reason", "x", "--yes", "--max", "1500")
    assert done.returncode == 0, done.stderr
    assert set(live.cli("devices", "tag:few", "-o", "name").stdout.split()) == wanted
    assert live.cli("devices", "tag:many", "-o", "name").stdout == ""


@pytest.mark.parametrize("meanwhile", ["another device", "another decision"])
def test_of_many_devices_none_is_changed_that_was_not_shown(live: LiveFleet, meanwhile: str) -> None:
    """As many as were shown, but not the same, or not as they were: what was typed back was about others."""
    sure = ("--reason", "test", "--yes", "--max", "5000")
    first, second = live.cli("devices", "status:approved", "-o", "name", "--limit", "2").stdout.split()
    assert live.cli("tag", "-status:revoked", "+crowd", *sure).returncode == 0
    assert live.cli("tag", first, "-crowd", *sure).returncode == 0
    keyboard, terminal = pty.openpty()
    command = [*COMMAND, "--data", str(live.data), "tag", "tag:crowd", "+chosen", "--reason", "test"]
    with subprocess.Popen(
        command, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=CLEAN
    ) as process:
        assert process.stderr is not None
        number = process.stderr.readline().partition(" ")[0].replace(",", "")
        if meanwhile == "another device":
            assert live.cli("tag", first, "+crowd", *sure).returncode == 0
            assert live.cli("tag", second, "-crowd", *sure).returncode == 0
        else:
            assert live.cli("quarantine", second, *sure).returncode == 0
        os.write(keyboard, f"{number}\n".encode())
        said = process.stderr.read()
        os.close(keyboard)
        os.close(terminal)
    assert (process.returncode, "not the ones that were shown" in said) == (6, True), said
    assert live.cli("devices", "tag:chosen", "-o", "name").stdout == ""
    live.cli("release", second, *sure)
    assert live.cli("tag", "tag:crowd", "-crowd", *sure).returncode == 0


def test_an_export_is_whole_or_not_there(live: LiveFleet, tmp_path: Path) -> None:
    """With all rows; and where the server says no, nothing is left."""
    assert live.cli("export", str(tmp_path / "x.csv"), "model:2b").returncode == 0
    rows = (tmp_path / "x.csv").read_text().splitlines()
    assert len(rows) - 1 == len(live.cli("devices", "model:2b", "-o", "name").stdout.split())
    assert live.cli("export", str(tmp_path / "y.csv"), "modle:2b").returncode == 2
    assert live.cli("export", str(tmp_path / "y.txt")).returncode == 2
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_from_elsewhere_with_a_token(live: LiveFleet, tmp_path: Path) -> None:
    """A reader reads, may not change (exit 4), and without a token nothing opens; a revoked one neither."""
    assert live.cli("operator", "set", "ann", "reader").returncode == 0
    made = json.loads(live.cli("token", "make", "ann", "--json").stdout)
    file = tmp_path / "token"
    file.write_text(made["token"] + "\n")
    elsewhere = ("--server", live.issuer, "--token-file", str(file))
    assert len(run(*elsewhere, "devices", "--limit", "3", "-o", "name").stdout.split()) == 3
    refused = run(*elsewhere, "approve", "status:pending", "--yes", "--max", "999", "--reason", "x")
    assert (refused.returncode, "needs the role approver" in refused.stderr) == (4, True)
    assert run("--server", live.issuer, "devices", env={"PI_FLEET_TOKEN": "pfo_no"}).returncode == 4
    assert run("--server", "http://fleet.example", "devices", env={"PI_FLEET_TOKEN": "x"}).returncode == 2
    assert run("--server", "http://127.0.0.1:9", "devices", env={"PI_FLEET_TOKEN": "x"}).returncode == 5
    assert made["token"] not in live.cli("token", "list").stdout
    assert live.cli("token", "revoke", made["prefix"]).returncode == 0
    assert run(*elsewhere, "devices").returncode == 4


def test_watching_says_what_changes(live: LiveFleet) -> None:
    """A line for each device at first, then one for each change, and 130 when it is interrupted."""
    (name,) = live.cli("devices", "status:quarantined", "--limit", "1", "-o", "name").stdout.split()
    command = [
        *COMMAND,
        "--data",
        str(live.data),
        "devices",
        f"id:{name}",
        "--watch",
        "--interval",
        "0.1",
        "-o",
        "jsonl",
    ]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=CLEAN) as process,
        contextlib.ExitStack() as end,
    ):
        end.callback(process.kill)  # it goes on for ever
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["status"] == "quarantined"
        assert live.cli("release", name, "--yes", "--reason", "x").returncode == 0
        assert json.loads(process.stdout.readline())["status"] == "approved"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_completion_knows_fields_values_and_tags(live: LiveFleet) -> None:
    """One word a line, as it would be typed."""
    assert live.cli("suggest", "model:2b", "mem").stdout.split() == ["memory:"]
    assert "tag:kiosk" in live.cli("suggest", "tag:ki").stdout.split()
    assert "status:pending" in live.cli("suggest", "status:p").stdout.split()


def test_the_log_is_asked_by_query(live: LiveFleet) -> None:
    """And what it cannot be asked is an error with what it can."""
    done = live.cli("audit", "action:device.enrolled", "-o", "csv", "--limit", "3")
    assert len(done.stdout.splitlines()) == 4 and "device.enrolled" in done.stdout
    wrong = live.cli("audit", "acter:ann")
    assert (wrong.returncode, "actor" in wrong.stderr) == (2, True)
    assert live.cli("audit", "ann").returncode == 2


def test_a_changed_line_is_found(tmp_path: Path) -> None:
    """D-12: whoever edits the database is seen, and where."""
    data = tmp_path / "data"
    run("--data", str(data), "simulate", "30")
    with sqlite3.connect(data / "fleet.sqlite3") as database:
        database.execute("UPDATE fleet_auditevent SET actor = 'nobody' WHERE id = 17")
    database.close()
    done = run("--data", str(data), "audit", "verify")
    assert (done.returncode, "broken at line 17" in done.stderr) == (1, True)


def test_an_interrupted_simulation_leaves_a_whole_fleet(tmp_path: Path) -> None:
    """What was written before Ctrl-C is there, and its log is whole."""
    data = tmp_path / "data"
    run("--data", str(data), "simulate", "10")
    command = [*COMMAND, "--data", str(data), "simulate", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=CLEAN)
    try:
        deadline = time.monotonic() + 60
        with contextlib.closing(sqlite3.connect(data / "fleet.sqlite3")) as database:
            while time.monotonic() < deadline and _devices(database) < 11:
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "interrupted" in words
    assert run("--data", str(data), "audit", "verify").stdout.startswith("whole: ")


def _devices(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT count(*) FROM fleet_device").fetchone()[0])


def _interrupted(live: LiveFleet, *arguments: str, after: str) -> tuple[str, str]:
    """What a command says on a terminal, and prints, when Ctrl-C is pressed as soon as it has said ``after``."""
    mine, its = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--data", str(live.data), *arguments], stdout=subprocess.PIPE, stderr=its, text=True, env=CLEAN
    )
    os.close(its)
    said = ""
    with contextlib.suppress(OSError):  # a terminal whose other side has gone
        while chunk := os.read(mine, 4096).decode():
            if after in said + chunk and after not in said:
                process.send_signal(signal.SIGINT)
            said += chunk
    os.close(mine)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    return said, out


def test_an_interrupted_change_says_exactly_what_it_has_done(live: LiveFleet) -> None:
    """Ctrl-C ends it after the step that is under way: as many devices are changed as it says, each with its audit line."""
    said, _ = _interrupted(
        live, "tag", "-status:revoked", "+half", "--reason", "x", "--yes", "--max", "5000", after="tag: 500"
    )
    done = len(live.cli("devices", "tag:half", "-o", "name").stdout.split())
    assert f"interrupted: {done:,} devices tagged, the others are as they were" in said
    assert 500 <= done < 1500
    lines = live.cli("audit", "action:device.tag", "--all", "-o", "jsonl").stdout.splitlines()
    assert sum("half" in json.loads(line)["detail"]["added"] for line in lines) == done


def test_an_interrupted_list_says_how_far_it_came(live: LiveFleet, tmp_path: Path) -> None:
    """What was sent is in force, and the same command takes up the rest."""
    file = tmp_path / "boards.csv"
    file.write_text("serial,key,name\n" + "".join(f"{number:016x},,\n" for number in range(1, 2001)))
    said, _ = _interrupted(live, "preauthorise", str(file), after="lines: ")
    words = re.search(r"interrupted: the first ([0-9,]+) lines are in force", said)
    assert words
    sent = int(words[1].replace(",", ""))
    assert json.loads(live.cli("preauthorise", "--json").stdout)["total"] == sent < 2000
    again = live.cli("preauthorise", str(file))
    assert f"2,000 lines, {2000 - sent} of them new" in again.stderr


def test_an_interrupted_export_or_backup_leaves_nothing(
    live: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C at the first part of it: no file, no draft, and a sentence that says so."""
    add = Progress.add

    def interrupted(progress: Progress, number: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        add(progress, number)

    monkeypatch.setattr(Progress, "add", interrupted)
    for command in ("export", "backup"):
        file = tmp_path / f"{command}.csv"
        assert cli.main(["--data", str(live.data), command, str(file)]) == 130
        assert f"interrupted: {file} was not written" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def test_a_backup_ends_while_a_server_writes(live: LiveFleet, tmp_path: Path) -> None:
    """It is the fleet of one moment, however often somebody writes while it is copied."""
    with contextlib.closing(sqlite3.connect(live.data / "fleet.sqlite3", timeout=20)) as database:
        before, steps = _devices(database), 0

        def write(pages: int, total: int) -> None:
            nonlocal steps
            steps += 1
            assert steps < 1000, "it begins anew each time"
            database.execute("UPDATE fleet_device SET flag = flag || 'x' WHERE id = 1")
            database.commit()

        found = backup.backup(live.data / "fleet.sqlite3", tmp_path / "copy", copied=write)
    assert found["devices"] == before and steps > 1
    with contextlib.closing(sqlite3.connect(tmp_path / "copy")) as copy:
        assert "x" not in copy.execute("SELECT flag FROM fleet_device WHERE id = 1").fetchone()[0]
