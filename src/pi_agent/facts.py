"""What was read about a machine, as raw text and bytes in, as cleaned readings out. Nothing is decided here.

Rules kept here:

* Every reading keeps its origin, the path it came from.
* Whatever the input holds, a value leaves as printable ASCII of at most 64 characters.
* A value in the wrong form (a serial that is not hexadecimal, a property of the wrong size) becomes a note, not a
  reading. All zeros means "the kernel does not know" and is no reading either.

Sources: ``arch/arm/kernel/setup.c`` and ``arch/arm64/kernel/cpuinfo.c`` of the Raspberry Pi kernel print the lines;
the firmware writes the properties into the device tree (devicetree specification: cells are big-endian, strings end
in NUL); the mailbox tags 0x00010002 and 0x00010004 answer with the board's revision and serial.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pi_agent.revision import is_hex

MAX_TEXT = 1 << 20
MAX_VALUE = 64
MAX_DIFFERENT = 4  # values kept of one repeated line: enough to tell a conflict

CPUINFO = "/proc/cpuinfo"
TREES = ("/proc/device-tree", "/sys/firmware/devicetree/base")  # the same tree; a sandbox may mask either one
MAILBOX = "/dev/vcio"

TREE_REVISION = "system/linux,revision"
TREE_PROPERTIES = (
    TREE_REVISION,
    "serial-number",
    "chosen/rpi-serial64",
    "system/linux,serial",
    "model",
    "compatible",
    "chosen/rpi-sdram-size-gbit",
    "chosen/u-boot,version",
)

IDENTITY_KEYS = ("Hardware", "Revision", "Serial", "Model")
PROCESSOR_KEYS = ("CPU implementer", "CPU part")
FOREIGN_KEYS = ("vendor_id", "isa", "system type", "cpu")  # x86 and s390, RISC-V, MIPS, PowerPC
_LINE = re.compile(rf"\n({'|'.join(IDENTITY_KEYS + PROCESSOR_KEYS + FOREIGN_KEYS)})[ \t]*:([^\n]*)")

_MIB_PER_GBIT = 128
_MAX_GBIT = 8192


@dataclass(frozen=True)
class Facts:
    """Everything that was read, before anybody thinks about it.

    ``cpuinfo`` is the whole text or None; ``trees`` maps where a device tree lies to its properties as raw bytes;
    ``mailbox`` holds ``revision`` and ``serial`` as numbers; ``failures`` maps a path to why it was not read:
    ``absent``, ``permission denied``, or other words for people.
    """

    cpuinfo: str | None = None
    cpuinfo_origin: str = CPUINFO
    trees: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)
    mailbox: Mapping[str, int] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Readings:
    """The facts, sorted by what they are about. Each list holds ``(origin, value)``, best source first."""

    hardware: list[tuple[str, str]] = field(default_factory=list)
    models: list[tuple[str, str]] = field(default_factory=list)
    revisions: list[tuple[str, int]] = field(default_factory=list)
    serials: list[tuple[str, str]] = field(default_factory=list)
    memory_mib: list[tuple[str, int]] = field(default_factory=list)
    compatible: list[str] = field(default_factory=list)
    implementers: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    zero_revision: bool = False
    bad_revisions: list[str] = field(default_factory=list)
    u_boot: bool = False
    notes: list[str] = field(default_factory=list)

    def add_revision(self, origin: str, code: int) -> None:
        if code:
            self.revisions.append((origin, code))
        else:
            self.zero_revision = True

    def add_serial(self, origin: str, text: str) -> None:
        if len(text) <= 16 and is_hex(text):
            if text.strip("0"):
                self.serials.append((origin, text.lower()))
        elif text:
            self.notes.append(f"serial ignored: {origin} says {text!r}, which is not a serial of up to 16 hex digits")


def readings_of(facts: Facts) -> Readings:
    """Sort the facts, in the order in which the sources are believed: cpuinfo, device tree, mailbox."""
    found = Readings()
    if facts.cpuinfo is not None:
        _read_cpuinfo(cpuinfo_fields(facts.cpuinfo), facts.cpuinfo_origin, found)
    seen: list[Mapping[str, bytes]] = []
    for origin, properties in facts.trees.items():
        if properties not in seen:  # the two paths usually lead to one tree: one voice, not two
            seen.append(properties)
            _read_tree(properties, origin, found)
    if "revision" in facts.mailbox:
        found.add_revision(MAILBOX, facts.mailbox["revision"])
    if "serial" in facts.mailbox:
        found.add_serial(MAILBOX, f"{facts.mailbox['serial']:016x}")
    return found


def cpuinfo_fields(text: str) -> dict[str, dict[str, None]]:
    """The lines we want: key -> its different values in order of appearance (kernel 6.18 repeats lines per core).

    A key is the whole text before the colon, from the start of the line, case-sensitive: ``CPU revision`` is not
    ``Revision`` and ``model name`` is not ``Model``.
    """
    fields: dict[str, dict[str, None]] = {}
    for key, value in dict.fromkeys(_LINE.findall("\n" + text[:MAX_TEXT])):
        values = fields.setdefault(key, {})
        if len(values) < MAX_DIFFERENT:
            values[clean(value)] = None
    return fields


def clean(value: str, limit: int = MAX_VALUE) -> str:
    """Printable ASCII only, no blanks around it, at most ``limit`` characters: fit for a terminal, a log, a claim."""
    value = value[: 4 * limit].strip()
    if not (value.isascii() and value.isprintable()):
        value = "".join(char for char in value if " " <= char <= "~").strip()
    return value[:limit]


def _read_cpuinfo(fields: dict[str, dict[str, None]], origin: str, found: Readings) -> None:
    found.hardware += [(origin, value) for value in fields.get("Hardware", ()) if value]
    found.models += [(origin, value) for value in fields.get("Model", ()) if value]
    found.implementers += fields.get("CPU implementer", ())
    found.parts += fields.get("CPU part", ())
    found.foreign += [f"{key}: {value}" for key in FOREIGN_KEYS for value in fields.get(key, ())]
    for value in fields.get("Revision", ()):
        if len(value) <= 8 and is_hex(value):
            found.add_revision(origin, int(value, 16))
        else:
            found.bad_revisions.append(f"{origin} says Revision {value!r}, which is not up to 8 hex digits")
    for value in fields.get("Serial", ()):
        found.add_serial(origin, value)


def _read_tree(properties: Mapping[str, bytes], origin: str, found: Readings) -> None:
    def cells(name: str, size: int) -> int | None:
        raw = properties.get(name)
        if raw is None or len(raw) == size:
            return None if raw is None else int.from_bytes(raw, "big")
        problems = found.bad_revisions if name == TREE_REVISION else found.notes
        problems.append(f"{origin}/{name} has {len(raw)} bytes, expected {size}")
        return None

    if (code := cells(TREE_REVISION, 4)) is not None:
        found.add_revision(f"{origin}/{TREE_REVISION}", code)
    for name in ("serial-number", "chosen/rpi-serial64"):
        found.add_serial(f"{origin}/{name}", _string(properties.get(name, b"")))
    if number := cells("system/linux,serial", 8):
        found.add_serial(f"{origin}/system/linux,serial", f"{number:016x}")
    if (gbit := cells("chosen/rpi-sdram-size-gbit", 4)) and gbit <= _MAX_GBIT:
        found.memory_mib.append((f"{origin}/chosen/rpi-sdram-size-gbit", gbit * _MIB_PER_GBIT))
    if model := _string(properties.get("model", b"")):
        found.models.append((f"{origin}/model", model))
    found.compatible += [
        name for raw in properties.get("compatible", b"")[:1024].split(b"\0") if (name := _string(raw))
    ]
    found.u_boot |= "chosen/u-boot,version" in properties


def _string(raw: bytes) -> str:
    return clean(raw[: 4 * MAX_VALUE].split(b"\0")[0].decode("ascii", "replace"))
