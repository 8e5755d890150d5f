"""Write the tables of docs/boards.md from the decoder and from fixtures/revision-codes.csv.

Run ``.venv/bin/python docs/boards_table.py`` after changing either; a test fails while the page is behind.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from pi_agent.device.commands.board import CORES, SINCE
from pi_agent.revision import FLAGS, TYPES, decode_revision

HERE = Path(__file__).parent
PAGE = HERE / "boards.md"
CODES = HERE.parent / "fixtures" / "revision-codes.csv"


def with_tables(page: str) -> str:
    """The page with everything between its ``table`` marks written anew."""
    for name, lines in {"types": types(), "codes": codes(), "flags": flags()}.items():
        start, end = f"<!-- table: {name} -->\n", f"<!-- end: {name} -->"
        before, _, rest = page.partition(start)
        _, _, after = rest.partition(end)
        page = before + start + "\n".join(lines) + "\n" + end + after
    return page


def types() -> Iterator[str]:
    yield "| number | type | model | on sale since |"
    yield "|---|---|---|---|"
    for number, (short, name) in TYPES.items():
        yield f"| 0x{number:02x} | `{short}` | {name} | {SINCE.get(short, '')} |"
        if short == "500":
            yield f"| 0x{number:02x} | `500+` | Raspberry Pi 500+ (16 GB) | {SINCE['500+']} |"


def codes() -> Iterator[str]:
    yield "| code | type | circuit | memory (MiB) | chip | cores | made by | known from |"
    yield "|---|---|---|---|---|---|---|---|"
    with CODES.open(newline="") as lines:
        for row in csv.DictReader(lines):
            board = decode_revision(row["code"])
            if not board.flags:
                memory = " or ".join(str(size) for size in board.memory_choices)
                yield (
                    f"| `{board}` | {board.type} | {board.pcb_revision} | {memory} | {board.soc} | {CORES[board.soc]} "
                    f"| {board.manufacturer} | {row['where']} |"
                )


def flags() -> Iterator[str]:
    yield "| bit | word | meaning when set |"
    yield "|---|---|---|"
    for bit, (word, meaning) in FLAGS.items():
        yield f"| {bit} | `{word}` | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
