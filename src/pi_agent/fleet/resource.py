"""For services that devices call: believe an access token of a fleet, or say why not (RFC 9068 section 4, RFC 6750).

    from pi_agent.fleet import verify_authorization
    token = verify_authorization(header, issuer="https://fleet.example.org", audience="https://api.example.org")

Needs no Django and no database: the fleet's published keys are fetched and kept. How they are kept (requirements C-07 to
C-09): over TLS, without following redirects, bounded in time and size; used for at most MAX_AGE; an unknown kid asks
for them again at most once in REFETCH_SECONDS, whoever sends such tokens; a fetch that fails leaves the keys that are
there, for at most STALE_SECONDS. A token is believed until it ends, also when it was revoked before: who must know at
once asks the fleet by introspection.
"""

from __future__ import annotations

import functools
import http.client
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pi_agent import jws
from pi_agent.errors import InvalidAssertionError, MalformedTokenError, TransportError
from pi_agent.fleet import outgoing
from pi_agent.jwk import PublicKey, load_jwk

JWKS_PATH = "/oauth/jwks"
FETCH_SECONDS, MAX_JWKS = 5, 64 * 1024
MAX_AGE = 300  # what the fleet asks of everybody (signing.JWKS_SECONDS), and tells whoever retires a key
REFETCH_SECONDS, STALE_SECONDS = 60, 86400
SKEW = 30
MAX_TOKEN = 8 * 1024
LOOPBACK = ("127.0.0.1", "::1", "localhost")

log = logging.getLogger(__name__)

Fetch = Callable[[str], bytes]


class InvalidTokenError(InvalidAssertionError):
    """The token must not be believed; ``claim`` names what was wrong. Answer ``status``, with ``challenge`` in WWW-Authenticate."""

    exit_code = 4
    status = 401

    @property
    def challenge(self) -> str:
        """What the caller may know (RFC 6750 section 3)."""
        return f'Bearer error="invalid_token", error_description="{_quotable(str(self))}"'


class MissingTokenError(InvalidTokenError):
    """No token came. The challenge says which kind is wanted, and names no error (RFC 6750 section 3.1)."""

    @property
    def challenge(self) -> str:
        return "Bearer"


class InsufficientScopeError(InvalidTokenError):
    """The token is good, and does not allow this; ``scopes`` are all that are needed."""

    status = 403

    def __init__(self, message: str, *, claim: str = "scope", scopes: Iterable[str] = ()) -> None:
        super().__init__(message, claim=claim)
        self.scopes = frozenset(scopes)

    @property
    def challenge(self) -> str:
        needed = _quotable(" ".join(sorted(self.scopes)))
        return f'Bearer error="insufficient_scope", error_description="{_quotable(str(self))}", scope="{needed}"'


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A token that was believed. ``board`` is what the device enrolled as, or None; ``expires_at`` is seconds since 1970."""

    device: str
    audience: str
    scopes: frozenset[str]
    expires_at: int
    board: Mapping[str, Any] | None
    claims: Mapping[str, Any] = field(repr=False)

    def require(self, *scopes: str) -> None:
        """Raise InsufficientScopeError unless the token has all of ``scopes``."""
        if missing := sorted(set(scopes) - self.scopes):
            raise InsufficientScopeError(f"the token lacks the scope {' '.join(missing)}", scopes=scopes)


def verify_access_token(token: str, issuer: str, audience: str, *, scope: str = "") -> AccessToken:
    """Believe an access token of ``issuer`` for ``audience`` that has all scopes of ``scope``.

    Raises InvalidTokenError for the token, TransportError when no keys of the issuer could be had yet, and ValueError
    when issuer or audience cannot be one.
    """
    if not audience:
        raise ValueError(
            "the audience is empty: it says which tokens are for this service, and without it all would be"
        )
    believed = _verifier(issuer).verify(token, audience=audience, now=time.time())
    believed.require(*scope.split())
    return believed


def verify_authorization(header: str | None, issuer: str, audience: str, *, scope: str = "") -> AccessToken:
    """The same for the value of an Authorization header, as it came. Raises MissingTokenError when it holds no token."""
    kind, _, token = (header or "").strip().partition(" ")
    if kind.lower() != "bearer" or not token:
        raise MissingTokenError("there is no bearer token in the Authorization header", claim="token")
    return verify_access_token(token.strip(), issuer, audience, scope=scope)


class Verifier:
    """The keys of one issuer. ``fetch`` gives the bytes behind a URL, or raises TransportError."""

    def __init__(self, issuer: str, *, fetch: Fetch | None = None) -> None:
        _check_issuer(issuer)
        self.issuer = issuer
        self.fetch = fetch or fetch_jwks
        self.keys: dict[str, PublicKey] = {}
        self.fetched = self.tried = float("-inf")
        self.trouble = ""  # of the last fetch
        self.lock = threading.Lock()

    def verify(self, token: str, *, audience: str, now: float) -> AccessToken:
        """Believe a token, or raise InvalidTokenError. ``now`` is seconds since 1970."""
        try:
            if len(token) > MAX_TOKEN:
                raise MalformedTokenError("too long")
            parsed = jws.parse(token)
            if parsed.header.get("typ", "").lower() not in ("at+jwt", "application/at+jwt"):
                raise InvalidTokenError("this is no access token", claim="typ")
            key = self.key(parsed.header.get("kid"), now)
            jws.verify_signature(parsed, key=key.key, alg=key.algorithms[0])
        except (MalformedTokenError, AttributeError) as error:
            raise InvalidTokenError("this is no access token", claim="token") from error
        except InvalidTokenError:
            raise
        except InvalidAssertionError as error:
            raise InvalidTokenError(str(error), claim=error.claim) from error
        return _believe(parsed.claims, self.issuer, audience, now)

    def key(self, kid: object, now: float) -> PublicKey:
        """The issuer's key of that name; the keys are fetched when they are old, or do not have it."""
        found = self.keys.get(kid) if isinstance(kid, str) else None
        age = now - self.fetched
        enough = STALE_SECONDS if 0 <= now - self.tried < REFETCH_SECONDS else MAX_AGE
        if found and 0 <= age <= enough:
            return found  # without waiting for whoever fetches, which takes long while the fleet is down
        with self.lock:
            known = isinstance(kid, str) and kid in self.keys
            age = now - self.fetched
            if (not 0 <= age <= MAX_AGE or not known) and not 0 <= now - self.tried < REFETCH_SECONDS:
                self._refresh(now)
            if not isinstance(kid, str):
                raise InvalidTokenError("it names no key", claim="kid")
            if now - self.fetched > STALE_SECONDS or (self.trouble and kid not in self.keys):  # it may be a new one
                message = f"the keys of {self.issuer} cannot be had: {self.trouble}"
                raise TransportError(message, reason="keys", retry_after=REFETCH_SECONDS)
            if kid not in self.keys:
                raise InvalidTokenError("it was signed with a key that the issuer does not publish", claim="kid")
            return self.keys[kid]

    def _refresh(self, now: float) -> None:
        self.tried = now
        try:
            self.keys = read_jwks(self.fetch(self.issuer + JWKS_PATH))
            self.fetched, self.trouble = now, ""
        except (TransportError, MalformedTokenError) as error:
            self.trouble = str(error)  # the keys that are there are used on
            left = max(0, STALE_SECONDS - (now - self.fetched)) / 3600
            log.warning(
                "the keys of %s cannot be had: %s; those from before serve for %.0f h", self.issuer, error, left
            )


