"""Webhooks: other programs are told when a device waits for approval, looks like a copy, or was revoked.

An event that is written to the audit log is queued here in the same transaction, and sent by a thread of the server. A
delivery is a POST of JSON with ``X-Pi-Fleet-Signature: t=SECONDS,v1=HEX``: HMAC-SHA-256 of ``SECONDS.BODY`` under the
secret that was shown when the webhook was made. What is not answered with 2xx is tried again, ten times over a day.

Addresses come from admins, and still nothing is believed about them (requirement D-10): https only, http on loopback;
no redirect is followed, an attempt ends after five seconds, no more than 64 kB are read, and nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from django.db import DatabaseError, connection

from pi_agent.errors import ConflictError, UsageError
from pi_agent.fleet import outgoing
from pi_agent.fleet.models import Delivery, Webhook

if TYPE_CHECKING:
    from pi_agent.fleet.audit import Event

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECONDS = 5
MAX_ANSWER = 64 * 1024
DELAYS = (10, 30, 120, 600, 1800, 3600, 7200, 14400, 21600, 28800)
KEEP = 30 * 86400
PAUSE = 2.0

# Which audit lines are told, and what they are called; a line of enrollment only counts while the device waits.
EVENTS = {
    "device.enrolled": "pending",
    "device.same-serial": "clone",
    "device.clone": "clone",
    "device.retired-key": "clone",
    "device.board-changed": "clone",
    "device.revoke": "revoked",
    "device.quarantine": "quarantined",
}
NAMES = tuple(dict.fromkeys(EVENTS.values()))

log = logging.getLogger("pi_agent.fleet")

Post = Callable[[str, bytes, Mapping[str, str]], int]


def add(url: str, events: Iterable[str], *, by: str, now: int) -> Webhook:
    """A new webhook with a secret of its own. Raises UsageError for an address or event that cannot be."""
    wanted = tuple(dict.fromkeys(events)) or NAMES
    if unknown := [name for name in wanted if name not in NAMES]:
        raise UsageError(f"there is no event {unknown[0][:40]!r}", hint=f"the events are {', '.join(NAMES)}")
    try:
        parts = urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in LOOPBACK
        fits = parts.hostname and not parts.username and (parts.scheme == "https" or local) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError("a webhook's address is https://HOST/PATH (http:// on loopback only)")
    if Webhook.objects.filter(url=url).exists():
        raise ConflictError("there is a webhook with this address", hint="remove it first")
    secret = secrets.token_hex(32)
    return Webhook.objects.create(url=url, secret=secret, events=" ".join(wanted), created_at=now, created_by=by)


def queue(events: Iterable[Event], *, actor: str, now: int) -> None:
    """Tell all who want to know of audit lines. Inside the transaction that writes them."""
    told = [(name, event) for event in events if (name := _name(event))]
    hooks = list(Webhook.objects.all()) if told else []
    rows = []
    for name, event in told if hooks else ():
        body = json.dumps({
            "schema": "pi-fleet.event/1",
            "id": secrets.token_hex(8),
            "event": name,
            "action": event.action,
            "device": event.device,
            "actor": actor,
            "at": now,
            "detail": dict(event.detail),
        })  # fmt: skip
        rows += [
            Delivery(webhook=hook, body=body, created_at=now, next_at=now)
            for hook in hooks
            if name in hook.events.split()
        ]
    Delivery.objects.bulk_create(rows, batch_size=100)


def _name(event: Event) -> str | None:
    """What an audit line is called here, if it is of interest."""
    name = EVENTS.get(event.action) if event.result == "done" else None
    return None if name == "pending" and event.detail.get("status") != "pending" else name


def signature(secret: str, body: bytes, now: int) -> str:
    """The header that proves to a receiver who sent the body, and when."""
    tag = hmac.new(secret.encode(), f"{now}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={now},v1={tag}"


def deliver(now: int, post: Post) -> int:
    """Try what is due, each once; how many arrived. Whoever fails is tried again later, and not for ever."""
    arrived = 0
    for row in Delivery.objects.select_related("webhook").filter(next_at__lte=now).order_by("next_at")[:50]:
        body = row.body.encode()
        headers = {
            "content-type": "application/json",
            "user-agent": "pi-fleet",
            "x-pi-fleet-signature": signature(row.webhook.secret, body, now),
        }
        error = _attempt(post, row.webhook.url, body, headers)
        over = not error or row.attempts >= len(DELAYS)
        Delivery.objects.filter(pk=row.pk).update(
            attempts=row.attempts + 1,
            next_at=None if over else now + DELAYS[row.attempts],
            delivered_at=None if error else now,
            error=error,
        )
        arrived += not error
    old = Delivery.objects.filter(next_at=None, created_at__lt=now - KEEP)
    if old.exists():  # to delete nothing would still keep tokens waiting for a moment
        old.delete()
    return arrived


def _attempt(post: Post, url: str, body: bytes, headers: Mapping[str, str]) -> str:
    """What went wrong, in a few words; nothing when it arrived."""
    try:
        status = post(url, body, headers)
    except (OSError, ValueError, http.client.HTTPException) as error:  # a name that cannot be encoded is a ValueError
        return type(error).__name__
    return "" if 200 <= status < 300 else f"answered {status}"


def post_once(url: str, body: bytes, headers: Mapping[str, str]) -> int:
    """One POST, which is over after SECONDS, follows nothing and reads little. The status of its answer."""
    return outgoing.exchange("POST", url, body, headers, seconds=SECONDS, most=MAX_ANSWER)[0]


class Sender:
    """The thread that delivers, for as long as a server runs."""

    def __init__(self, *, post: Post = post_once, clock: Callable[[], float] = time.time) -> None:
        self.post, self.clock = post, clock
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        self.thread.join(SECONDS + 1)

    def _run(self) -> None:
        try:
            while not self.ended.wait(PAUSE):
                try:
                    deliver(int(self.clock()), self.post)
                except DatabaseError:
                    connection.close()  # the next round begins with a fresh one
                except Exception as error:  # noqa: BLE001  # the last line: the others are still to be told
                    log.error("telling webhooks failed with %s; this is a bug in pi-fleet", type(error).__name__)
        finally:
            connection.close()
