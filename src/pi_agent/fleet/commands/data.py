"""``migrate``, ``backup``, ``restore``, ``doctor`` and ``simulate``: commands about the database itself. They work without
a server.
"""

from __future__ import annotations

import argparse
import os
import shlex
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_agent.errors import ConfigError, ConflictError, UsageError
from pi_agent.fleet import backup as backups
from pi_agent.fleet import client, folder, served
from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.backup import Losses
from pi_agent.fleet.commands import in_place
from pi_agent.fleet.commands.common import AS_JSON, command, count, printed, say, settings_of
from pi_agent.fleet.options import OPTIONS
from pi_agent.fleet.progress import Progress
from pi_agent.fleet.served import adopted
from pi_agent.fleet.settings import Settings

if TYPE_CHECKING:
    from pi_agent.fleet.audit import Actor

MOST_SHOWN = 20
MOST = 10_000_000
MOST_DAYS = 3650


def add_commands(commands: Any) -> None:
    """The names and options of this file's commands."""
    command(commands, "migrate", "bring the database to this version of the program", migrate)
    parser = command(commands, "backup", "copy the database to a file, also while the server runs", backup)
    parser.add_argument("file", type=Path, metavar="FILE", help="a new file")
    parser.add_argument("--json", **AS_JSON)
    parser = command(commands, "restore", "put a backup in the place of the database", restore)
    parser.add_argument("file", type=Path, metavar="FILE", help="the backup")
    parser.add_argument(
        "--database",
        dest="database_url",
        metavar=OPTIONS["database_url"].metavar,
        help="an empty PostgreSQL database, for the backup of a SQLite one",
    )
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep-revocations", action="store_true", help="what was revoked since stays revoked")
    choice.add_argument("--forget-revocations", action="store_true", help="it does not")
    parser.add_argument("--json", **AS_JSON)
    parser = command(commands, "doctor", "what is wrong, and what to do about it", doctor)
    parser.add_argument("--json", **AS_JSON)
    parser.add_argument("--accept-clock", action="store_true", help="believe this clock, and not the times in the past")
    parser = command(commands, "simulate", "add devices that do not exist, for trying and load tests", simulate)
    parser.add_argument("number", type=int, metavar="N", help="how many")
    parser.add_argument(
        "--days", type=int, default=30, metavar="D", help="how long ago the first one came (default 30)"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="another number, another fleet (default 1)")


def migrate(arguments: argparse.Namespace) -> int:
    """Bring the database to this version of the program."""
    settings = _opened(_here(arguments))
    fleet_settings.migrate()
    say(f"{settings.database_name} is ready for this version")
    return 0


def backup(arguments: argparse.Namespace) -> int:
    """Copy the database to a file, also while the server runs."""
    settings = _here(arguments)
    if settings.shares_database:
        dump = f"pg_dump --format=custom --file={arguments.file} {shlex.quote(settings.database_name)}"
        raise UsageError("PostgreSQL has its own tools for this", hint=dump)
    if not settings.database.exists():
        raise client.absent(settings)
    try:
        with Progress("pages") as progress:
            found = backups.backup(settings.database, arguments.file, copied=progress.reach)
    except KeyboardInterrupt:
        say(f"interrupted: {arguments.file} was not written")
        raise
    say(f"{count(found['devices'])} and {count(found['audit_lines'], 'line')} of the audit log are in {arguments.file}")
    say("keep it as secret as the fleet: it holds the signing keys" + (", sealed" if settings.key_secret else ""))
    return printed(arguments, {"schema": "pi-fleet.backup/1", "file": str(arguments.file), **found}, "")


def restore(arguments: argparse.Namespace) -> int:
    """Put a backup in the place of the database, or the backup of a SQLite database into an empty PostgreSQL."""
    settings = _here(arguments)
    if settings.shares_database and not backups.is_sqlite(arguments.file):
        dump = f"pg_restore --clean --if-exists --dbname={shlex.quote(settings.database_name)} {arguments.file}"
        raise UsageError(
            f"{arguments.file} is no backup of SQLite; PostgreSQL has its own tools for its own", hint=dump
        )
    folder.prepare(settings.data)
    lock = folder.take_lock(settings.lock)  # no server may run
    now = int(time.time())
    found, lost = backups.check(arguments.file), backups.losses(settings.database, arguments.file, now=now)
    say(f"the backup holds {count(found['devices'])}; its newest line in the audit log is of {_utc(found['newest'])}")
    _tell(lost)
    if lost and not (arguments.keep_revocations or arguments.forget_revocations):
        raise ConflictError(
            "the restore would forget what was revoked since",
            hint="add --keep-revocations to do it again, or --forget-revocations",
        )
    put = _move if settings.shares_database else _replace
    before = put(settings, arguments, lost if arguments.keep_revocations else None, now)
    os.close(lock)
    if before is not None:
        say(f"the database from before is {before}")
    else:
        say("assertions that were used since the backup could be used once more: wait 5 minutes before serving")
    if arguments.database_url:
        say(f"before the server starts: write database_url into {settings.data}/fleet.toml")
    return printed(arguments, {"schema": "pi-fleet.restore/1", **found, "lost": asdict(lost)}, "")


