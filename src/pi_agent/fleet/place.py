"""Where a fleet is: as much of its settings as a command needs that only talks to its server."""

from __future__ import annotations

import os
import sys
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


def program() -> str:
    """What to type for this program: its name, or its path where the name would not find it."""
    import shutil  # only who is told to type something needs it

    path = sys.argv[0]
    return path if Path(path).name == "pi-fleet" and shutil.which("pi-fleet") != path else "pi-fleet"


def typed(data: Path) -> str:
    """This command line, as it has to be typed for the fleet in ``data`` whoever types it, and whatever their PATH."""
    import re  # only who is told to type it again needs these
    import shlex

    program = sys.argv[0] if Path(sys.argv[0]).name == "pi-fleet" else "pi-fleet"
    words = sys.argv[1:]
    named = any(word.partition("=")[0] == "--data" for word in words)
    hidden = r"(://[^/@:]*):[^/]*(?=@)|(?<![^?&\s])(\w*password\w*=)[^&\s]*"  # a database's password
    shown = [re.sub(hidden, lambda found: found[1] or f"{found[2]}...", word) for word in words]
    return shlex.join([program, *([] if named else ["--data", str(data)]), *shown])
