"""Write what was read from a board into a folder that ``--root`` replays, with the serial made unrecognisable.

The layout is that of the machine (``proc/cpuinfo``, ``proc/device-tree/...``, ``sys/firmware/devicetree/base/...``),
plain files only. The last eight digits of the serial are replaced wherever they appear, as text in either case and
as binary cells: the first eight tell the board's family, the last eight are the board itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pi_agent.errors import ConflictError, PiAgentError
from pi_agent.facts import CPUINFO, Facts, clean, cpuinfo_fields
from pi_agent.revision import is_hex

SERIAL_STRINGS = ("serial-number", "chosen/rpi-serial64")
SERIAL_CELLS = "system/linux,serial"
DIGITS = 8


def record(facts: Facts, directory: Path, eight_digits: Callable[[], str]) -> list[Path]:
    """Write the facts below ``directory``. ``eight_digits`` gives fresh hexadecimal digits for each serial, so that
    serials which differed still differ. Returns the files written.

    Raises ``ConflictError`` when there is something in the directory already, ``PiAgentError`` when it cannot be
    written.
    """
    try:
        return _write(facts, directory, {tail: eight_digits() for tail in sorted(serial_tails(facts))})
    except OSError as error:
        raise PiAgentError(f"cannot write {directory}: {error.strerror}", hint="name a folder you may write") from None


def _write(facts: Facts, directory: Path, changes: Mapping[str, str]) -> list[Path]:
    if directory.exists() and any(directory.iterdir()):
        raise ConflictError(f"{directory} is not empty", hint="name a new folder: pi-agent board --record my-board")
    files = {origin + "/" + name: raw for origin, tree in facts.trees.items() for name, raw in tree.items()}
    if facts.cpuinfo is not None:
        files[CPUINFO] = facts.cpuinfo.encode()
    written = []
    for path, raw in files.items():
        target = directory / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(redact(raw, changes))
        written.append(target)
    return written


def serial_tails(facts: Facts) -> set[str]:
    """The last eight digits, in lower case, of everything that is a serial or looks like one."""
    texts = list(cpuinfo_fields(facts.cpuinfo or "").get("Serial", ()))
    for tree in facts.trees.values():
        texts += [clean(tree[name].rstrip(b"\0").decode("ascii", "replace")) for name in SERIAL_STRINGS if name in tree]
        texts += [tree[name].hex() for name in (SERIAL_CELLS,) if name in tree]
    tails = {text[-DIGITS:].lower() for text in texts}
    return {tail for tail in tails if len(tail) == DIGITS and is_hex(tail) and tail.strip("0")}


def redact(raw: bytes, changes: Mapping[str, str]) -> bytes:
    """Replace every tail by its new digits: as text in lower and upper case, and as four bytes."""
    for tail, digits in changes.items():
        raw = raw.replace(tail.encode(), digits.encode())
        raw = raw.replace(tail.upper().encode(), digits.upper().encode())
        raw = raw.replace(bytes.fromhex(tail), bytes.fromhex(digits))
    return raw
