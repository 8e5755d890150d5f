"""Named fields on a pipe, between the resident, its worker and the command that starts them.

``name length\\n value \\n``, repeated: the resident needs no JSON for it, and a value may hold anything. Reader and
writer stand here together. What a worker sends is read as the work of a stranger: bounded, and any flaw is a ValueError.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: the resident reads this
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FRAME = 64 * 1024
MAX_TIME = 2.0**40
NUMBERS = ("expires_in", "retry_after")
TOKEN = ("head", "tail", "expires_in")  # what comes with the outcome token


def pack(fields: Mapping[str, str | int]) -> bytes:
    """The frame of ``fields``. Names are ASCII words; values are text or whole numbers."""
    return b"".join(_field(name, str(value).encode()) for name, value in fields.items())


def unpack(frame: bytes) -> dict[str, str]:
    """The fields of a frame; a name that stands twice counts once, the last time. Raises ValueError."""
    if len(frame) > MAX_FRAME:
        raise ValueError("frame too long")
    fields: dict[str, str] = {}
    position = 0
    while position < len(frame):
        head, newline, _ = frame[position : position + 128].partition(b"\n")
        name, space, length = head.partition(b" ")
        if not newline or not space or not length.isdigit():
            raise ValueError("frame without a field head")
        start = position + len(head) + 1
        end = start + int(length)
        if frame[end : end + 1] != b"\n":
            raise ValueError("frame cut short")
        fields[name.decode("ascii")] = frame[start:end].decode()
        position = end + 1
    return fields


def unpack_answer(frame: bytes) -> dict[str, str]:
    """The fields of a child's answer. Raises ValueError also when it has no outcome, or a number that is none."""
    fields = unpack(frame)
    if "outcome" not in fields or (fields["outcome"] == "token" and not all(name in fields for name in TOKEN)):
        raise ValueError("the answer is not whole")
    for name in NUMBERS:
        text = fields.get(name, "1")
        if not (text.isascii() and text.isdigit() and len(text) < 10) or (name == "expires_in" and int(text) == 0):
            raise ValueError(f"{name} is no number of seconds")
    if not 0 <= float(fields.get("anchor") or 0) < MAX_TIME:
        raise ValueError("anchor is no time")
    return fields


def _field(name: str, value: bytes) -> bytes:
    return b"%s %d\n%s\n" % (name.encode("ascii"), len(value), value)
