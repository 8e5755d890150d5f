"""Which URLs may be sent an assertion. A worker imports this, so it imports little."""

from __future__ import annotations

from urllib.parse import urlsplit

from pi_agent.errors import ConfigError


def check_url(url: str, *, loopback_http: bool, what: str) -> None:
    """Raise ConfigError unless ``url`` may be sent an assertion (RFC 6749 section 3.2; requirement A-13).

    https to any host; http only to a literal loopback address, and only with ``server.loopback_http``. Never with
    user information, a fragment, a backslash or a character outside printable ASCII: parsers disagree about those.
    """
    bad = any(not 0x21 <= ord(character) <= 0x7E or character in "\\#" for character in url)
    try:
        parts = urlsplit("" if bad else url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not host or "@" in parts.netloc or port == 0 or parts.scheme not in ("http", "https"):
        raise ConfigError(f"{what} is not a usable https URL", key=what, hint="it looks like https://fleet.example")
    if parts.scheme == "http" and not (loopback_http and _is_loopback(host)):
        hint = "use https"
        if _is_loopback(host):
            hint += "; for a server on this machine: --loopback-http"
        elif host == "localhost":
            hint += "; for a server on this machine: its address, such as http://127.0.0.1:8080, and --loopback-http"
        raise ConfigError(f"{what} would send secrets over plain http", key=what, hint=hint)


def _is_loopback(host: str) -> bool:
    quads = host.split(".")
    literal = len(quads) == 4 and all(quad.isascii() and quad.isdigit() and int(quad) < 256 for quad in quads)
    return host == "::1" or (literal and quads[0] == "127")
