"""What the last server of a folder was told, in ``DATA/serving.json``: its command line and environment are not those of a
command that works without it. Nothing in it is secret.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from pi_agent.errors import ConfigError
from pi_agent.fleet.place import typed
from pi_agent.fleet.settings import Settings

NAME = "serving.json"
WHERE = ("host", "hostaddr", "port", "dbname", "service")  # the parameters of libpq that lead to another database


@dataclass(frozen=True, slots=True)
class Served:
    """``database`` is ``Settings.database_name``; ``tls_cert`` is empty where the server spoke no TLS."""

    issuer: str
    database: str
    tls_cert: str


def note(settings: Settings) -> None:
    """Remember what this server was told. It serves, too, where that cannot be written."""
    cert = str(settings.tls_cert or "")
    said = json.dumps(asdict(Served(settings.issuer, settings.database_name, cert)), indent=2)
    draft = settings.data / f".{NAME}"  # of this name only one, since the server holds the folder's lock
    with contextlib.suppress(OSError):
        draft.write_text(said + "\n")  # mode 0600 by the server's umask
        draft.replace(settings.data / NAME)


def last(data: Path) -> Served | None:
    """What the last server was told; None where there was none, or its note is of no use."""
    try:
        found = Served(**json.loads((data / NAME).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if all(isinstance(value, str) for value in asdict(found).values()) else None


def same_database(one: str, other: str) -> bool:
    """Whether two names of databases mean the same one, whoever asks it."""
    return _place(one) == _place(other)


def _place(name: str) -> tuple[str, list[tuple[str, str]]]:
    """Without who asks, and how; ``postgresql:///fleet?host=/run/a`` has its server in the query."""
    address, _, query = re.sub(r"(?<=://)[^/?]*@", "", name).partition("?")
    return address, sorted(pair for pair in parse_qsl(query) if pair[0] in WHERE)


def adopted(settings: Settings) -> Settings:
    """The settings of a command that works without the server, which has its name and certificate where none is said.

    Raises ConfigError when the server's database is elsewhere, and the command names none.
    """
    before = last(settings.data)
    if before is None:
        return settings
    if not same_database(before.database, settings.database_name):
        if not settings.shares_database:
            raise ConfigError(
                f"the last server of {settings.data} used {before.database}, and no database is named here",
                key="database_url",
                hint=f"DATABASE_URL={shlex.quote(before.database)} {typed(settings.data)}; or write database_url into "
                f"{settings.data}/fleet.toml, which every command reads; if that database is given up: "
                f"rm {shlex.quote(str(settings.data / NAME))}",
            )
        sys.stderr.write(
            f"the last server of {settings.data} used {before.database}; this is about {settings.database_name}\n"
        )
    cert = Path(before.tls_cert) if before.tls_cert else None
    return replace(settings, issuer=settings.issuer or before.issuer, tls_cert=settings.tls_cert or cert)
