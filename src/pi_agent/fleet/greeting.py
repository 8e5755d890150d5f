"""What ``serve`` says when it listens: where it is, what comes next, and what looks as if it were meant otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pi_agent.errors import ConfigError
from pi_agent.fleet import served, tls
from pi_agent.fleet.client import command
from pi_agent.fleet.options import LOOPBACK
from pi_agent.fleet.served import Served
from pi_agent.fleet.settings import Settings, setup_command

PORTS = {"http": 80, "https": 443}
LONG_LIFE = 3600


def greeting(settings: Settings, sign_in: str, found: Iterable[str]) -> str:
    """``sign_in`` is how to, ``found`` what there is to warn of."""
    lines = "".join(f"  warning       {text}\n" for text in found)
    return f"""\
pi-fleet is listening on {"https" if settings.tls_cert else "http"}://{settings.bind}
  issuer        {settings.issuer}
  data folder   {settings.data}
{lines}\
  sign in       {sign_in}
  first device  {setup_command(settings.issuer)}
  then          {command(settings)} devices status:pending"""


def warnings(settings: Settings, before: Served | None, *, boards: bool, now: float) -> Iterator[str]:
    """``before`` is what the last server here was told; ``boards``: some were set up for it."""
    yield from doubts(settings)
    if settings.tls_cert is not None:
        yield from certificate_trouble(settings.tls_cert, now)
    if before is not None:
        yield from changes(settings, before, boards=boards)


def doubts(settings: Settings) -> Iterator[str]:
    """What works, and is seldom meant."""
    issuer = urlsplit(settings.issuer)
    port = issuer.port or PORTS[issuer.scheme]
    host = re.sub(r":[0-9]+$", "", issuer.netloc)
    if settings.tls_cert and port != settings.port:
        yield (
            f"the issuer says port {port}, this listens on {settings.port}: fine behind a proxy or a port forward, "
            f"else --issuer {issuer.scheme}://{host}:{settings.port}"
        )
    if not settings.tls_cert and settings.host not in LOOPBACK and not settings.trusted_proxy:
        yield (
            f"this is plain HTTP on {settings.host}, which others may reach and read: name the proxy in front of it with "
            "--trusted-proxy ADDRESS, or serve HTTPS with --tls-cert FILE"
        )
    if settings.token_lifetime > LONG_LIFE:
        yield (
            f"access tokens live {settings.token_lifetime // 60} minutes, and one that is stolen, or of a device that is "
            f"revoked, works as long at services that do not ask the fleet: better --token-lifetime {LONG_LIFE} or less"
        )


def certificate_trouble(path: Path, now: float) -> Iterator[str]:
    try:
        trouble = tls.validity(path).trouble(now)
    except ConfigError as error:  # it was loaded, so others may like it better
        yield str(error)
        return
    if trouble:
        yield f"boards will refuse the certificate in {path}: {trouble}"


def changes(settings: Settings, before: Served, *, boards: bool) -> Iterator[str]:
    """What is not as it was, and what follows from it."""
    if not served.same_database(settings.database_name, before.database):
        yield f"the database was {before.database}, and is {settings.database_name}"
    if boards and settings.issuer != before.issuer:
        yield (
            f"the issuer was {before.issuer}: a board that was set up for it is refused until it is set up anew, by "
            f"sudo pi-agent wipe-identity and {setup_command(settings.issuer)}"
        )
