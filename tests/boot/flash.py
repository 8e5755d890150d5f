"""Which files on the card a process has written, by the words of ``strace -f -y``, which names the file behind each descriptor."""

from __future__ import annotations

import re

TRACE = "strace -f -y -qq -s 0 -e trace=%file,write,pwrite64,writev,pwritev,ftruncate,fallocate"
WRITES = re.compile(r"\b(?:p?write(?:v|64)?|f(?:truncate|allocate))\(\d+<(/[^>]*)>")
OPENS = re.compile(r'\b(?:open|openat|openat2)\(.*?"([^"]+)".*(?:O_CREAT|O_WRONLY|O_RDWR)')
MAKES = re.compile(
    r'\b(?:creat|truncate|rename\w*|link|linkat|symlink\w*|mkdir\w*|mknod\w*|unlink\w*|rmdir)\(.*?"([^"]+)"'
)
MEMORY = ("/run/", "/dev/", "/proc/", "/sys/")


def card_writes(trace: list[str]) -> list[str]:
    """The files that were written, made, renamed or removed outside of memory; a call that failed did nothing."""
    done = [line for line in trace if " = -1 " not in line]
    found = [match[1] for line in done for form in (WRITES, OPENS, MAKES) if (match := form.search(line))]
    return sorted({path for path in found if path.startswith("/") and not path.startswith(MEMORY)})
