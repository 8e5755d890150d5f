"""What time a server says it is, without asking who it is: good for a sentence, and for nothing else (A-07, RA-08).

A clock that is wrong makes every certificate look wrong. Nothing is sent to the server, and nothing is signed or trusted
on the strength of its answer.
"""

from __future__ import annotations

import ssl
import time
from http.client import HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from pi_agent.device import clock
from pi_agent.device.transport import http_date, within
from pi_agent.errors import PiAgentError

PATIENCE = 5.0
SKEW = 300
DATE_WORDS = ("expired", "not yet valid")  # OpenSSL's, about a certificate
CLOCK_HINT = "set the clock: timedatectl; sudo systemctl restart systemd-timesyncd"


def wrong_clock(url: str, failure: str, *, proxied: bool = False) -> str:
    """Why TLS with the server at ``url`` may have failed because of our clock, or ""; ``failure`` is what TLS said."""
    if not clock.is_plausible(time.time()):
        return "the clock is wrong"
    about_dates = any(word in failure for word in DATE_WORDS)
    wrong = difference(url) if about_dates and not proxied else ""
    return f"the clock is wrong: {wrong}" if wrong else ""


def difference(url: str) -> str:
    """How far our clock is from what the server at ``url`` says, as in "it says ..., 3 days behind what the server says".

    "" when the two agree, or the server does not tell.
    """
    seen, now = server_time(url), time.time()
    if seen is None or abs(seen - now) <= SKEW:
        return ""
    direction = "behind" if seen > now else "ahead of"
    return f"it says {written(now)}, {clock.length(abs(seen - now))} {direction} what the server says"


def server_time(url: str) -> int | None:
    """The ``Date`` of the server at ``url``, in seconds since 1970, or None."""
    parts = urlsplit(url)
    if parts.scheme != "https":
        return None
    context = ssl._create_unverified_context()  # noqa: S323  # see above
    connection = HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=PATIENCE, context=context)
    try:
        return within(PATIENCE, lambda: _date(connection))
    except (OSError, HTTPException, PiAgentError):
        return None
    finally:
        connection.close()


def written(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(max(0.0, min(seconds, 2.0**31 - 1))))


def _date(connection: HTTPSConnection) -> int | None:
    connection.request("HEAD", "/")
    return http_date(connection.getresponse().getheader("Date") or "")
