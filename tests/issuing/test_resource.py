"""The helper for services that devices call (requirements C-04, C-07, C-08, C-09)."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from pi_agent import jws
from pi_agent.errors import TransportError
from pi_agent.fleet import (
    InsufficientScopeError,
    InvalidTokenError,
    MissingTokenError,
    resource,
    signing,
    verify_access_token,
    verify_authorization,
)
from pi_agent.fleet.resource import MAX_AGE, REFETCH_SECONDS, STALE_SECONDS, Verifier, fetch_jwks
from pi_agent.jwk import public_key

ISSUER, AUDIENCE, NOW = "https://fleet.test", "https://api.test", 1_800_000_000
KEY = ec.generate_private_key(ec.SECP256R1())
OTHER = ec.generate_private_key(ec.SECP256R1())


def jwks(*keys: Any) -> bytes:
    publics = [public_key(key.public_key()) for key in keys]
    return json.dumps({"keys": [key.jwk | {"kid": key.kid, "use": "sig"} for key in publics]}).encode()


def token(key: Any = KEY, header: dict[str, Any] | None = None, **changes: Any) -> str:
    claims = {
        "iss": ISSUER,
        "sub": "pi-1",
        "client_id": "pi-1",
        "aud": AUDIENCE,
        "iat": NOW,
        "exp": NOW + 600,
        "jti": "j",
        "scope": "read write",
    }
    members = {name: value for name, value in (claims | changes).items() if value is not None}
    head = {"alg": "ES256", "typ": "at+jwt", "kid": public_key(key.public_key()).kid} | (header or {})
    head = {name: value for name, value in head.items() if value is not None}
    return jws.serialize(head, members, sign=jws.signer(key, "ES256"))


class Counted:
    """A fetch that counts, and gives what it is told to, or fails."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.count = 0

    def __call__(self, url: str) -> bytes:
        self.count += 1
        if self.answer is None:
            raise TransportError("down", reason="keys")
        return self.answer


def test_a_good_token_is_believed() -> None:
    """Device, scopes, end and board are told."""
    verifier = Verifier(ISSUER, fetch=Counted(jwks(KEY)))
    found = verifier.verify(token(board={"model": "2B"}), audience=AUDIENCE, now=NOW)
    assert (found.device, found.scopes, found.expires_at) == ("pi-1", frozenset({"read", "write"}), NOW + 600)
    assert found.board == {"model": "2B"}
    found.require("read")
    with pytest.raises(InsufficientScopeError, match="admin"):
        found.require("read", "admin")


REFUSED: dict[str, Callable[[], str]] = {
    "assertion": lambda: token(header={"typ": "pi-device-grant+jwt"}),
    "id token": lambda: token(header={"typ": "JWT"}),
    "no typ": lambda: token(header={"typ": None}),
    "empty typ": lambda: token(header={"typ": ""}),
    "typ is a number": lambda: token(header={"typ": 5}),
    "other issuer": lambda: token(iss="https://evil.test"),
    "issuer prefix": lambda: token(iss=ISSUER + ".evil"),
    "other audience": lambda: token(aud="https://other.test"),
    "audience inside another": lambda: token(aud=AUDIENCE + "/x"),
    "no audience": lambda: token(aud=None),
    "expired": lambda: token(exp=NOW - 31),
    "no exp": lambda: token(exp=None),
    "exp is text": lambda: token(exp=str(NOW + 600)),
    "exp is true": lambda: token(exp=True),
    "from the future": lambda: token(iat=NOW + 31),
    "not yet": lambda: token(nbf=NOW + 31),
    "no sub": lambda: token(sub=None),
    "scope is a list": lambda: token(scope=["read"]),
    "unknown key": lambda: token(OTHER),
    "known kid, other key": lambda: token(OTHER, {"kid": public_key(KEY.public_key()).kid}),
    "kid is a list": lambda: token(header={"kid": ["x"]}),
    "crit": lambda: token(header={"crit": ["x"]}),
    "none": lambda: ".".join([jws.b64url(b'{"alg":"none","typ":"at+jwt"}'), *token().split(".")[1:]]),
    "no token": lambda: "nonsense",
    "too long": lambda: token(board={"x": "y" * 9000}),
    "no ascii": lambda: "é.é.é",
}


