"""``pi-agent board`` as its users see it: the screen, the JSON, the exit codes, the recorder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from pi_agent.device.commands import board as command
from pi_agent.device.probe import probe, read_facts
from pi_agent.device.record import record, redact, serial_tails
from pi_agent.errors import (
    ConflictError,
    NotARaspberryPiError,
    PiAgentError,
    UnreadableBoardError,
    UsageError,
)
from pi_agent.facts import Facts

FIXTURES = Path(__file__).parents[1] / "fixtures"
PI2 = str(FIXTURES / "cpuinfo" / "2b-a01041-4.9-32bit.txt")
PI5 = str(FIXTURES / "trees" / "pi-5-raspberry-pi-os")
SERIAL_KEYS = {"serial-number", "rpi-serial64", "linux,serial"}


def run(*words: str) -> int:
    """Parse as the command line does: --root and --json may stand before the command too."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", default=None)
    parser.add_argument("--json", action="store_true")
    command.add_arguments(parser.add_subparsers(required=True).add_parser("board", help=command.HELP))
    return command.run(parser.parse_args(words))


def test_the_screen_shows_the_board_and_the_origins(capsys: pytest.CaptureFixture[str]) -> None:
    """One screen: the model, what it is made of, and where each fact came from."""
    assert run("board", "--root", PI5) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "Raspberry Pi 5, on sale since 2023"
    assert "memory     8 GB                  /proc/device-tree/chosen/rpi-sdram-size-gbit" in out
    assert "revision   d04171                /proc/cpuinfo" in out
    assert len(out.splitlines()) <= 24
    assert all(len(line) <= 80 for line in out.splitlines())
    assert out.isascii()


def test_the_example_in_the_documentation_is_real(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/boards.md shows what the command prints."""
    page = (FIXTURES.parent / "docs" / "boards.md").read_text()
    run("board", "--revision", "a01041")
    assert f"```console\n$ pi-agent board --revision a01041\n{capsys.readouterr().out}```\n" in page


def test_json_is_the_documented_body(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema comes first; the code is masked, the raw one beside it; memory is in MiB."""
    assert run("board", "--cpuinfo", PI2, "--json") == 0
    out = capsys.readouterr().out
    body = json.loads(out)
    assert out.startswith('{\n  "schema": "pi-agent.board/1"')
    assert (body["model"], body["type"], body["memory_mib"]) == ("Raspberry Pi 2 Model B", "2B", 1024)
    assert (body["soc"], body["manufacturer"], body["pcb_revision"]) == ("BCM2836", "Sony UK", "1.1")
    assert body["revision"] == body["revision_raw"] == "a01041"
    assert body["flags"] == body["conflicts"] == body["notes"] == []
    assert body["sources"]["revision"] == body["sources"]["serial"] == PI2


def test_json_keeps_state_bits_out_of_the_revision(capsys: pytest.CaptureFixture[str]) -> None:
    """revision identifies, revision_raw is what was found, flags name the difference."""
    assert run("--json", "board", "--revision", "80c03114") == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["revision"], body["revision_raw"]) == ("c03114", "80c03114")
    assert body["flags"] == ["overvoltage-disallowed"]
    assert body["serial"] is None


@pytest.mark.parametrize(
    ("name", "error", "code"),
    [("rock-5b", NotARaspberryPiError, 3), ("pi-4b-u-boot", UnreadableBoardError, 1)],
)
def test_the_other_outcomes(
    capsys: pytest.CaptureFixture[str], name: str, error: type[PiAgentError], code: int
) -> None:
    """Not a Pi is 3, an unreadable Pi is 1; as JSON the same code with error and hint."""
    root = str(FIXTURES / "trees" / name)
    with pytest.raises(error) as caught:
        run("board", "--root", root)
    assert caught.value.exit_code == code
    assert run("--root", root, "board", "--json") == code
    body = json.loads(capsys.readouterr().out)
    assert body == {"schema": "pi-agent.board/1", "error": str(caught.value), "hint": caught.value.hint}


def test_conflicts_and_notes_are_on_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    """What sources disagree about, and what is unknown, is told."""
    run("board", "--root", str(FIXTURES / "trees" / "pi-2b-conflicting-code"))
    run("board", "--revision", "0015")
    out = capsys.readouterr().out
    assert out.count("conflict: ") == 2
    assert "memory     256 or 512 MB" in out
    assert "note: revision 0015" in out


def test_explain_shows_the_bits(capsys: pytest.CaptureFixture[str]) -> None:
    """Each field of a new-style code with its bits, value and meaning; each state bit that is set."""
    run("board", "--revision", "3a21041", "--explain")
    out = capsys.readouterr().out
    assert "0000 0011 1010 0010 0001 0000 0100 0001" in out
    assert "bits 16-19  2     made by Embest" in out
    assert "bit  25     1     warranty" in out
    assert "a21041 identifies the board" in out


def test_explain_of_an_old_code_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """An old-style code is explained as a number from a list; JSON has all bits."""
    run("board", "--revision", "1000002", "--explain")
    assert "old style: the number stands in a list" in capsys.readouterr().out
    run("board", "--revision", "1000002", "--explain", "--json")
    bits = json.loads(capsys.readouterr().out)["bits"]
    assert [row["value"] for row in bits if row["bits"] == "24"] == ["1"]
    assert len(bits) == 10


