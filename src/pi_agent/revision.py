"""The revision code of a Raspberry Pi: 32 bits in, a ``Revision`` out.

Rules kept here:

* A new-style code (bit 23 set) is decoded from its bits, never looked up as a whole, so a board that is newer than
  this file still tells all that its known fields say. An old-style code is a number from a closed list.
* Unknown stays unknown: a value without a name in the tables reads ``unknown (type 0x1c)``, never the nearest board.
* Bits 24 to 31 are state (warranty, OTP locks, overvoltage). They may change during the life of a board, so they are
  kept apart and are no part of ``masked``, which is what identifies the board.

Source: "Raspberry Pi revision codes" in the Raspberry Pi documentation. New-style layout, highest bit first::

    NOQu uuWw FMMM CCCC PPPP TTTT TTTT RRRR
"""

from __future__ import annotations

from dataclasses import dataclass

from pi_agent.errors import UnreadableBoardError

IDENTITY_MASK = 0x00FF_FFFF
NEW_STYLE = 0x0080_0000

# Type field (bits 4-11): the short code, and the full name as people know the board.
TYPES = {
    0x00: ("A", "Raspberry Pi Model A"),
    0x01: ("B", "Raspberry Pi Model B"),
    0x02: ("A+", "Raspberry Pi Model A+"),
    0x03: ("B+", "Raspberry Pi Model B+"),
    0x04: ("2B", "Raspberry Pi 2 Model B"),
    0x05: ("Alpha", "Raspberry Pi Alpha (early prototype)"),
    0x06: ("CM1", "Raspberry Pi Compute Module 1"),
    0x08: ("3B", "Raspberry Pi 3 Model B"),
    0x09: ("Zero", "Raspberry Pi Zero"),
    0x0A: ("CM3", "Raspberry Pi Compute Module 3"),
    0x0B: ("Custom", "Raspberry Pi custom board"),
    0x0C: ("Zero W", "Raspberry Pi Zero W"),
    0x0D: ("3B+", "Raspberry Pi 3 Model B+"),
    0x0E: ("3A+", "Raspberry Pi 3 Model A+"),
    0x0F: ("Internal 0x0f", "Raspberry Pi internal board (type 0x0f)"),
    0x10: ("CM3+", "Raspberry Pi Compute Module 3+"),
    0x11: ("4B", "Raspberry Pi 4 Model B"),
    0x12: ("Zero 2 W", "Raspberry Pi Zero 2 W"),
    0x13: ("400", "Raspberry Pi 400"),
    0x14: ("CM4", "Raspberry Pi Compute Module 4"),
    0x15: ("CM4S", "Raspberry Pi Compute Module 4S"),
    0x16: ("Internal 0x16", "Raspberry Pi internal board (type 0x16)"),
    0x17: ("5", "Raspberry Pi 5"),
    0x18: ("CM5", "Raspberry Pi Compute Module 5"),
    0x19: ("500", "Raspberry Pi 500"),
    0x1A: ("CM5 Lite", "Raspberry Pi Compute Module 5 Lite"),
    0x1B: ("CM0", "Raspberry Pi Compute Module 0"),
}

# The 500 and the 500+ share type 0x19. The codes in the field differ by memory only, and other sizes say nothing.
TYPE_500 = 0x19
MODELS_500 = {8192: TYPES[TYPE_500], 16384: ("500+", "Raspberry Pi 500+")}
EITHER_500 = ("unknown (500 or 500+)", "Raspberry Pi 500 or 500+")

PROCESSORS = {0: "BCM2835", 1: "BCM2836", 2: "BCM2837", 3: "BCM2711", 4: "BCM2712"}  # bits 12-15
MANUFACTURERS = {0: "Sony UK", 1: "Egoman", 2: "Embest", 3: "Sony Japan", 4: "Embest", 5: "Stadium"}  # bits 16-19
MEMORY_MIB = {0: 256, 1: 512, 2: 1024, 3: 2048, 4: 4096, 5: 8192, 6: 16384}  # bits 20-22; 7: the firmware tells

# Bits 24-31: the word for programs, and what it means.
FLAGS = {
    24: ("warranty-old", "overvolted at some time (older boards and firmware note it here)"),
    25: ("warranty", "overvolted or overclocked at some time"),
    26: ("bit-26", "meaning not published"),
    27: ("bit-27", "unused"),
    28: ("bit-28", "unused"),
    29: ("otp-read-disallowed", "one-time memory may not be read"),
    30: ("otp-program-disallowed", "one-time memory may not be programmed"),
    31: ("overvoltage-disallowed", "overvoltage is not allowed"),
}

# Old-style codes: type, PCB revision, the memory sizes the code was given to (MiB), manufacturer. All are BCM2835.
OLD_STYLE = {
    0x02: (0x01, "1.0", (256,), "Egoman"),
    0x03: (0x01, "1.0", (256,), "Egoman"),
    0x04: (0x01, "2.0", (256,), "Sony UK"),
    0x05: (0x01, "2.0", (256,), "Qisda"),
    0x06: (0x01, "2.0", (256,), "Egoman"),
    0x07: (0x00, "2.0", (256,), "Egoman"),
    0x08: (0x00, "2.0", (256,), "Sony UK"),
    0x09: (0x00, "2.0", (256,), "Qisda"),
    0x0D: (0x01, "2.0", (512,), "Egoman"),
    0x0E: (0x01, "2.0", (512,), "Sony UK"),
    0x0F: (0x01, "2.0", (512,), "Egoman"),
    0x10: (0x03, "1.2", (512,), "Sony UK"),
    0x11: (0x06, "1.0", (512,), "Sony UK"),
    0x12: (0x02, "1.1", (256,), "Sony UK"),
    0x13: (0x03, "1.2", (512,), "Embest"),
    0x14: (0x06, "1.0", (512,), "Embest"),
    0x15: (0x02, "1.1", (256, 512), "Embest"),
}

