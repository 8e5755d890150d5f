"""What every route shares: who may call it, and what goes around its answer.

A route names the least role it needs with ``needs``; one that forgets is for admins. Around each answer: a request id,
the caller's rate, an ETag for what can be asked for again, and for changes the answer that was given before when the
same request comes again under the same ``Idempotency-Key``.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import secrets
import time
from collections.abc import Callable, Collection
from typing import Annotated, Any

from django.db import IntegrityError, transaction
from django.http import HttpRequest, HttpResponse, QueryDict
from ninja import Schema
from ninja.errors import HttpError
from ninja.security.base import AuthBase
from ninja.utils import check_csrf
from pydantic import AfterValidator, ConfigDict
from pydantic_core import PydanticCustomError

from pi_agent.errors import MalformedTokenError, UsageError
from pi_agent.fleet import access, audit
from pi_agent.fleet.access import Caller, ForbiddenError
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.limits import neighbourhood
from pi_agent.fleet.models import RememberedAnswer
from pi_agent.fleet.rates import Rate
from pi_agent.fleet.rest.problems import problem
from pi_agent.fleet.settings import current
from pi_agent.fleet.sources import source_of
from pi_agent.jws import load_json_object

SAFE = ("GET", "HEAD", "OPTIONS")
CALLS = Rate(limit=1200, seconds=60)
STRANGERS = Rate(limit=60, seconds=60)
REMEMBERED_SECONDS = 86400
MAX_KEY = 64
Run = Callable[..., HttpResponse]
View = Callable[..., Any]


class Body(Schema):
    """What comes with a change. A member that it does not have is refused: a misspelt ``query`` would ask for all devices."""

    model_config = ConfigDict(extra="forbid")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("unprintable", "only characters that can be seen, and spaces")
    return text


Printable = Annotated[str, AfterValidator(_printable)]  # free text: it is shown on terminals, as a device's name is


def now() -> int:
    return int(time.time())


class TooOftenError(HttpError):
    def __init__(self, wait: int) -> None:
        super().__init__(429, "too many requests")
        self.wait = wait


class Needs(AuthBase):
    """Lets a caller in who has at least ``role``. Whoever is turned away from a change is in the audit log."""

    openapi_type = "http"
    openapi_scheme = "bearer"

    def __init__(self, role: str) -> None:
        super().__init__()
        self.role = role

    def __call__(self, request: HttpRequest) -> Caller | None:
        source = source_of(request.scope)  # type: ignore[attr-defined]  # an ASGIRequest has a scope
        caller = access.caller_of(request, now())
        if caller is None:
            _count(request, STRANGERS, f"stranger {neighbourhood(source)}")
            return None
        if current().rate_limit:
            _count(request, CALLS, f"{caller.name} {source}")
        if caller.by_cookie and request.method not in SAFE and check_csrf(request) is not None:
            raise HttpError(403, "the CSRF token is missing or wrong")
        try:
            caller.check(self.role)
        except ForbiddenError:
            if request.method not in SAFE:
                detail = {"method": request.method, "path": request.path[:200], "role": caller.role, "needs": self.role}
                audit.record(
                    [Event("access.refused", "", "refused", detail)], actor=actor_of(request, caller), now=now()
                )
            raise
        return caller


def needs(role: str, **extra: Any) -> dict[str, Any]:
    """What a route says about itself: ``@router.get("/devices", **needs("reader"))``."""
    return {"auth": Needs(role), "openapi_extra": {"x-role": role, **extra}}


def keep_secret(request: HttpRequest) -> None:
    """What this request is answered holds a secret, and is not remembered for its repetition."""
    request.secret = True  # type: ignore[attr-defined]  # read by ``_once``


def actor_of(request: HttpRequest, caller: Caller | None = None) -> Actor:
    """Who is behind a request, for the audit log."""
    known = caller or request.auth  # type: ignore[attr-defined]  # ninja puts the caller there
    return Actor(known.name, known.source, getattr(request, "request_id", ""))


def _count(request: HttpRequest, rate: Rate, key: str) -> None:
    if key.endswith(("uid 0", f"uid {os.geteuid()}")):
        return  # the local socket: its users could as well open the database
    state = rate.count(key, time.monotonic())
    request.rate = state  # type: ignore[attr-defined]  # read again when the answer leaves
    if state.wait:
        raise TooOftenError(state.wait)


def strict(view: View) -> View:
    """The decorator that refuses parameters which a route does not have, as ``Body`` does members."""
    names = [name for name in inspect.signature(view).parameters if name not in ("request", "body")]

    @functools.wraps(view)
    def ask(request: HttpRequest, **values: Any) -> Any:
        check_parameters(request.GET, [name for name in names if name not in request.resolver_match.kwargs])  # type: ignore[union-attr]  # it was found
        return view(request, **values)

    return ask


def check_parameters(given: QueryDict, known: Collection[str]) -> None:
    """Raise UsageError for a parameter that is not ``known``, and for one that stands twice: which one was meant?"""
    for name, values in given.lists():
        if name not in known:
            hint = f"there {'is' if len(known) == 1 else 'are'}: {', '.join(known)}" if known else "there are none here"
            raise UsageError(f"there is no parameter {name[:64]!r}", hint=hint)
        if len(values) > 1:
            raise UsageError(f"the parameter {name!r} stands {len(values)} times", hint="send it once")


# Around each answer.


def around(run: Run) -> Run:
    """The decorator that every route gets."""

    @functools.wraps(run)
    def exchange(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        request.request_id = secrets.token_hex(8)  # type: ignore[attr-defined]  # read by actor_of
        key = request.headers.get("idempotency-key", "")
        if key and request.method not in SAFE:
            response = _once(request, key, lambda: run(request, *args, **kwargs))
        else:
            response = run(request, *args, **kwargs)
        response["X-Request-Id"] = request.request_id  # type: ignore[attr-defined]  # set above
        if state := getattr(request, "rate", None):
            response["RateLimit-Limit"], response["RateLimit-Remaining"] = str(state.limit), str(state.left)
            response["RateLimit-Reset"] = str(state.reset)
        return _conditional(request, response)

    return exchange


def _conditional(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    """An ETag, and 304 for whoever has that answer already (RFC 9110 section 13)."""
    if request.method != "GET" or response.status_code != 200 or response.streaming:
        return response
    basis = getattr(request, "etag", None) or hashlib.sha256(response.content).hexdigest()[:32]
    response["ETag"] = f'"{basis}"'
    if not getattr(request.auth, "by_cookie", True):  # type: ignore[attr-defined]  # a program, which knows what it keeps
        response["Cache-Control"] = "private, no-cache"
    given = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if response["ETag"] not in given:
        return response
    same = HttpResponse(status=304)
    for name in ("ETag", "Cache-Control", "X-Request-Id"):
        if name in response:
            same[name] = response[name]
    return same


PASSING = (401, 403, 429)  # refusals of who asks and when, not of what


def _once(request: HttpRequest, key: str, run: Callable[[], HttpResponse]) -> HttpResponse:
    """Do a change once for each key of a caller, and answer its repetitions from memory. Secrets are not remembered."""
    caller = access.caller_of(request, now())
    if caller is None or caller.by_cookie or _is_preview(request):
        return run()
    if len(key) > MAX_KEY or not key.isascii() or not key.isprintable():
        return problem(400, f"an Idempotency-Key has at most {MAX_KEY} printable characters")
    said = f"{caller.role} {request.method} {request.path}\n".encode()  # with less rights it is another request
    asked = hashlib.sha256(said + request.body).hexdigest()
    RememberedAnswer.objects.filter(created_at__lt=now() - REMEMBERED_SECONDS).delete()
    try:
        with transaction.atomic():
            known = RememberedAnswer.objects.filter(actor=caller.name, key=key).first()
            if known is not None:
                return _again(known, asked)
            response = run()
            passing = response.status_code >= 500 or response.status_code in PASSING
            if not passing and not getattr(request, "secret", False):
                RememberedAnswer.objects.create(
                    actor=caller.name,
                    key=key,
                    request_hash=asked,
                    status=response.status_code,
                    body=response.content.decode(),
                    created_at=now(),
                )
            return response
    except IntegrityError:
        return problem(409, "the same request is being served at this moment", hint="ask again")


def _is_preview(request: HttpRequest) -> bool:
    """Nothing is done, and to look at all devices takes longer than everybody else should wait for SQLite's lock."""
    try:
        return request.method == "POST" and load_json_object(request.body).get("dry_run") is True
    except MalformedTokenError:
        return False


def _again(known: RememberedAnswer, asked: str) -> HttpResponse:
    if known.request_hash != asked:
        return problem(422, "this Idempotency-Key was used for another request", hint="choose a new one")
    media = "application/json" if known.status < 400 else "application/problem+json"
    return HttpResponse(known.body, status=known.status, content_type=media, headers={"Idempotency-Replayed": "true"})
