"""One HTTP exchange as values, for the endpoints that stand ahead of Django.

An endpoint is a function ``(request, now=..., authority=...) -> Answer``. It is given a body that is already bounded
and complete, and it knows nothing of connections. What it answers is never to be stored (RFC 6749 section 5.1).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote_plus

from pi_agent.errors import OAuthError
from pi_agent.oauth import error_answer

MAX_BODY = 64 * 1024
MAX_PARAMETERS = 50
MAX_ESCAPES = 200  # of cookies: for each of them Python before 3.12.6 may read one to its end (CVE-2024-7592)
NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}
RETRY_SPREAD = range(2, 11)

compact_json = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make an encoder for every call


@dataclass(frozen=True, slots=True)
class Request:
    """``source`` says where it came from: an IP address, or ``uid 1000`` for a peer on the local socket."""

    method: str
    body: bytes = b""
    content_type: str = ""
    authorization: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """``outcome`` is for the metrics: an OAuth error code, or one word of ours."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    outcome: str = "ok"


def json_answer(
    status: int, members: Mapping[str, object], headers: Mapping[str, str] = NO_STORE, *, outcome: str = "ok"
) -> Answer:
    return Answer(status, compact_json(members).encode(), {"content-type": "application/json", **headers}, outcome)


READ_ONLY = json_answer(405, {"error": "invalid_request"}, {**NO_STORE, "allow": "GET, HEAD"})


def oauth_refusal(error: OAuthError, **more: str) -> Answer:
    """An OAuth error answer (RFC 6749 section 5.2), with the header that each status asks for. ``more`` adds members."""
    headers = dict(NO_STORE)
    if error.status == 401:
        headers["www-authenticate"] = (
            'Bearer error="invalid_token"' if error.error == "invalid_token" else 'Basic realm="pi-fleet"'
        )
    if error.status == 405:
        headers["allow"] = "POST"
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    return json_answer(error.status, error_answer(error) | more, headers, outcome=error.error)


def problem_answer(error: OAuthError) -> Answer:
    """The same refusal as problem details (RFC 9457), for who did not ask by OAuth."""
    members = {"type": "about:blank", "status": error.status, "detail": error.description}
    return json_answer(error.status, members, {**NO_STORE, "content-type": "application/problem+json"})


def try_again(description: str) -> OAuthError:
    """The server cannot serve this now. The wait is random, so that those who were sent away do not return together."""
    wait = random.choice(RETRY_SPREAD)  # noqa: S311  # a spread, not a secret
    return OAuthError("temporarily_unavailable", description, status=503, retry_after=wait)


def too_large() -> OAuthError:
    return OAuthError("invalid_request", f"the body is larger than {MAX_BODY} bytes", status=413)


def too_slow(seconds: float) -> OAuthError:
    return OAuthError("invalid_request", f"the body took longer than {seconds:g} s", status=408)


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def check_post(request: Request, content_type: str) -> None:
    """Raise OAuthError unless this is a POST of ``content_type``."""
    if request.method != "POST":
        raise OAuthError("invalid_request", "only POST is served here", status=405)
    if media_type(request.content_type) != content_type:
        raise OAuthError("invalid_request", f"the content type must be {content_type}")


def read_form(request: Request) -> dict[str, str]:
    """The parameters of a form, empty ones left out (RFC 6749 sections 3.2 and 4.5). Raises OAuthError.

    Only the body counts, no parameter may stand twice, and text is UTF-8 without NUL.
    """
    check_post(request, "application/x-www-form-urlencoded")
    form: dict[str, str] = {}
    try:
        pairs = request.body.decode("ascii").split("&") if request.body else []
        if len(pairs) > MAX_PARAMETERS:
            raise ValueError("too many")
        for pair in pairs:
            name, _, value = map(_unquoted, pair.partition("="))
            if name in form:
                raise OAuthError("invalid_request", "a parameter stands twice")
            if name or value:
                form[name] = value
    except ValueError as error:
        raise OAuthError("invalid_request", f"not a form of at most {MAX_PARAMETERS} parameters in UTF-8") from error
    if any("\0" in value for value in form.values()):
        raise OAuthError("invalid_request", "a parameter holds a NUL")
    return {name: value for name, value in form.items() if value}


def _unquoted(text: str) -> str:
    """What a name or a value of a form stands for (application/x-www-form-urlencoded). Most of an assertion is plain."""
    return unquote_plus(text, errors="strict") if "%" in text or "+" in text else text
