"""What ``serve`` says when it listens: where it is, what comes next, and what looks as if it were meant otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from pi_agent.fleet.client import command
from pi_agent.fleet.options import LOOPBACK
from pi_agent.fleet.settings import Settings, setup_command

PORTS = {"http": 80, "https": 443}


def greeting(settings: Settings, link: str) -> str:
    sign_in = f"{link}  (works once, for 15 minutes)" if link else f"{command(settings)} sign-in-link --operator NAME"
    warnings = "".join(f"  warning       {text}\n" for text in doubts(settings))
    return f"""\
pi-fleet is listening on {"https" if settings.tls_cert else "http"}://{settings.bind}
  issuer        {settings.issuer}
  data folder   {settings.data}
{warnings}\
  sign in       {sign_in}
  first device  {setup_command(settings.issuer)}
  then          {command(settings)} devices status:pending"""


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