def _replace(settings: Settings, arguments: argparse.Namespace, keep: Losses | None, now: int) -> Path | None:
    _opened(settings)
    before = backups.restore(settings.database, arguments.file, keep=keep)
    _record(arguments, now)
    return before


def _move(settings: Settings, arguments: argparse.Namespace, keep: Losses | None, now: int) -> Path | None:
    """From SQLite to PostgreSQL. From then on the folder's commands know that the fleet is there, and not in its file."""
    _opened(settings)
    from pi_agent.fleet import moving  # models exist only once Django is set up

    try:
        with (
            moving.empty_database(settings),
            backups.draft(settings.database, arguments.file, keep=keep) as draft,
            Progress("rows") as progress,
        ):
            moving.fill(draft, copied=progress.reach)
            _record(arguments, now)
    except KeyboardInterrupt:
        say(f"interrupted: nothing was written into {settings.database_name}")
        raise
    if served.last(settings.data) is not None:
        served.note(settings)
    return backups.set_aside(settings.database)


def doctor(arguments: argparse.Namespace) -> int:
    """Say what is wrong, and what to do about it."""
    from pi_agent.fleet.doctor import examine  # it looks at more than a command otherwise needs

    settings, now = _here(arguments), int(time.time())
    if arguments.accept_clock:
        return _accept_clock(settings, now)
    if not settings.shares_database and not settings.database.exists():
        raise client.absent(settings)
    _opened(settings)
    found = examine(settings, now=now)
    findings = [replace(each, hint=in_place(each.hint, arguments)) for each in found]
    text = "".join(
        f"{finding.state:<8} {finding.name}: {finding.what}\n"
        + (f"{'':<8} hint: {finding.hint}\n" if finding.hint else "")
        for finding in findings
    )
    printed(arguments, {"schema": "pi-fleet.doctor/1", "findings": [asdict(finding) for finding in findings]}, text)
    return 1 if any(finding.state == "problem" for finding in findings) else 0


def _accept_clock(settings: Settings, now: int) -> int:
    """The clock was wrong once, and is right now: times in the future become now."""
    _opened(settings)
    from pi_agent.fleet import audit  # models exist only once Django is set up
    from pi_agent.fleet.audit import Event
    from pi_agent.fleet.models import Device

    changed = Device.objects.filter(auth_at__gt=now).update(auth_at=now, seen_at=now)
    audit.record([Event("clock.accept", detail={"devices": changed})], actor=_me(), now=now)
    say(f"{count(changed)} had authenticated in the future; now that is the past")
    return 0


def simulate(arguments: argparse.Namespace) -> int:
    """Add simulated devices to the registry."""
    if not 1 <= arguments.number <= MOST or not 1 <= arguments.days <= MOST_DAYS:
        raise UsageError(f"1 to {MOST:,} devices over 1 to {MOST_DAYS:,} days")
    _opened(_here(arguments))
    fleet_settings.migrate()
    from pi_agent.fleet.simulate import fill  # models exist only once Django is set up

    started = time.monotonic()
    progress = Progress("simulated devices", arguments.number)
    try:
        with progress:
            fill(arguments.number, days=arguments.days, now=int(time.time()), seed=arguments.seed, progress=progress)
    except KeyboardInterrupt:
        say(f"interrupted: {count(progress.done)} made, all of them whole")
        raise
    say(f"{count(arguments.number)} made in {time.monotonic() - started:.1f} s; pi-fleet devices simulated:true")
    return 0


def _here(arguments: argparse.Namespace) -> Settings:
    """The settings of a command that works without the server, and on the same database."""
    return adopted(settings_of(arguments))


def _opened(settings: Settings) -> Settings:
    """Django, set up for the settings of a command that works on the database itself."""
    os.umask(0o077)
    folder.prepare(settings.data)
    try:
        fleet_settings.configure(settings)
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed", hint=client.EXTRA) from error
    return settings


def _record(arguments: argparse.Namespace, now: int) -> None:
    from pi_agent.fleet import audit  # models exist only once Django is set up
    from pi_agent.fleet.audit import Event

    detail = {"file": Path(arguments.file).name, "kept_revocations": arguments.keep_revocations}
    audit.record([Event("database.restore", detail=detail)], actor=_me(), now=now)


def _me() -> Actor:
    from pi_agent.fleet.audit import Actor  # the same

    return Actor(folder.user_name(os.geteuid()), "pi-fleet")


def _tell(lost: Losses) -> None:
    """What the restore would forget, in words."""
    for client_id, status in lost.devices[:MOST_SHOWN]:
        say(f"since then {client_id} was {status}")
    if len(lost.devices) > MOST_SHOWN:
        say(f"and {len(lost.devices) - MOST_SHOWN} devices more were turned away")
    for kid in (*lost.device_keys, *lost.signing_keys)[:MOST_SHOWN]:
        say(f"since then the key {kid} was retired")
    for what, which in lost.entries[:MOST_SHOWN]:
        say(f"since then the {what} {which} was changed, used up or taken back")
    if len(lost.entries) > MOST_SHOWN:
        say(f"and {len(lost.entries) - MOST_SHOWN} ways in more")
    if lost.tokens:
        say(f"since then {count(len(lost.tokens), 'token')} that would still be good were revoked")


def _utc(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
