"""Is it alive, and can it serve: ``/healthz`` and ``/readyz``. They say yes or no, and what is missing, and nothing else."""

from __future__ import annotations

from django.db import DatabaseError, connection

from pi_agent.errors import OAuthError
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import NO_STORE, READ_ONLY, Answer, Request, json_answer

ALIVE = json_answer(200, {"status": "ok"})


def ready(request: Request, *, now: int, authority: Authority) -> Answer:
    """200 when tokens can be issued: the database answers, a key can sign, the clock is not behind."""
    if request.method not in ("GET", "HEAD"):
        return READ_ONLY
    missing = [name for name, check in CHECKS.items() if not check(authority, now)]
    if missing:
        return json_answer(503, {"status": "not ready", "missing": missing}, {**NO_STORE, "retry-after": "5"})
    return json_answer(200, {"status": "ok"})


def _database(authority: Authority, now: int) -> bool:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        connection.close()
        return False
    return True


def _key(authority: Authority, now: int) -> bool:
    return authority.ring.signing(now).signs_from <= now


def _clock(authority: Authority, now: int) -> bool:
    try:
        authority.watch.check(now)
    except OAuthError:
        return False
    return True


CHECKS = {"database": _database, "signing key": _key, "clock": _clock}
