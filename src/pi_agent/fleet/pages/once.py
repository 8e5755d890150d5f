"""What happens once: a form is done once however often a browser sends it, and words are shown on one page."""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress

from django.contrib.sessions.backends.base import UpdateError
from django.db import DatabaseError
from django.http import HttpRequest

from pi_agent.errors import ConflictError
from pi_agent.fleet.models import RememberedAnswer
from pi_agent.fleet.pages.guard import caller_of
from pi_agent.fleet.rest.common import REMEMBERED_SECONDS

SAID = "said"


def first_time(request: HttpRequest) -> None:
    """Raise ConflictError for a form that was sent before, as F5 does. Within the transaction that does what it asks.

    Each page gives its forms another CSRF token, so the same bytes are the same form of the same page. It is remembered
    as requests of programs are, under what has nothing of the secret that was made.
    """
    now = int(time.time())
    RememberedAnswer.objects.filter(created_at__lt=now - REMEMBERED_SECONDS).delete()
    digest = hashlib.sha256(request.POST.urlencode().encode()).hexdigest()
    _, is_new = RememberedAnswer.objects.get_or_create(
        actor=caller_of(request).name,
        key=digest,
        defaults={"request_hash": digest, "status": 200, "body": "", "created_at": now},
    )
    if not is_new:
        hint = "what it made was shown then, and is not shown again; if nobody has copied it, end it and make another"
        raise ConflictError("this form was sent before, and nothing was made again", hint=hint)


def say(request: HttpRequest, words: str) -> None:
    """Have words shown on the next page. What they tell of is done, so a database that is busy now only loses the words."""
    request.session[SAID] = words
    _save(request)


def said(request: HttpRequest) -> str:
    """The words for this page, which no other page shows."""
    words: str = request.session.pop(SAID, "")
    if words:
        _save(request)
    return words


def _save(request: HttpRequest) -> None:
    with suppress(DatabaseError, UpdateError):
        request.session.save()
    request.session.modified = False  # else it would be saved again, and fail the page