@pytest.mark.parametrize("name", REFUSED)
def test_c04_what_is_not_a_token_for_us_is_refused(name: str) -> None:
    """By one kind of error, which names no value."""
    with pytest.raises(InvalidTokenError):
        Verifier(ISSUER, fetch=Counted(jwks(KEY))).verify(REFUSED[name](), audience=AUDIENCE, now=NOW)


@given(st.text() | st.binary().map(jws.b64url))
def test_c04_any_text_is_refused_as_it_should(text: str) -> None:
    """A property: no other exception comes out."""
    with pytest.raises(InvalidTokenError):
        Verifier(ISSUER, fetch=Counted(jwks(KEY))).verify(text, audience=AUDIENCE, now=NOW)


def test_c08_unknown_kids_fetch_once_a_minute() -> None:
    """A flood of tokens under made-up kids costs one fetch a minute, for all of them together."""
    fetch = Counted(jwks(KEY))
    verifier = Verifier(ISSUER, fetch=fetch)
    for number in range(200):
        with pytest.raises(InvalidTokenError):
            verifier.verify(token(header={"kid": f"k{number}"}), audience=AUDIENCE, now=NOW + number / 4)
    assert fetch.count == 1
    with pytest.raises(InvalidTokenError):
        verifier.verify(token(header={"kid": "x"}), audience=AUDIENCE, now=NOW + REFETCH_SECONDS)
    assert fetch.count == 2
    verifier.verify(token(), audience=AUDIENCE, now=NOW)


def test_c08_the_first_ones_wait_for_one_fetch() -> None:
    """A service that has just started, and is asked by many at once, fetches once, and turns nobody away."""
    asked: list[str] = []
    answer = threading.Event()

    def fetch(url: str) -> bytes:
        asked.append(url)
        answer.wait(10)
        return jwks(KEY)

    verifier, text = Verifier(ISSUER, fetch=fetch), token()
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(verifier.verify, text, audience=AUDIENCE, now=NOW) for _ in range(4)]
        time.sleep(0.2)  # so that all of them have come
        answer.set()
        assert [each.result().device for each in found] == ["pi-1"] * 4
    assert len(asked) == 1


def test_c08_a_new_key_is_found_when_it_is_needed() -> None:
    """A token under a key that was published since is believed after one fetch."""
    fetch = Counted(jwks(KEY))
    verifier = Verifier(ISSUER, fetch=fetch)
    verifier.verify(token(), audience=AUDIENCE, now=NOW)
    fetch.answer = jwks(KEY, OTHER)
    verifier.verify(token(OTHER), audience=AUDIENCE, now=NOW + REFETCH_SECONDS)
    assert fetch.count == 2


def test_c07_keys_are_fetched_anew_after_their_time() -> None:
    """A key that is no longer published is no longer believed, by when whoever retired it was told."""
    assert MAX_AGE <= signing.JWKS_SECONDS
    fetch = Counted(jwks(KEY))
    verifier = Verifier(ISSUER, fetch=fetch)
    verifier.verify(token(), audience=AUDIENCE, now=NOW)
    fetch.answer = jwks(OTHER)
    verifier.verify(token(exp=NOW + 9999), audience=AUDIENCE, now=NOW + MAX_AGE)
    with pytest.raises(InvalidTokenError):
        verifier.verify(token(exp=NOW + 9999), audience=AUDIENCE, now=NOW + MAX_AGE + 1)


@pytest.mark.parametrize("answer", [None, b"", b"<html>", b'{"keys": 5}', b'{"keys": []}'[:-2]])
def test_c09_a_failed_fetch_keeps_the_keys(answer: bytes | None) -> None:
    """For a day; then nothing is believed any more."""
    fetch = Counted(jwks(KEY))
    verifier = Verifier(ISSUER, fetch=fetch)
    verifier.verify(token(), audience=AUDIENCE, now=NOW)
    fetch.answer = answer
    verifier.verify(token(exp=NOW + 99_999), audience=AUDIENCE, now=NOW + STALE_SECONDS)
    assert fetch.count == 2
    with pytest.raises(TransportError):
        verifier.verify(token(exp=NOW + 99_999), audience=AUDIENCE, now=NOW + STALE_SECONDS + 61)


def test_without_keys_the_trouble_is_not_the_tokens() -> None:
    """A service that cannot reach the fleet answers 503 and not 401."""
    with pytest.raises(TransportError):
        Verifier(ISSUER, fetch=Counted(None)).verify(token(), audience=AUDIENCE, now=NOW)


