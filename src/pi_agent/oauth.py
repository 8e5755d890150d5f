"""The token request and its answers (RFC 6749 sections 4.5, 5.1, 5.2), and what counts as one.

Standard library only. Writers and readers stand side by side. A reader gives a value or raises: OAuthError when the
server said no in OAuth's words, TransportError when what came back is no OAuth answer at all. Neither ever repeats
what the answer held, but for the server's own sentence, from which whatever could be a token is cut out.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus, urlencode

from pi_agent.errors import OAuthError, TransportError

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
CLIENT_CREDENTIALS, REFRESH_TOKEN = "client_credentials", "refresh_token"
CLIENT_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

MAX_TOKEN_LENGTH = 8 * 1024
MAX_LIFE = 24 * 3600

_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1
_NQSCHAR = frozenset(map(chr, range(0x20, 0x7F))) - {'"', "\\"}  # RFC 6749 appendix A: descriptions and scopes
_VSCHAR = frozenset(map(chr, range(0x21, 0x7F)))
_PERHAPS_A_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{64,}")  # servers do say "bad assertion eyJ..."


class Token:
    """An access token as it was received: ``access_token``, ``scope`` (space-separated, may be empty), ``expires_in`` seconds.

    ``refresh_token`` is "" where the server gave none (our own never does, RFC 7521 section 4.1). ``key_rotation``: our
    own server would like the device to make a new key.
    """

    __slots__ = ("access_token", "expires_in", "key_rotation", "refresh_token", "scope")

    def __init__(
        self,
        access_token: str,
        *,
        expires_in: int,
        scope: str = "",
        refresh_token: str = "",
        key_rotation: bool = False,
    ) -> None:
        self.access_token = access_token
        self.key_rotation = key_rotation
        self.expires_in = expires_in
        self.scope = scope
        self.refresh_token = refresh_token

    def __repr__(self) -> str:  # a token must not reach a log through a traceback
        return f"Token(expires_in={self.expires_in}, scope={self.scope!r})"


def grant_form(assertion: str, *, scope: str = "", resource: str = "") -> str:
    """The body of a JWT-bearer token request (RFC 7523 section 2.1; ``resource``: RFC 8707)."""
    return form({"grant_type": JWT_BEARER, "assertion": assertion, "scope": scope, "resource": resource})


def form(fields: Mapping[str, str]) -> str:
    """``fields`` as the body of a request to a token or revocation endpoint; an empty one is left out (RFC 6749 3.2)."""
    return urlencode({name: value for name, value in fields.items() if value})


def basic_credentials(client_id: str, secret: str) -> str:
    """The Authorization header's value for ``client_secret_basic`` (RFC 6749 section 2.3.1: form-encoded, then base64)."""
    return "Basic " + b64encode(f"{quote_plus(client_id)}:{quote_plus(secret)}".encode("ascii")).decode("ascii")


def token_answer(token: Token) -> dict[str, object]:
    """The members of a successful answer (RFC 6749 section 5.1), and one of our own for a device of ours."""
    answer: dict[str, object] = {
        "access_token": token.access_token,
        "token_type": "Bearer",
        "expires_in": token.expires_in,
    }
    answer |= {"key_rotation": "due"} if token.key_rotation else {}
    return answer | {"scope": token.scope} if token.scope else answer


def error_answer(error: OAuthError) -> dict[str, str]:
    """The members of an error answer (RFC 6749 section 5.2). A description keeps only the characters allowed there."""
    description = "".join(character for character in error.description if character in _NQSCHAR)
    return {"error": error.error} | ({"error_description": description} if description else {})


def read_answer(
    status: int, content_type: str, body: bytes, *, scope: str = "", retry_after: int | None = None
) -> Token:
    """The token in a token endpoint's answer.

    Believed only from status 200 with ``application/json`` and exactly the members of RFC 6749 section 5.1: a
    non-empty b64token of at most 8 KiB, ``token_type`` Bearer, ``expires_in`` a whole number of at least a second (cut
    to a day). ``scope`` is what was asked for: an answer may be narrower, never wider.
    Raises OAuthError for an OAuth error answer, TransportError for anything else.
    """
    members = json_object(status, content_type, body, retry_after=retry_after)
    if status != 200:
        raise refusal(status, members, retry_after)
    text, kind, life = members.get("access_token"), members.get("token_type"), members.get("expires_in")
    if not isinstance(text, str) or len(text) > MAX_TOKEN_LENGTH or not _B64TOKEN.fullmatch(text):
        raise _unusable("its access_token is missing or not a bearer token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise _unusable("its token_type is not Bearer")
    if type(life) is not int or life < 1:
        raise _unusable("its expires_in is not a positive whole number")
    granted = members.get("scope", scope)
    if not isinstance(granted, str) or not _NQSCHAR.issuperset(granted):
        raise _unusable("its scope is not a list of scopes")
    if scope and not set(granted.split()) <= set(scope.split()):
        raise _unusable("its scope is wider than what was asked for")
    renewal = members.get("refresh_token", "")
    if not isinstance(renewal, str) or len(renewal) > MAX_TOKEN_LENGTH or not _VSCHAR.issuperset(renewal):
        renewal = ""  # there is another way to the next token
    due = members.get("key_rotation") == "due"
    return Token(text, expires_in=min(life, MAX_LIFE), scope=granted, refresh_token=renewal, key_rotation=due)


def refusal(status: int, members: dict[str, object], retry_after: int | None) -> OAuthError | TransportError:
    """The error that an answer other than 200 stands for: the server's own refusal, or a server that is not well."""
    code, description = members.get("error"), members.get("error_description", "")
    if not isinstance(code, str) or not code or not isinstance(description, str) or status >= 500:
        return TransportError(f"the server answered {status}", reason="answer", retry_after=retry_after)
    error = _harmless(code)[:64] or "unknown_error"
    return OAuthError(error, _harmless(description)[:200], status=status, retry_after=retry_after)


def json_object(
    status: int, content_type: str, body: bytes, *, retry_after: int | None, hint: str | None = None
) -> dict[str, Any]:
    """The members of a JSON answer, whatever its status. Raises TransportError for any other body."""
    try:
        members = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        members = None
    if content_type.partition(";")[0].strip().lower() != "application/json" or not isinstance(members, dict):
        what = f"the server answered {status} without a JSON object"
        raise TransportError(what, reason="answer", retry_after=retry_after, hint=hint)
    return members


def _harmless(text: str) -> str:
    """``text`` as it may reach a terminal and a log: in the characters of RFC 6749, and without what could be a token."""
    return _PERHAPS_A_TOKEN.sub("...", "".join(character for character in text if character in _NQSCHAR))


def _unusable(why: str) -> TransportError:
    return TransportError(f"the server's token cannot be used: {why}", reason="answer")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
