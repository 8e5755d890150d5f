"""``pi-agent board``: which Raspberry Pi is this? Works on any machine, without configuration and without root."""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import secrets
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from pi_agent.board import Board, board_from_revision, identify
from pi_agent.device.probe import check_root, probe, read_facts
from pi_agent.device.record import record
from pi_agent.errors import BoardError, NotARaspberryPiError, PiAgentError, UsageError
from pi_agent.evidence import ABSENT
from pi_agent.facts import clean
from pi_agent.revision import FLAGS, Revision, decode_revision

HELP = "say which Raspberry Pi this is, and how that is known"
EPILOG = "example: pi-agent board --revision a01041 --explain"
SCHEMA = "pi-agent.board/1"
COMMAND_LINE = "command line"

# What every chip of the family computes with, and since when each board is on sale: for people only.
CORES = {
    "BCM2835": "1 x ARM1176",
    "BCM2836": "4 x Cortex-A7",
    "BCM2837": "4 x Cortex-A53",
    "BCM2711": "4 x Cortex-A72",
    "BCM2712": "4 x Cortex-A76",
}
SINCE = (
    {"B": 2012, "A": 2013, "A+": 2014, "B+": 2014, "CM1": 2014, "2B": 2015, "Zero": 2015, "3B": 2016}
    | {"CM3": 2017, "Zero W": 2017, "3B+": 2018, "3A+": 2018, "CM3+": 2019, "4B": 2019, "400": 2020, "CM4": 2020}
    | {"Zero 2 W": 2021, "CM4S": 2022, "5": 2023, "CM5": 2024, "CM5 Lite": 2024, "500": 2024, "500+": 2025, "CM0": 2025}
)
NOT_SET = "not set"
LAYOUT = "NOQu uuWw FMMM CCCC PPPP TTTT TTTT RRRR"
INDEX = ("file", "outcome", "expected_model", "expected_type", "memory_mib", "revision", "serial", "conflicts", "notes")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--cpuinfo", metavar="FILE", help="decode this copy of a /proc/cpuinfo, and nothing else")
    parser.add_argument("--root", metavar="DIR", default=argparse.SUPPRESS, help="read a recorded tree")
    parser.add_argument("--revision", metavar="CODE", help="decode a revision code: a01041")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    parser.add_argument("--explain", action="store_true", help="show what each bit of the code means")
    parser.add_argument("--record", metavar="DIR", help="write what was read into DIR, with the serial changed")


def run(args: argparse.Namespace) -> int:
    """Print the board. Raises ``PiAgentError``, or with ``--json`` prints it and returns its exit code."""
    as_json = getattr(args, "json", False)
    try:
        board = _find(args)
    except PiAgentError as error:
        if not as_json:
            raise
        print(json.dumps({"schema": SCHEMA, "error": str(error), "hint": error.hint}, indent=2))
        return error.exit_code
    if as_json:
        print(json.dumps(to_json(board, explain=args.explain), indent=2))
    else:
        print("\n".join(screen(board, explain=args.explain, colour=_colour())))
    return 0


def _find(args: argparse.Namespace) -> Board:
    root = getattr(args, "root", None)
    if args.revision is not None:
        if args.cpuinfo or args.record or root:
            raise UsageError("--revision decodes a code alone", hint="leave out --cpuinfo, --root and --record")
        return board_from_revision(_decode(args.revision), COMMAND_LINE)
    root = root or os.environ.get("PI_AGENT_ROOT") or "/"
    check_root(root)
    facts = read_facts(root, args.cpuinfo)
    if args.cpuinfo and facts.failures.get(facts.cpuinfo_origin) == ABSENT:
        raise UsageError(f"no such file: {facts.cpuinfo_origin}", hint="--cpuinfo takes a copy of /proc/cpuinfo")
    if args.record:
        written = record(facts, Path(args.record), lambda: secrets.token_hex(4))
        print("\n".join(_recorded(Path(args.record), len(written))), file=sys.stderr)
    return identify(facts)


def _decode(text: str) -> Revision:
    try:
        return decode_revision(text.strip().lower().removeprefix("0x"))
    except BoardError as error:
        raise UsageError(f"--revision: {error}", hint=error.hint or "it reads like a02082, in hexadecimal") from None


def to_json(board: Board, *, explain: bool = False) -> dict[str, object]:
    """The board as ``pi-agent.board/1``: ``revision`` without state bits, ``revision_raw`` as found, memory in MiB."""
    body: dict[str, object] = {
        "schema": SCHEMA,
        "model": board.model,
        "type": board.type,
        "revision": f"{board.revision.masked:04x}",
        "revision_raw": str(board.revision),
        "serial": board.serial,
        "memory_mib": board.memory_mib,
        "soc": board.soc,
        "manufacturer": board.manufacturer,
        "pcb_revision": board.pcb_revision,
        "flags": list(board.flags),
        "kernel_model": board.kernel_model,
        "sources": dict(sorted(board.sources.items())),
        "conflicts": list(board.conflicts),
        "notes": list(board.notes),
    }
    if explain:
        body["bits"] = [
            {"bits": bits, "value": value, "meaning": meaning} for bits, value, meaning in bit_rows(board.revision)
        ]
    return body


