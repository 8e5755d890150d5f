"""What is wrong with a fleet, and what to do about it. Each check looks at one thing and changes nothing."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import urlsplit

from pi_agent.errors import KeyFileError, PiAgentError
from pi_agent.fleet import client, folder, served
from pi_agent.fleet.settings import Settings

MIN_FREE_MB = 100
SEAL = "set PI_FLEET_KEY_SECRET, or the systemd credential pi-fleet-key-secret"


@dataclass(frozen=True, slots=True)
class Finding:
    """``name`` is what was looked at, ``state`` is ok, warning or problem, ``hint`` is the next step."""

    name: str
    state: str
    what: str
    hint: str = ""


def examine(settings: Settings, *, now: int) -> Iterator[Finding]:
    """Everything there is to say, in the order in which to mend it. Later checks are left out when they cannot be made."""
    for check in (_folder, _disk, _address, _sqlite):
        yield from check(settings)
    if settings.tls_cert is not None:
        yield _guarded("certificate", settings, lambda: _certificate(settings, now))
    opened = _guarded("database", settings, lambda: _open(settings))
    yield opened
    if opened.state != "ok":
        return
    yield _guarded("signing keys", settings, lambda: _keys(settings, now))
    yield _guarded("clock", settings, lambda: _clock(now))
    yield _guarded("audit log", settings, _audit)


def _guarded(name: str, settings: Settings, check: Callable[[], Finding]) -> Finding:
    from django.db import DatabaseError  # the checks before need none

    from pi_agent.fleet.database import reach_hint

    try:
        return check()
    except PiAgentError as error:
        return Finding(name, "problem", str(error), error.hint or "")
    except DatabaseError as error:
        hint = reach_hint(settings) if settings.shares_database else "pi-fleet migrate"
        return Finding(name, "problem", str(error).strip().split("\n")[0], hint)


def _folder(settings: Settings) -> Iterator[Finding]:
    try:
        folder.prepare(settings.data)
    except PiAgentError as error:
        yield Finding("data folder", "problem", str(error), error.hint or "")
    else:
        yield Finding("data folder", "ok", f"{settings.data} is for its owner alone")


def _disk(settings: Settings) -> Iterator[Finding]:
    free = shutil.disk_usage(settings.data).free // 1_000_000
    if free < MIN_FREE_MB:
        yield Finding("disk", "problem", f"{free} MB are left", "make room, or move the folder with --data")
    else:
        yield Finding("disk", "ok", f"{free:,} MB are free")


def _address(settings: Settings) -> Iterator[Finding]:
    issuer, before = settings.issuer, served.last(settings.data)
    if before is not None and issuer != before.issuer:
        what = f"{issuer} is set here, and the last server was told {before.issuer}"
        yield Finding("issuer", "warning", what, f"write it into {settings.data}/fleet.toml, for server and commands")
    elif not issuer:
        yield Finding(
            "issuer",
            "warning",
            "none is set, so devices can only be on this machine",
            "pi-fleet serve --issuer https://HOST",
        )
    elif not issuer.startswith("https:"):
        yield Finding(
            "issuer", "warning", f"{issuer} has no TLS; it works on this machine only", "--issuer https://HOST"
        )
    else:
        yield Finding("issuer", "ok", issuer)


def _certificate(settings: Settings, now: int) -> Finding:
    from pi_agent.fleet import tls

    assert settings.tls_cert is not None
    found, host = tls.validity(settings.tls_cert), urlsplit(settings.issuer).hostname or ""
    renew = f"renew {settings.tls_cert}, then: sudo systemctl reload pi-fleet"
    if trouble := found.trouble(now):
        return Finding("certificate", "problem", trouble, renew)
    if host and not found.is_for(host):
        what = f"it is for {', '.join(found.names) or 'no host'}, and boards ask for {host}"
        return Finding(
            "certificate", "warning", what, "fine behind a proxy with another one, else a certificate for it"
        )
    left = int(found.ends - now) // 86400
    if left < tls.SOON_DAYS:
        return Finding("certificate", "warning", f"it ends in {left} days", renew)
    return Finding("certificate", "ok", f"good for {left} days")


def _sqlite(settings: Settings) -> Iterator[Finding]:
    if settings.shares_database or not settings.database.exists():
        return
    try:
        with closing(sqlite3.connect(settings.database, timeout=5)) as connection:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        said = str(error)
    if said == "ok":
        yield Finding("database file", "ok", f"{settings.database.stat().st_size // 1_000_000:,} MB, undamaged")
    else:
        yield Finding("database file", "problem", f"it is damaged: {said}", "pi-fleet restore FILE")


def _open(settings: Settings) -> Finding:
    from pi_agent.fleet import database

    pending = database.pending(settings)
    if pending:
        return Finding(
            "database", "warning", f"{len(pending)} changes of its tables wait: {pending[-1]}", "pi-fleet migrate"
        )
    return Finding("database", "ok", settings.database_name)


def _keys(settings: Settings, now: int) -> Finding:
    from pi_agent.fleet import signing

    try:
        key = signing.load_ring(settings, now=now).signing(now)
    except KeyFileError:
        if settings.key_secret or not (kid := _signs(settings)):
            raise
        return Finding("signing keys", "ok", f"{kid} signs; sealed, and the server that runs has the secret")
    age = (now - key.created_at) // 86400
    if not settings.key_secret:
        what = f"{key.kid} signs, {age} days old; its private half is not sealed"
        return Finding("signing keys", "warning", what, SEAL)
    return Finding("signing keys", "ok", f"{key.kid} signs, {age} days old; sealed")


def _signs(settings: Settings) -> str:
    """The key that signs, by the server that runs, if one does: its secret may be where this process has none."""
    try:
        keys = client.connect(settings.data, lambda: settings, served=True).get("/keys")["items"]
    except PiAgentError:
        return ""
    return next((str(key["kid"]) for key in keys if key["state"] == "signing"), "")


def _clock(now: int) -> Finding:
    from pi_agent.fleet.limits import MAX_STEP
    from pi_agent.fleet.models import Device

    newest = Device.objects.filter(auth_at__isnull=False).order_by("-auth_at").values_list("auth_at", flat=True).first()
    if newest is not None and newest > now + MAX_STEP:
        what = f"it is {newest - now} s behind the newest token, so none is issued"
        return Finding("clock", "problem", what, "set the clock; if it is right: pi-fleet doctor --accept-clock")
    return Finding("clock", "ok", "not behind what it has signed")


def _audit() -> Finding:
    from pi_agent.fleet import audit

    broken = audit.verify()
    if broken is not None:
        return Finding(
            "audit log", "problem", f"line {broken} does not follow from the one before", "compare it with a backup"
        )
    return Finding("audit log", "ok", "the chain is whole")