def test_c09_a_new_key_while_the_fleet_is_down_is_not_the_tokens_fault() -> None:
    """The keys were rotated and cannot be asked for: 503, as long as nobody knows that there is no such key."""
    fetch = Counted(jwks(KEY))
    verifier = Verifier(ISSUER, fetch=fetch)
    verifier.verify(token(), audience=AUDIENCE, now=NOW)
    fetch.answer = None
    for later in (REFETCH_SECONDS, REFETCH_SECONDS + 1):
        with pytest.raises(TransportError, match="cannot be had: down"):
            verifier.verify(token(OTHER), audience=AUDIENCE, now=NOW + later)
    verifier.verify(token(), audience=AUDIENCE, now=NOW + REFETCH_SECONDS + 1)
    fetch.answer = jwks(KEY)
    with pytest.raises(InvalidTokenError, match="does not publish"):
        verifier.verify(token(OTHER), audience=AUDIENCE, now=NOW + 2 * REFETCH_SECONDS + 1)


def test_c07_other_kinds_of_keys_are_left_out() -> None:
    """Ed25519, private members, symmetric keys, no kid, no object."""
    good = public_key(KEY.public_key())
    odd = [
        public_key(ed25519.Ed25519PrivateKey.generate().public_key()).jwk | {"kid": "e"},
        {"kty": "oct", "k": "x", "kid": "o"},
        5,
        good.jwk,
        good.jwk | {"d": "x", "kid": "p"},
    ]
    assert set(resource.read_jwks(json.dumps({"keys": [*odd, good.jwk | {"kid": "good"}]}).encode())) == {"good"}


@pytest.mark.parametrize(
    "issuer",
    [
        "http://fleet.test",
        "ftp://x",
        "https://",
        "https://a@b",
        "https://x?y",
        "http://localhost@evil",
        "file:///etc/passwd",
    ],
)
def test_c07_an_issuer_is_https(issuer: str) -> None:
    """Or loopback; it comes from settings, and a mistake in them is said at once."""
    with pytest.raises(ValueError, match="issuer"):
        Verifier(issuer)


