"""How each setting is read, and what it means: one row a setting, for the command line, the environment and the file.

A reader takes what was written (text, or a value of TOML) and raises ValueError with what it expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = ("127.0.0.1", "[::1]", "localhost")
MIN_LIFETIME, MAX_LIFETIME = 300, 24 * 3600
MIN_SECRET = 16


@dataclass(frozen=True, slots=True)
class Option:
    """``metavar`` and ``help`` as ``pi-fleet serve --help`` shows them; ``flag`` is False for what belongs on no command line."""

    read: Callable[[Any], Any]
    metavar: str
    help: str
    flag: bool = True


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("one line of text")
    return value


def address(value: Any) -> str:
    host, colon, port = text(value).rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("HOST:PORT, such as 127.0.0.1:8080")
    return value  # type: ignore[no-any-return]  # text saw a str


def issuer(value: Any) -> str:
    parts = urlsplit(text(value))
    local = parts.scheme == "http" and parts.netloc.rpartition(":")[0] in LOOPBACK
    plain = _may_stand(parts.netloc) and not (parts.path or parts.query or parts.fragment)
    if not plain or not (local or parts.scheme == "https"):
        raise ValueError("https://HOST without a path (http:// on loopback only)")
    return value  # type: ignore[no-any-return]  # text saw a str


def _may_stand(netloc: str) -> bool:
    """Whether it is a host, with a port or without; a user is for databases."""
    port = netloc.rpartition(":")[2] if re.search(r":[^\]]*$", netloc) else "1"
    return bool(netloc) and "@" not in netloc and port.isdecimal() and 0 < int(port) < 65536


def database(value: Any) -> str:
    wanted = ValueError("postgresql://USER@HOST/NAME")
    try:
        parts = urlsplit(text(value))
    except ValueError:  # brackets around what is no address
        raise wanted from None
    if parts.scheme not in ("postgresql", "postgres") or len(parts.path) < 2:
        raise wanted
    before, at, _ = parts.query.partition("@")
    if "@" in parts.path or (at and "=" not in before):  # the host would begin in the password, and be shown
        raise ValueError("postgresql://USER:PASSWORD@HOST/NAME; in the password, / is written %2F and ? is %3F")
    return value  # type: ignore[no-any-return]  # text saw a str


def secret(value: Any) -> str:
    if len(text(value)) < MIN_SECRET:
        raise ValueError(f"at least {MIN_SECRET} characters, such as `openssl rand -hex 32` gives")
    return value  # type: ignore[no-any-return]  # text saw a str


def file(value: Any) -> Path:
    return Path(text(value)).absolute()


def networks(value: Any) -> tuple[str, ...]:
    """Addresses and networks, separated by commas or spaces."""
    import ipaddress  # only who sets this needs it

    names = value if isinstance(value, list | tuple) else text(value).replace(",", " ").split()
    try:
        return tuple(str(ipaddress.ip_network(text(name), strict=False)) for name in names)
    except ValueError as error:
        raise ValueError("addresses or networks, such as 127.0.0.1 or 10.0.0.0/8") from error


def switch(value: Any) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in known:
        raise ValueError("true or false")
    return known[str(value).lower()]


def choice(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(words))
        return str(value)

    return read


def whole(low: int, high: int, unit: str = "") -> Callable[[Any], int]:
    return lambda value: int(_number(value, low, high, unit))


def number(low: float, high: float, unit: str = "") -> Callable[[Any], float]:
    return lambda value: _number(value, low, high, unit)


def _number(value: Any, low: float, high: float, unit: str) -> float:
    try:
        found = float(value)
    except (ValueError, TypeError, OverflowError):
        found = -1.0
    if not low <= found <= high:
        raise ValueError(f"{low} to {high} {unit}".strip())
    return found


OPTIONS: dict[str, Option] = {
    "bind": Option(address, "HOST:PORT", "where to listen; port 0 is any"),
    "issuer": Option(issuer, "URL", "the name devices know it by, such as https://fleet.example.org"),
    "audience": Option(text, "TEXT", "whom access tokens are for; the issuer when empty"),
    "scopes": Option(text, "SCOPES", "what a new device may ask for, separated by spaces"),
    "token_lifetime": Option(whole(MIN_LIFETIME, MAX_LIFETIME, "seconds"), "SECONDS", "life of an access token"),
    "database_url": Option(database, "URL", "PostgreSQL instead of SQLite: postgresql://USER@HOST/NAME"),
    "busy_timeout": Option(number(0, 60, "seconds"), "SECONDS", "how long a request waits for a locked database"),
    "key_days": Option(whole(1, 3650, "days"), "DAYS", "a new signing key after this time"),
    "key_secret": Option(secret, "TEXT", "seals the signing keys in the database", flag=False),
    "device_key_days": Option(
        whole(0, 3650, "days"), "DAYS", "devices are asked for a new key after this time; 0 never"
    ),
    "clone_policy": Option(
        choice("alarm", "quarantine"), "POLICY", "when one key answers from two places: alarm, or quarantine"
    ),
    "rate_limit": Option(switch, "BOOL", "whether the limits on requests are in force"),
    "request_rate": Option(number(0.01, 1e6, "a second"), "N", "requests a second from one address"),
    "request_burst": Option(whole(1, 10_000_000), "N", "requests at once from one address"),
    "device_rate": Option(number(0.001, 1e6, "a second"), "N", "token requests a second from one device"),
    "device_burst": Option(whole(1, 10_000_000), "N", "token requests at once from one device"),
    "registration_rate": Option(number(0.001, 1e6, "a second"), "N", "registrations a second from one address"),
    "registration_burst": Option(whole(1, 10_000_000), "N", "registrations at once from one address"),
    "trusted_proxy": Option(networks, "NETWORKS", "proxies whose X-Forwarded-For says where a request came from"),
    "tls_cert": Option(file, "FILE", "certificate chain in PEM: serve HTTPS without a proxy"),
    "tls_key": Option(file, "FILE", "private key of the certificate"),
    "max_connections": Option(whole(1, 1_000_000), "N", "connections open at once"),
    "address_connections": Option(
        whole(1, 1_000_000), "N", "connections open at once from one address that is no trusted proxy"
    ),
    "header_seconds": Option(number(0.1, 600, "seconds"), "SECONDS", "for the headers of a request to arrive"),
    "body_seconds": Option(number(0.1, 600, "seconds"), "SECONDS", "for the body of a request to arrive"),
    "idle_seconds": Option(
        number(0.1, 75, "seconds"), "SECONDS", "until a connection ends that is silent, or takes no answer"
    ),
    "log": Option(choice("text", "json"), "FORM", "how the log on stderr is written, text or json"),
}
