"""What kind of file system a path is on, from /proc/self/mountinfo (proc(5)): does it survive a power cut, is it memory?"""

from __future__ import annotations

from pathlib import Path

MEMORY = ("tmpfs", "ramfs")
VOLATILE = ("overlay", "tmpfs", "ramfs")  # overlayroot puts everything on an overlay over a tmpfs


def read() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def kind_of(mountinfo: str, path: Path) -> str:
    """The type of the file system that holds ``path``, or "" when that is not told."""
    found, depth = "", -1
    real = path.resolve()
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split()
        if len(words) < 5 or not rest:
            continue
        point = Path(words[4].replace("\\040", " "))
        if real.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = rest.split()[0], len(point.parts)
    return found
