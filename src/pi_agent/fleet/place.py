"""Where a fleet is: as much of its settings as a command needs that only talks to its server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SOCKET = "fleet.sock"


def default_data(environ: Mapping[str, str]) -> Path:
    """The folder that is used when none is named."""
    if named := environ.get("PI_FLEET_DATA"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/pi-fleet")
    return Path(environ.get("XDG_DATA_HOME") or Path(environ.get("HOME", "/")) / ".local/share") / "pi-fleet"