HOW_TO_REPORT = "run pi-agent board --record my-board, and see docs/contribute-a-board.md"


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision code and what it says. ``code`` is the full number as found, flags included.

    Raises ``UnreadableBoardError`` when made from a number that no board was ever given: zero (the kernel does not
    know), an unassigned old-style number, more than 32 bits.
    """

    code: int

    def __post_init__(self) -> None:
        if not 0 <= self.code <= 0xFFFF_FFFF:
            raise UnreadableBoardError("a revision code has 32 bits", hint="it reads like a02082, in hexadecimal")
        if self.code & NEW_STYLE:
            return
        if self.masked == 0:
            raise UnreadableBoardError(f"revision {self} means that the kernel does not know the code")
        if self.masked not in OLD_STYLE:
            raise UnreadableBoardError(
                f"revision {self} is an old-style code that was never given to a board", hint=HOW_TO_REPORT
            )

    def __str__(self) -> str:
        return f"{self.code:04x}"

    @property
    def masked(self) -> int:
        """The code without the bits that are state: what identifies the board."""
        return self.code & IDENTITY_MASK

    @property
    def new_style(self) -> bool:
        return bool(self.code & NEW_STYLE)

    @property
    def type_number(self) -> int:
        return self.code >> 4 & 0xFF if self.code & NEW_STYLE else OLD_STYLE[self.masked][0]

    @property
    def type(self) -> str:
        """The short code: ``2B``, ``Zero W``, ``CM4``, ``500+``, or ``unknown (type 0x1c)``."""
        return self._type_and_name()[0]

    @property
    def name(self) -> str:
        """The full name: ``Raspberry Pi 2 Model B``."""
        return self._type_and_name()[1]

    def _type_and_name(self) -> tuple[str, str]:
        number = self.type_number
        if number == TYPE_500:
            return MODELS_500.get(self.memory_mib or 0, EITHER_500)
        if number in TYPES:
            return TYPES[number]
        unknown = _unknown("type", number, digits=2)
        return unknown, f"Raspberry Pi, {unknown}"

    @property
    def pcb_revision(self) -> str:
        """The revision of the circuit board: ``1.2``."""
        return f"1.{self.code & 0xF}" if self.code & NEW_STYLE else OLD_STYLE[self.masked][1]

    @property
    def soc(self) -> str:
        """The chip: ``BCM2837``, or ``unknown (processor 0x5)``. Taken from bits 12-15: a 2B may carry either of two."""
        if not self.code & NEW_STYLE:
            return PROCESSORS[0]
        number = self.code >> 12 & 0xF
        return PROCESSORS.get(number) or _unknown("processor", number)

    @property
    def manufacturer(self) -> str:
        if not self.code & NEW_STYLE:
            return OLD_STYLE[self.masked][3]
        number = self.code >> 16 & 0xF
        return MANUFACTURERS.get(number) or _unknown("manufacturer", number)

    @property
    def memory_choices(self) -> tuple[int, ...]:
        """The sizes (MiB) this code was given to: one, two for ``0015``, none where only the firmware knows."""
        if not self.code & NEW_STYLE:
            return OLD_STYLE[self.masked][2]
        size = MEMORY_MIB.get(self.code >> 20 & 7)
        return (size,) if size else ()

    @property
    def memory_mib(self) -> int | None:
        """The memory in MiB, or None where the code alone does not settle it."""
        choices = self.memory_choices
        return choices[0] if len(choices) == 1 else None

    @property
    def flags(self) -> tuple[str, ...]:
        """The words of the state bits that are set, lowest bit first."""
        state = self.code >> 24
        return tuple(word for bit, (word, _) in FLAGS.items() if state >> bit - 24 & 1) if state else ()


def decode_revision(code: int | str) -> Revision:
    """Decode a revision code: a number, or its hexadecimal text as ``/proc/cpuinfo`` prints it (``a02082``).

    Raises ``UnreadableBoardError`` when the text is no such number, or the number was never given to a board.
    An unknown type, processor or manufacturer raises nothing: that field reads ``unknown (...)``.
    """
    return Revision(code if isinstance(code, int) else code_from_text(code))


def code_from_text(text: str) -> int:
    """``"a02082"`` -> 0xa02082: one to eight hexadecimal digits, either case, nothing else (kernel format ``%04x``)."""
    if not 1 <= len(text) <= 8 or not is_hex(text):
        raise UnreadableBoardError(
            "a revision code is one to eight hexadecimal digits", hint="it reads like a02082, without 0x"
        )
    return int(text, 16)


def is_hex(text: str) -> bool:
    """True for ASCII hexadecimal digits only: ``int`` would also take signs, spaces and underscores."""
    return bool(text) and not text.strip("0123456789abcdefABCDEF")


def is_unknown(value: str) -> bool:
    """True for the texts that stand where the tables have no name."""
    return value.startswith("unknown (")


def _unknown(field: str, number: int, digits: int = 1) -> str:
    return f"unknown ({field} 0x{number:0{digits}x})"
