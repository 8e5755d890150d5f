"""``config.toml`` with every setting in it as a comment: what it is for, and its default."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pi_agent.device.config import Setting

HEAD = """\
# Settings of pi-agent: every one there is, with its default. `pi-agent setup` writes /etc/pi-agent/config.toml, which
# needs to hold only what differs; copy lines from here and take off the number sign. The manual is pi-agent.toml(5).
"""


RULES = """\
# Who else may have which token: a user or a group (neither: everybody who reaches the socket), audiences and scopes (none:
# those of the settings; "*": any). Several of these tables add up.
#[[local.allow]]
#user = "telemetry"
#group = ""
#audiences = ["https://api.example"]
#scopes = ["telemetry:write"]
"""


def example(settings: Iterable[Setting]) -> str:
    lines, table = [HEAD], ""
    for setting in sorted(settings, key=lambda setting: setting.name.count(".")):
        of, _, key = setting.name.rpartition(".")
        if of != table:
            lines += [f"[{of}]"]
            table = of
        choices = f": {', '.join(setting.choices)}" if setting.choices else ""
        lines += [f"# {setting.help}{choices}", f"#{key} = {json.dumps(setting.default)}", ""]
    return "\n".join([*lines, RULES])
