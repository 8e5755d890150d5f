"""Which Raspberry Pi is it? Facts in, a ``Board`` or the reason why not out.

Rules kept here:

* A Board that exists is valid, and every field of it says where it came from (``sources``).
* Sources are believed in this order: cpuinfo, device tree, mailbox. Memory is the exception: the firmware's own
  statement goes before the revision code's field, as Raspberry Pi's boot loader notes ask.
* Where sources disagree, the better one is used and ``conflicts`` tells both values. Nothing is settled in silence.
* State bits (overvoltage, warranty, OTP locks) are in ``flags`` and never in ``board_claims``.
* All of this is what the machine says about itself: root can change it, so it is information and no authorisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pi_agent.errors import UnreadableBoardError
from pi_agent.evidence import PARTS, is_pi_name, require_pi, require_proof, unreadable
from pi_agent.facts import MAX_VALUE, Facts, Readings, readings_of
from pi_agent.revision import HOW_TO_REPORT, IDENTITY_MASK, TYPE_500, TYPES, Revision, is_hex, is_unknown

REVISION_CODE = "revision code"

# Model text -> type number, after "Rev 1.2" is cut and "Plus" is "+": the names in the tables, and where the kernel's
# and the mainline device trees' words differ from them.
KERNEL_NAMES = {name: number for number, (_, name) in TYPES.items()} | {
    "Raspberry Pi Zero 2": 0x12,
    "Raspberry Pi Compute Module": 0x06,
    "Raspberry Pi 5 Model B": 0x17,
    "Raspberry Pi 500+": TYPE_500,
}
SAME_TEXT = {0x1A: 0x18}  # a CM5 Lite may call itself Compute Module 5

T = TypeVar("T")


@dataclass(frozen=True)
class Board:
    """One Raspberry Pi.

    ``revision`` is the decoded code; ``serial`` lower-case hexadecimal as found (a label, not a secret and not surely
    unique) or None; ``model`` the full name; ``memory_mib`` in MiB or None where no source settles it; ``soc``,
    ``manufacturer`` and ``pcb_revision`` texts, ``unknown (...)`` where the tables have no name; ``flags`` the words
    of the state bits; ``sources`` field -> the path or "revision code" it came from; ``conflicts`` and ``notes``
    sentences for people; ``kernel_model`` the kernel's or device tree's own words, as text only.
    """

    revision: Revision
    serial: str | None
    model: str
    memory_mib: int | None
    soc: str
    manufacturer: str
    pcb_revision: str
    flags: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)
    conflicts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    kernel_model: str | None = None

    def __post_init__(self) -> None:
        serial = self.serial
        if serial is not None and not (
            len(serial) <= 16 and is_hex(serial) and serial.strip("0") and serial == serial.lower()
        ):
            raise UnreadableBoardError("a serial is up to 16 lower-case hexadecimal digits, not all zero")
        if self.memory_mib is not None and self.memory_mib <= 0:
            raise UnreadableBoardError("memory is a positive number of MiB")
        for text in (self.model, self.soc, self.manufacturer, self.pcb_revision):
            if not text or len(text) > MAX_VALUE or not (text.isascii() and text.isprintable()):
                raise UnreadableBoardError("a board's texts are 1 to 64 printable ASCII characters")

    @property
    def type(self) -> str:
        """The short code: ``2B``, ``Zero W``, ``CM4``, ``500+``, or ``unknown (type 0x1c)``."""
        return self.revision.type


def parse_cpuinfo(text: str) -> Board:
    """The board that a ``/proc/cpuinfo`` describes, of any kernel from 2012 on.

    Sources: ``c_show`` in ``arch/arm/kernel/setup.c`` and ``arch/arm64/kernel/cpuinfo.c`` of the Raspberry Pi kernel.
    Memory is in MiB. The first of several different values of one line counts, the others are told in ``conflicts``.
    Raises ``NotARaspberryPiError`` or ``UnreadableBoardError``.
    """
    return identify(Facts(cpuinfo=text))


def board_from_revision(revision: Revision, origin: str = REVISION_CODE) -> Board:
    """The board that a revision code alone describes: no serial, and memory only where the code settles it."""
    found = Readings(revisions=[(origin, revision.code)])
    return _assemble(found, revision, origin, [])


def identify(facts: Facts) -> Board:
    """Combine all facts. Raises ``NotARaspberryPiError`` or ``UnreadableBoardError`` where they make no board."""
    found = readings_of(facts)
    is_pi = require_pi(found)
    refused = []
    for origin, code in found.revisions:
        if not is_pi:
            require_proof(code)
        try:
            revision = Revision(code)
        except UnreadableBoardError as error:
            refused.append((origin, error))
            continue
        return _assemble(found, revision, origin, _revision_conflicts(found.revisions, origin, revision))
    raise unreadable(facts, found, refused, is_pi=is_pi)


def board_claims(board: Board) -> dict[str, str | int | None]:
    """What the board says about itself in an assertion. State bits are left out; unknown values are None.

    ``revision`` is the masked code in lower-case hexadecimal, at least four digits; ``model`` the short code (``2B``).
    """
    return {
        "serial": board.serial,
        "revision": f"{board.revision.masked:04x}",
        "model": _known(board.type),
        "memory_mib": board.memory_mib,
        "soc": _known(board.soc),
        "pcb_revision": board.pcb_revision,
    }


def needs_mailbox(facts: Facts) -> bool:
    """True when neither cpuinfo nor the device tree holds the code or the serial: the firmware is the last resort."""
    found = readings_of(facts)
    return not (found.revisions and found.serials)


def _assemble(found: Readings, revision: Revision, origin: str, conflicts: list[str]) -> Board:
    sources = {"revision": origin, "flags": origin}
    sources["soc"] = sources["manufacturer"] = sources["pcb_revision"] = REVISION_CODE
    serial = _first("serial", "serial", found.serials, sources, conflicts)
    by_code = revision.memory_mib
    memory = [*found.memory_mib, (REVISION_CODE, by_code)] if by_code else found.memory_mib
    memory_mib = _first("memory in MiB", "memory_mib", memory, sources, conflicts)
    named = [(where, text) for where, text in found.models if is_pi_name(text)]
    newer = named if revision.type_number not in TYPES else []
    sources["model"], model = newer[0] if newer else (REVISION_CODE, revision.name)
    soc, manufacturer = revision.soc, revision.manufacturer
    conflicts += _model_conflicts(found.models, revision) + _core_conflicts(found.parts, revision, soc)
    notes = _unknown_notes(revision.type, soc, manufacturer) + _memory_notes(revision, memory_mib)
    return Board(
        revision=revision,
        serial=serial,
        model=model,
        memory_mib=memory_mib,
        soc=soc,
        manufacturer=manufacturer,
        pcb_revision=revision.pcb_revision,
        flags=revision.flags,
        sources=sources,
        conflicts=tuple(conflicts),
        notes=(*found.bad_revisions, *found.notes, *notes),
        kernel_model=named[0][1] if named else None,
    )


def _first(
    what: str, name: str, readings: Sequence[tuple[str, T]], sources: dict[str, str], conflicts: list[str]
) -> T | None:
    """The best reading; its origin goes into ``sources[name]``, those that differ go into ``conflicts``."""
    if not readings:
        return None
    origin, value = readings[0]
    sources[name] = origin
    for other, differs in readings[1:]:
        if differs != value:
            conflicts.append(f"{origin} says {what} {value}, {other} says {differs}")
    return value


def _revision_conflicts(revisions: Sequence[tuple[str, int]], origin: str, used: Revision) -> list[str]:
    return [
        f"{origin} says revision {used}, {other} says {code:04x}"
        for other, code in revisions
        if code & IDENTITY_MASK != used.masked
    ]


def _model_conflicts(models: Sequence[tuple[str, str]], revision: Revision) -> list[str]:
    allowed = (None, revision.type_number, SAME_TEXT.get(revision.type_number))
    return [
        f"revision {revision} is a {revision.name}, {origin} says {text}"
        for origin, text in models
        if KERNEL_NAMES.get(text.partition(" Rev ")[0].replace(" Plus", "+")) not in allowed
    ]


def _core_conflicts(parts: Sequence[str], revision: Revision, soc: str) -> list[str]:
    return [
        f"revision {revision} has a {soc}, the core {part} is in a {PARTS[part]}"
        for part in parts
        if PARTS.get(part, soc) != soc and not is_unknown(soc)
    ]


def _unknown_notes(*texts: str) -> tuple[str, ...]:
    unknown = [text.removeprefix("unknown ").strip("()") for text in texts if is_unknown(text)]
    if not unknown:
        return ()
    told = ", ".join(unknown)
    return (f"{told}: newer than this version's tables, the other fields are good; to report it: {HOW_TO_REPORT}",)


def _memory_notes(revision: Revision, memory_mib: int | None) -> tuple[str, ...]:
    if memory_mib is not None:
        return ()
    if sizes := " or ".join(str(size) for size in revision.memory_choices):
        return (f"revision {revision} was given to boards with {sizes} MB: the code cannot tell which",)
    return ("the code leaves the memory size to the firmware (chosen/rpi-sdram-size-gbit), which did not say",)


def _known(value: str) -> str | None:
    return None if is_unknown(value) else value