@pytest.mark.parametrize("code", ["a01041", "A01041", "0xa01041", " a01041 "])
def test_a_code_is_taken_as_people_type_it(capsys: pytest.CaptureFixture[str], code: str) -> None:
    """Capitals, 0x and blanks around are fine on the command line."""
    assert run("board", "--revision", code) == 0
    assert "Raspberry Pi 2 Model B" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["--revision", "what"],
        ["--revision", "0016"],
        ["--revision", "a01041", "--cpuinfo", PI2],
        ["--revision", "a01041", "--record", "x"],
        ["--revision", "a01041", "--root", "/"],
        ["--cpuinfo", "/no/such/file"],
        ["--root", "/no/such/folder"],
    ],
)
def test_what_cannot_be_asked_is_a_usage_error(words: list[str]) -> None:
    """A wrong code, contradicting options and missing files end with exit code 2 and a hint."""
    with pytest.raises(UsageError) as caught:
        run("board", *words)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_colour_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No escape when piped; on a terminal, unless NO_COLOR is set or the terminal is dumb."""
    run("board", "--revision", "a01041")
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    run("board", "--revision", "a01041")
    assert "\x1b[1mRaspberry Pi 2 Model B\x1b[0m" in capsys.readouterr().out
    for name, value in (("TERM", "dumb"), ("NO_COLOR", "1")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            run("board", "--revision", "a01041")
            assert "\x1b" not in capsys.readouterr().out


def test_a_terminal_title_in_cpuinfo_does_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """D-07: escapes from the file are printed nowhere, in words or in JSON."""
    file = tmp_path / "cpuinfo"
    file.write_text(
        "Hardware : BCM2835\nRevision : d061c3\nModel : Raspberry Pi \x1b]0;x\x07\u202e6\nSerial : \x1b[2J\n"
    )
    run("board", "--cpuinfo", str(file))
    run("board", "--cpuinfo", str(file), "--json")
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\u001b" not in out
    assert "\u202e" not in out


def test_a_recording_replays_without_the_serial(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--record writes what --root replays to the same board, and the serial's last digits are in no file."""
    before = probe(PI5)
    target = tmp_path / "my-board"
    assert run("board", "--root", PI5, "--record", str(target)) == 0
    told = capsys.readouterr().err
    after = probe(str(target))
    assert before.serial and after.serial
    assert (after.revision, after.memory_mib, after.conflicts) == (before.revision, before.memory_mib, ())
    assert after.serial[:8] == before.serial[:8]
    assert after.serial[8:] != before.serial[8:]
    tail = before.serial[8:]
    for path in (path for path in target.rglob("*") if path.is_file()):
        raw = path.read_bytes()
        assert tail.encode() not in raw.lower()
        assert bytes.fromhex(tail) not in raw
    assert f"my-board,board,Raspberry Pi 5,5,8192,d04171,{after.serial},0," in told


def test_a_board_that_cannot_be_read_is_recorded_all_the_same(tmp_path: Path) -> None:
    """A recording is worth most where decoding fails; the outcome stays the same."""
    target = tmp_path / "odd"
    with pytest.raises(UnreadableBoardError):
        run("board", "--root", str(FIXTURES / "trees" / "pi-4b-u-boot"), "--record", str(target))
    with pytest.raises(UnreadableBoardError, match="U-Boot"):
        probe(str(target))


def test_a_recording_is_never_written_over_another(tmp_path: Path) -> None:
    """A folder with something in it is a conflict; one that cannot be written is an error with the reason."""
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(ConflictError):
        run("board", "--cpuinfo", PI2, "--record", str(tmp_path))
    with pytest.raises(PiAgentError, match="cannot write"):
        run("board", "--cpuinfo", PI2, "--record", str(tmp_path / "kept" / "below"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_every_form_of_the_serial_is_replaced(tmp_path: Path) -> None:
    """Capitals, binary cells, a second serial and one longer than a Pi's are all replaced."""
    facts = Facts(
        cpuinfo="Serial : 00000000C3A91E5F\nSerial : 000000001234abcd\nnote : c3a91e5f\n",
        trees={"/proc/device-tree": {"serial-number": b"3400503443148304c46e\0", "system/linux,serial": b"\0" * 8}},
    )
    assert serial_tails(facts) == {"c3a91e5f", "1234abcd", "8304c46e"}
    fresh = iter(["5eed0001", "5eed000a", "5eed000b"])
    record(facts, tmp_path / "all", lambda: next(fresh))
    text = (tmp_path / "all/proc/cpuinfo").read_text()
    assert text == "Serial : 000000005EED000B\nSerial : 000000005eed0001\nnote : 5eed000b\n"
    assert (tmp_path / "all/proc/device-tree/serial-number").read_bytes() == b"3400503443145eed000a\0"
    assert redact(b"\x00\xc3\xa9\x1e\x5f", {"c3a91e5f": "5eed5eed"}) == b"\x00\x5e\xed\x5e\xed"


@pytest.mark.parametrize("name", sorted(path.name for path in (FIXTURES / "trees").iterdir() if path.is_dir()))
def test_every_recorded_tree_survives_recording(tmp_path: Path, name: str) -> None:
    """Recording a recording keeps every file and the outcome, differences between serials included."""
    source = FIXTURES / "trees" / name
    fresh = (f"5eed{number:04x}" for number in range(9))
    record(read_facts(str(source)), tmp_path / name, lambda: next(fresh))
    files = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*") if path.is_file()}
    assert outcome(tmp_path / name) == outcome(source)


def outcome(root: Path) -> str:
    """The board without its serial and the number of conflicts, or the error."""
    try:
        board = probe(str(root))
    except PiAgentError as error:
        return str(error)
    return f"{board.revision} {board.memory_mib} {len(board.conflicts)}"