def read_jwks(data: bytes) -> dict[str, PublicKey]:
    """The ES256 keys of a JWK set, by kid. Others are left out. Raises MalformedTokenError when it is none."""
    keys = jws.load_json_object(data).get("keys")
    if not isinstance(keys, list):
        raise MalformedTokenError("this is no JWK set")
    found = {}
    for jwk in keys:
        try:
            key = load_jwk(jwk)
        except (MalformedTokenError, AttributeError, KeyError, TypeError):
            continue
        if key.algorithms == ("ES256",) and isinstance(jwk.get("kid"), str):
            found[jwk["kid"]] = key
    return found


def fetch_jwks(url: str) -> bytes:
    """What is behind a URL: no redirects, no proxy or netrc of the environment, at most MAX_JWKS bytes in FETCH_SECONDS."""
    try:
        headers = {"accept": "application/json"}
        status, data = outgoing.exchange("GET", url, b"", headers, seconds=FETCH_SECONDS, most=MAX_JWKS + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise TransportError(f"{url} cannot be fetched: {why}", reason="keys") from error
    if status != 200:
        raise TransportError(f"{url} cannot be fetched: it answered {status}", reason="keys")
    if len(data) > MAX_JWKS:
        raise TransportError(f"{url} is too large", reason="answer")
    return data


@functools.lru_cache(maxsize=64)
def _verifier(issuer: str) -> Verifier:
    return Verifier(issuer)


def _check_issuer(issuer: str) -> None:
    """Raise ValueError unless ``issuer`` is an https URL (http on loopback only). It comes from settings, never from a token.

    A fleet's issuer has no path. With the slash that is so easily added no token would ever be from it.
    """
    parts = urlsplit(issuer)
    if parts.scheme and parts.path:
        raise ValueError(f"{issuer!r} has a path, which no fleet's issuer has: {parts.scheme}://{parts.netloc}")
    local = parts.scheme == "http" and parts.hostname in LOOPBACK
    if (
        not (parts.scheme == "https" or local)
        or not parts.hostname
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise ValueError(f"{issuer!r} is no https issuer")


def _believe(claims: Mapping[str, Any], issuer: str, audience: str, now: float) -> AccessToken:
    """The checks of RFC 9068 section 4 that follow the signature."""
    if claims.get("iss") != issuer:
        raise InvalidTokenError(f"it is from another issuer than {issuer}", claim="iss")
    aud = claims.get("aud")
    if audience != aud and not (isinstance(aud, list) and audience in aud):
        raise InvalidTokenError(f"it is for another audience than {audience}", claim="aud")
    if not now < _seconds(claims, "exp") + SKEW:
        raise InvalidTokenError("it has expired", claim="exp")
    for name in ("iat", "nbf"):
        if name in claims and _seconds(claims, name) > now + SKEW:
            raise InvalidTokenError("it is from the future", claim=name)
    device, scope, board = claims.get("sub"), claims.get("scope", ""), claims.get("board")
    if not isinstance(device, str) or not device or not isinstance(scope, str):
        raise InvalidTokenError("it names no device", claim="sub")
    return AccessToken(
        device=device,
        audience=audience,
        scopes=frozenset(scope.split()),
        expires_at=_seconds(claims, "exp"),
        board=board if isinstance(board, dict) else None,
        claims=claims,
    )


def _quotable(text: str) -> str:
    """``text`` without the characters that a value in a challenge cannot have."""
    return re.sub(r"[^\x20-\x7e]|[\"\\]", "", text)


def _seconds(claims: Mapping[str, Any], name: str) -> int:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidTokenError(f"its {name} is not a number", claim=name)
    return int(value)
