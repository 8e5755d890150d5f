"""Views: queries with a name. ``@late`` in a query box, and ``pi-fleet devices @late``, ask what was saved under it."""

from __future__ import annotations

import re

from pi_agent import query as query_language
from pi_agent.catalogue import columns_of
from pi_agent.errors import UnknownDeviceError, UsageError
from pi_agent.fleet import paging
from pi_agent.fleet.audit import Actor, Event, record
from pi_agent.fleet.models import View

SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def save(slug: str, query: str, *, columns: str, sort: str, actor: Actor, now: int) -> View:
    """Save a view, in place of one of the same name. Raises QueryError or UsageError; a view that exists works."""
    if not SLUG.fullmatch(slug):
        raise UsageError(f"{slug[:40]!r} cannot name a view", hint="use a-z, 0-9 and -, such as late-in-berlin")
    query_language.parse(query, now)
    chosen = ",".join(columns_of(columns))
    if sort:
        paging.order_of(sort)
    values = {"query": query, "columns": chosen, "sort": sort, "created_at": now, "created_by": actor.name}
    view, _ = View.objects.update_or_create(slug=slug, defaults=values)
    record([Event("view.save", detail={"view": slug, "query": query})], actor=actor, now=now)
    return view


def get(slug: str) -> View:
    """The view of this name. Raises UnknownDeviceError."""
    view = View.objects.filter(slug=slug).first()
    if view is None:
        raise UnknownDeviceError(f"there is no view {slug[:40]!r}", hint="pi-fleet view list")
    return view


def remove(slug: str, *, actor: Actor, now: int) -> None:
    """Forget a view. Raises UnknownDeviceError."""
    get(slug).delete()
    record([Event("view.remove", detail={"view": slug})], actor=actor, now=now)


def expand(text: str) -> str:
    """The query that a text stands for: itself, or what ``@slug`` at its start names, with the rest beside it."""
    if not text.lstrip().startswith("@"):
        return text
    slug, _, rest = text.lstrip()[1:].partition(" ")
    query = get(slug).query.strip()
    return f"({query}) {rest.strip()}" if query and rest.strip() else query or rest.strip()