def screen(board: Board, *, explain: bool = False, colour: bool = False) -> Iterator[str]:
    """One screen for people."""
    bold, dim, warn, off = ("\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[0m") if colour else ("", "", "", "")
    since = f", on sale since {SINCE[board.type]}" if board.type in SINCE else ""
    yield f"{bold}{board.model}{off}{dim}{since}{off}"
    yield ""
    for label, value, origin in _rows(board):
        yield f"  {label:<11}{value:<22}{dim}{origin}{off}" if origin else f"  {label:<11}{value}"
    told = [(f"{warn}conflict:{off} ", text) for text in board.conflicts]
    told += [(f"{dim}note:{off} ", text) for text in board.notes]
    for word, text in told:
        yield ""
        yield from textwrap.wrap(
            word + text, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    if explain:
        yield ""
        yield from explanation(board.revision)


def _rows(board: Board) -> Iterator[tuple[str, str, str]]:
    sources = board.sources
    core = f", {CORES[board.soc]}" if board.soc in CORES else ""
    yield "type", board.type, ""
    yield "memory", memory_text(board), sources.get("memory_mib", "")
    yield "processor", f"{board.soc}{core}", ""
    yield "circuit", f"revision {board.pcb_revision}, made by {board.manufacturer}", ""
    yield "revision", str(board.revision), sources["revision"]
    yield "serial", board.serial or "none found", sources.get("serial", "")
    yield "state", ", ".join(board.flags) or "no flags set", ""


def memory_text(board: Board) -> str:
    """``1 GB``, ``512 MB``, ``256 or 512 MB``, ``unknown``."""
    if board.memory_mib is None:
        return (
            " or ".join(str(size) for size in board.revision.memory_choices)
            + " MB" * bool(board.revision.memory_choices)
            or "unknown"
        )
    gigabytes, rest = divmod(board.memory_mib, 1024)
    return f"{board.memory_mib} MB" if rest else f"{gigabytes} GB"


def explanation(revision: Revision) -> Iterator[str]:
    """What each bit says, as lines."""
    if revision.new_style:
        digits = f"{revision.code:032b}"
        yield f"  {LAYOUT}"
        yield "  " + " ".join(digits[start : start + 4] for start in range(0, 32, 4))
        yield ""
    for bits, value, meaning in bit_rows(revision):
        if meaning != NOT_SET:
            yield f"  {'bits' if '-' in bits else 'bit':<5}{bits:<7}{value:<6}{meaning}"
    if len(revision.flags) < len(FLAGS):
        yield f"  the other state bits (24-31) are {NOT_SET}"
    yield ""
    yield f"  {revision.masked:04x} identifies the board; bits 24 to 31 are its state and may change."


def bit_rows(revision: Revision) -> Iterator[tuple[str, str, str]]:
    """``(bits, value, meaning)``, lowest bit first."""
    code = revision.code
    if revision.new_style:
        memory = revision.memory_mib
        yield "0-3", f"{code & 0xF:x}", f"circuit board revision {revision.pcb_revision}"
        yield "4-11", f"{code >> 4 & 0xFF:02x}", revision.name
        yield "12-15", f"{code >> 12 & 0xF:x}", f"processor {revision.soc}"
        yield "16-19", f"{code >> 16 & 0xF:x}", f"made by {revision.manufacturer}"
        yield "20-22", f"{code >> 20 & 7:x}", f"memory {memory} MB" if memory else "memory: the firmware says"
        yield "23", "1", "new style: the fields above count"
    else:
        sizes = " or ".join(str(size) for size in revision.memory_choices)
        where = f"{revision.name}, circuit {revision.pcb_revision}, {sizes} MB, made by {revision.manufacturer}"
        yield "0-22", f"{revision.masked:04x}", where
        yield "23", "0", "old style: the number stands in a list"
    for bit, (word, meaning) in FLAGS.items():
        state = code >> bit & 1
        yield str(bit), str(state), f"{word}: {meaning}" if state else NOT_SET


def _recorded(directory: Path, files: int) -> Iterator[str]:
    """What to do with a recording, with the line for the index as the recording itself decodes."""
    row: dict[str, object] = {"file": clean(directory.resolve().name)}
    try:
        board = probe(str(directory))
    except BoardError as error:
        row["outcome"] = "not-a-pi" if isinstance(error, NotARaspberryPiError) else "unreadable"
    else:
        row |= {"outcome": "board", "expected_model": board.model, "expected_type": board.type}
        row |= {"memory_mib": board.memory_mib, "revision": board.revision, "serial": board.serial}
        row["conflicts"] = len(board.conflicts)
    line = io.StringIO()
    csv.DictWriter(line, INDEX, lineterminator="").writerow(row)
    yield f"recorded {files} file{'s' * (files != 1)} in {directory}, the last eight digits of the serial replaced"
    yield "to contribute it (docs/contribute-a-board.md): move the folder to fixtures/trees/, and add to its index.csv:"
    yield line.getvalue()


def _colour() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
