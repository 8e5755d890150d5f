"""Every recorded text and tree decodes to what its index says; the documentation is what the tables say."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

from pi_agent.board import Board, board_claims, parse_cpuinfo
from pi_agent.device.probe import probe
from pi_agent.errors import BoardError, NotARaspberryPiError
from pi_agent.revision import TYPES

REPO = Path(__file__).parents[1]
CPUINFO = REPO / "fixtures" / "cpuinfo"
RECORDED_TREES = REPO / "fixtures" / "trees"
SHARED = REPO.parent / "shared" / "cpuinfo"

# Filed under BeagleBone by the project it was collected from, but its lines (ARM1176, BCM2708, 0010) are a Model B+'s,
# and equal to another recording of one except for the serial. The text can only be what it says.
MISFILED = {"notpi_beaglebone_rev0010.txt": ("B+", "512", "0010")}

NOT_SOLD = {"Alpha", "Internal 0x0f", "Internal 0x16"}


def index(folder: Path) -> list[dict[str, str]]:
    with (folder / "index.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def outcome_of(error: BoardError) -> str:
    return "not-a-pi" if isinstance(error, NotARaspberryPiError) else "unreadable"


def row_of(board: Board) -> dict[str, str]:
    """The board as the columns of an index."""
    return {
        "outcome": "board",
        "expected_model": board.model,
        "expected_type": board.type,
        "memory_mib": str(board.memory_mib or ""),
        "revision": str(board.revision),
        "serial": board.serial or "",
        "soc": board.soc,
        "manufacturer": board.manufacturer,
        "pcb_revision": board.pcb_revision,
        "conflicts": str(len(board.conflicts)),
    }


def agrees(row: dict[str, str], board: Board) -> None:
    found = row_of(board)
    assert {key: found[key] for key in row if key in found} == {key: row[key] for key in row if key in found}


@pytest.mark.parametrize("row", index(CPUINFO), ids=lambda row: row["file"])
def test_every_cpuinfo_decodes_as_its_index_says(row: dict[str, str]) -> None:
    """All boards of all families and kernel eras, and all machines that are none, have the outcome of the index."""
    text = (CPUINFO / row["file"]).read_bytes().decode()
    try:
        board = parse_cpuinfo(text)
    except BoardError as error:
        assert outcome_of(error) == row["outcome"]
    else:
        agrees(row, board)
        assert board.conflicts == ()


@pytest.mark.parametrize("row", index(RECORDED_TREES), ids=lambda row: row["file"])
def test_every_tree_decodes_as_its_index_says(row: dict[str, str]) -> None:
    """Mainline, container, U-Boot, memory field 7 and conflicting sources, replayed as ``--root`` does."""
    try:
        board = probe(str(RECORDED_TREES / row["file"]))
    except BoardError as error:
        assert outcome_of(error) == row["outcome"]
    else:
        agrees(row, board)


def test_the_indexes_list_every_file() -> None:
    """No fixture is forgotten by its index and no line is without its file."""
    assert {row["file"] for row in index(CPUINFO)} == {path.name for path in CPUINFO.glob("*.txt")}
    assert {row["file"] for row in index(RECORDED_TREES)} == {
        path.name for path in RECORDED_TREES.iterdir() if path.is_dir()
    }


def test_the_fixtures_cover_what_they_promise() -> None:
    """At least 60 boards, 10 other machines, 24 distinct boards to simulate, and several Pi 2 with 1 GB."""
    rows = index(CPUINFO)
    boards = [row for row in rows if row["outcome"] == "board"]
    assert len(boards) >= 60
    assert sum(row["outcome"] == "not-a-pi" for row in rows) >= 10
    serials = [row["serial"] for row in boards if row["serial"]]
    assert len(serials) == len(set(serials)) >= 24
    assert sum((row["expected_type"], row["memory_mib"]) == ("2B", "1024") for row in boards) >= 5
    assert {short for short, _ in TYPES.values()} - NOT_SOLD <= {row["expected_type"] for row in boards}


@pytest.mark.skipif(not (SHARED / "index.csv").exists(), reason="no collection of recordings beside the project")
def test_recordings_beside_the_project_decode_as_their_index_says() -> None:
    """A collection of recordings from real boards, where there is one, agrees with its own index."""
    for row in index(SHARED):
        want = MISFILED.get(row["file"], (row["expected_model"], row["expected_memory_mb"], row["expected_revision"]))
        text = (SHARED / row["file"]).read_bytes().decode("utf-8", "replace")
        try:
            board = parse_cpuinfo(text)
        except BoardError as error:
            assert want[0] in {"", outcome_of(error)}, row["file"]
        else:
            assert (board.type, str(board.memory_mib), str(board.revision)) == want, row["file"]


def test_boards_differ_in_their_claims() -> None:
    """Boards to simulate are told apart by their claims."""
    claims = [
        tuple(board_claims(parse_cpuinfo((CPUINFO / row["file"]).read_text())).items())
        for row in index(CPUINFO)
        if row["outcome"] == "board" and row["serial"]
    ]
    assert len(claims) == len(set(claims))


def test_the_table_in_the_documentation_is_what_the_tables_say() -> None:
    """docs/boards.md is generated: run .venv/bin/python docs/boards_table.py when this fails."""
    generator = runpy.run_path(str(REPO / "docs" / "boards_table.py"))
    page = (REPO / "docs" / "boards.md").read_text()
    assert generator["with_tables"](page) == page
