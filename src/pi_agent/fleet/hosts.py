"""Which names of devices are names of hosts: a device calls itself what it likes, and an operator's own programs, which
are told of devices by their names, go where a name leads.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

MAX_NAME = 63
LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
NAME = re.compile(rf"{LABEL}(?:\.{LABEL})*", re.ASCII)
ID = re.compile(r"pi-[0-9a-f]{16}", re.ASCII)  # could be another device's, of this query or not
NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)  # at its end it makes a name an address (inet_aton(3))
HERE = "localhost"  # alone or with a domain: the machine of whoever asks


def leading(names: Iterable[str]) -> set[str]:
    """Those of the names of some devices by which each is meant and nobody else, whatever the case of their letters."""
    names = list(names)
    times = Counter(map(str.lower, names))
    return {name for name in names if times[name.lower()] == 1 and _is_host(name.lower())}


def _is_host(name: str) -> bool:
    if len(name) > MAX_NAME or not NAME.fullmatch(name) or ID.fullmatch(name):
        return False
    labels = name.split(".")
    return HERE not in labels and not NUMBER.fullmatch(labels[-1])