@contextmanager
def serving(answer: Callable[[http.server.BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_c07_redirects_are_not_followed() -> None:
    """Not to another place, not to a file."""
    hits = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        hits.append(handler.path)
        handler.send_response(302)
        handler.send_header("Location", "/elsewhere")
        handler.end_headers()

    with serving(answer) as url, pytest.raises(TransportError):
        fetch_jwks(url + "/oauth/jwks")
    assert hits == ["/oauth/jwks"]


def test_c07_size_is_bounded() -> None:
    """An answer without an end is left after 64 KiB."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"x" * 65536)
        except OSError:
            return

    with serving(answer) as url, pytest.raises(TransportError, match="too large"):
        fetch_jwks(url + "/oauth/jwks")


def test_c07_time_is_bounded_for_headers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that begins, and goes on by a byte now and then, is left."""
    monkeypatch.setattr(resource, "FETCH_SECONDS", 0.5)
    ended = threading.Event()

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        try:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.1):
                handler.wfile.write(b"x")
        except OSError:
            return

    with serving(answer) as url, pytest.raises(TransportError):
        fetch_jwks(url + "/oauth/jwks")
    ended.set()


def test_c09_keys_that_were_fetched_in_the_future_are_old() -> None:
    """The clock was years ahead, and is right again: the keys are asked for anew, and a key that was retired is no key."""
    fetch = Counted(jwks(KEY))
    verifier, kid = Verifier(ISSUER, fetch=fetch), public_key(KEY.public_key()).kid
    assert verifier.key(kid, NOW + 10**8)
    fetch.answer = jwks(OTHER)
    with pytest.raises(InvalidTokenError):
        verifier.key(kid, NOW)


def test_the_function_keeps_the_keys_of_each_issuer() -> None:
    """``verify_access_token`` fetches once, from loopback here, and asks the clock itself."""
    hits = []

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        hits.append(handler.path)
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(jwks(KEY))

    with serving(answer) as url:
        now = int(time.time())
        text = token(iss=url, iat=now, exp=now + 60)
        for _ in range(3):
            assert verify_access_token(text, url, AUDIENCE, scope="read").device == "pi-1"
        with pytest.raises(InsufficientScopeError):
            verify_access_token(text, url, AUDIENCE, scope="admin")
    assert hits == ["/oauth/jwks"]


def test_nothing_secret_is_in_a_repr() -> None:
    """A token that was believed shows no claims, and no token."""
    found = Verifier(ISSUER, fetch=Counted(jwks(KEY))).verify(token(), audience=AUDIENCE, now=NOW)
    assert "jti" not in repr(found)


def test_c09_nobody_waits_for_keys_that_are_fetched_again() -> None:
    """While one request asks a fleet that does not answer, the others are served with the keys that are there."""
    asked, answer = threading.Event(), threading.Event()

    def fetch(url: str) -> bytes:
        if verifier.keys:
            asked.set()
            answer.wait(10)
        return jwks(KEY)

    verifier = Verifier(ISSUER, fetch=fetch)
    text, later = token(exp=NOW + 99_999), NOW + MAX_AGE + 1
    verifier.verify(text, audience=AUDIENCE, now=NOW)
    first = threading.Thread(
        target=verifier.verify, args=(text,), kwargs={"audience": AUDIENCE, "now": later}, daemon=True
    )
    first.start()
    assert asked.wait(10)
    second = threading.Thread(
        target=verifier.verify, args=(text,), kwargs={"audience": AUDIENCE, "now": later}, daemon=True
    )
    second.start()
    second.join(5)
    assert not second.is_alive()
    answer.set()
    first.join(5)


def test_a_fleet_that_is_down_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Long before its keys are too old to be used, with the reason and the time that is left."""
    fetch = Counted(jwks(KEY))
    verifier = Verifier(ISSUER, fetch=fetch)
    verifier.verify(token(), audience=AUDIENCE, now=NOW)
    fetch.answer = None
    verifier.verify(token(exp=NOW + 99_999), audience=AUDIENCE, now=NOW + 2 * 3600)
    assert caplog.messages == [f"the keys of {ISSUER} cannot be had: down; those from before serve for 22 h"]


def test_keys_that_cannot_be_had_say_why() -> None:
    """And when to ask again."""
    with pytest.raises(TransportError, match=rf"the keys of {ISSUER} cannot be had: down") as caught:
        Verifier(ISSUER, fetch=Counted(None)).verify(token(), audience=AUDIENCE, now=NOW)
    assert caught.value.retry_after == REFETCH_SECONDS
    with pytest.raises(TransportError, match="cannot be fetched: Connection refused"):
        fetch_jwks("http://127.0.0.1:1/oauth/jwks")


@pytest.mark.parametrize("issuer", ["https://fleet.test/", "https://fleet.test/realms/x", "http://127.0.0.1:8080/"])
def test_an_issuer_with_a_slash_is_a_mistake_in_the_settings(issuer: str) -> None:
    """Said at once, with the issuer that it should be: no token is from it, and no key is behind it."""
    with pytest.raises(ValueError, match=r"has a path, which no fleet's issuer has: https?://[a-z0-9.:]+$"):
        Verifier(issuer)


@pytest.mark.parametrize("audience", ["", None])
def test_without_an_audience_nothing_is_checked(audience: Any) -> None:
    """A setting that was forgotten is an error of the service, not of its callers."""
    with pytest.raises(ValueError, match="the audience is empty"):
        verify_access_token(token(), ISSUER, audience)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic eyJ", "eyJ"])
def test_a_request_without_a_token_hears_which_kind_is_wanted(header: str | None) -> None:
    """RFC 6750 section 3.1: without an error code, since nothing was tried."""
    with pytest.raises(MissingTokenError) as caught:
        verify_authorization(header, ISSUER, AUDIENCE)
    assert (caught.value.status, caught.value.challenge) == (401, "Bearer")


BAD = 'Bearer error="invalid_token", error_description="{}"'


def test_a_refusal_is_a_status_and_a_challenge() -> None:
    """RFC 6750 section 3: why, in characters that a header may have; for a scope also which are needed."""
    with pytest.raises(InvalidTokenError) as caught:
        Verifier(ISSUER, fetch=Counted(jwks(KEY))).verify(token(aud="x"), audience='https://"é\r\n.test', now=NOW)
    assert (caught.value.status, caught.value.challenge) == (
        401,
        BAD.format("it is for another audience than https://.test"),
    )
    found = Verifier(ISSUER, fetch=Counted(jwks(KEY))).verify(token(), audience=AUDIENCE, now=NOW)
    with pytest.raises(InsufficientScopeError) as short:
        found.require("write", "admin")
    challenge = (
        'Bearer error="insufficient_scope", error_description="the token lacks the scope admin", scope="admin write"'
    )
    assert (short.value.status, short.value.challenge) == (403, challenge)
