"""The token request and its answers: what counts as a token, and everything that libraries have taken for one."""

from __future__ import annotations

import contextlib
import json
from typing import Any
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent import oauth
from pi_agent.errors import OAuthError, TransportError
from pi_agent.oauth import Token

JSON = "application/json"
GOOD: dict[str, Any] = {"access_token": "eyJhbGciOi.J9.sig-_~+/=", "token_type": "Bearer", "expires_in": 1800}


def read(members: Any = None, *, status: int = 200, media: str = JSON, scope: str = "", **more: Any) -> Token:
    body = members if isinstance(members, bytes) else json.dumps(GOOD if members is None else members).encode()
    return oauth.read_answer(status, media, body, scope=scope, **more)


def unusable(members: Any = None, *, status: int = 200, media: str = JSON, scope: str = "") -> str:
    with pytest.raises(TransportError) as caught:
        read(members, status=status, media=media, scope=scope)
    assert caught.value.reason == "answer"
    return str(caught.value)


def without(name: str) -> dict[str, Any]:
    return {other: value for other, value in GOOD.items() if other != name}


# Round trips

TEXT = st.text(st.sampled_from("abcXYZ019._~-"), min_size=1, max_size=40)


@given(token=TEXT, life=st.integers(1, oauth.MAX_LIFE), scope=st.lists(TEXT, max_size=3, unique=True).map(" ".join))
def test_what_the_fleet_answers_the_device_reads(token: str, life: int, scope: str) -> None:
    """token_answer and read_answer are each other's inverse for every token."""
    answer = oauth.token_answer(Token(token, expires_in=life, scope=scope))
    found = read(json.loads(json.dumps(answer)), scope=scope)
    assert (found.access_token, found.expires_in, found.scope) == (token, life, scope)


@given(code=st.sampled_from(["invalid_grant", "invalid_client", "authorization_pending"]), description=st.text())
def test_an_error_the_fleet_answers_the_device_reads(code: str, description: str) -> None:
    """error_answer keeps the code, and of the description the characters that RFC 6749 section 5.2 allows."""
    answer = oauth.error_answer(OAuthError(code, description))
    with pytest.raises(OAuthError) as caught:
        read(answer, status=400)
    assert caught.value.error == code
    assert caught.value.description.isprintable()
    assert caught.value.description.isascii()


def test_the_form_holds_what_was_given_and_nothing_else() -> None:
    """grant_type and assertion always; scope and resource when there is one (RFC 7523 section 2.1, RFC 8707)."""
    assert parse_qs(oauth.grant_form("a.b.c")) == {"grant_type": [oauth.JWT_BEARER], "assertion": ["a.b.c"]}
    full = parse_qs(oauth.grant_form("a.b.c", scope="read write", resource="https://api.example/?a=1&b=2"))
    assert (full["scope"], full["resource"]) == (["read write"], ["https://api.example/?a=1&b=2"])


# A-16, M-03: what is believed


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
@pytest.mark.parametrize(
    "media", [JSON, "application/json; charset=utf-8", "Application/JSON ;x=y", " application/json"]
)
def test_a16_the_good_answer_is_believed(kind: str, media: str) -> None:
    """token_type and media type are compared without case, and parameters are no matter."""
    assert read(GOOD | {"token_type": kind}, media=media).expires_in == 1800


def test_a16_members_we_do_not_know_do_not_matter() -> None:
    """An answer may say more than we ask (RFC 6749 section 5.1)."""
    assert read(GOOD | {"refresh_token": "r", "id_token": None, "x": [1]}).access_token == GOOD["access_token"]


@pytest.mark.parametrize("text", ["a b", "a\r\nX: 1", "caf\u00e9", "\x7f", "", 7, None, ["r"], "r" * 8193])
def test_a16_a_refresh_token_that_cannot_be_one_is_not_kept(text: Any) -> None:
    """RFC 6749 appendix A.17: the access token is good, and the next one is bought with an assertion."""
    found = read(GOOD | {"refresh_token": text})
    assert (found.access_token, found.refresh_token) == (GOOD["access_token"], "")


def test_a_refresh_token_of_any_visible_characters_is_kept() -> None:
    """RFC 6749 appendix A.17: more characters than an access token may have."""
    assert read(GOOD | {"refresh_token": "r" * 8000 + '!"#|'}).refresh_token == "r" * 8000 + '!"#|'


@pytest.mark.parametrize("status", [100, 201, 202, 204, 206, 301, 304, 400, 401, 404, 500, 503])
def test_a16_m03_a_token_in_any_other_status_is_not_believed(status: int) -> None:
    """A token in a 500, a 201 or a 401 is no token."""
    assert unusable(status=status) == f"the server answered {status}"


@pytest.mark.parametrize(
    "media",
    ["text/html", "text/plain", "application/x-www-form-urlencoded", "application/json2", "text/json", "", "json"],
)
def test_a16_m03_ra10_a_token_of_another_media_type_is_not_believed(media: str) -> None:
    """A captive portal's page, or a form, is no JSON, whatever is in it."""
    assert unusable(media=media) == "the server answered 200 without a JSON object"
    assert (
        unusable(b"access_token=X&token_type=Bearer&expires_in=60", media=media)
        == "the server answered 200 without a JSON object"
    )


@pytest.mark.parametrize("name", ["access_token", "token_type", "expires_in"])
def test_a16_m03_no_member_may_be_missing(name: str) -> None:
    """A token without a type or a life is not a token with the usual ones."""
    assert name in unusable(without(name))


BAD_TOKENS = [
    "",
    " ",
    "a b",
    "a\r\nb",
    "a\nX-Evil: 1",
    "a\0",
    "caf\u00e9",
    '"',
    "a,b",
    "=",
    "=a",
    "a=b",
    "\ud800",
    "x" * 8193,
]


@pytest.mark.parametrize("token", [*BAD_TOKENS, 5, 1.5, True, None, [], ["t"], {}, {"t": 1}])
def test_a16_m03_an_access_token_is_a_b64token(token: Any) -> None:
    """Empty, too long, not text, or with a character that RFC 6750 section 2.1 does not allow: no token."""
    assert "access_token" in unusable(GOOD | {"access_token": token})


def test_a16_the_longest_token() -> None:
    """8 KiB is a token; see the list above for one character more."""
    assert len(read(GOOD | {"access_token": "x" * oauth.MAX_TOKEN_LENGTH}).access_token) == 8192


@pytest.mark.parametrize(
    "kind", ["DPoP", "mac", "N_A", "", "Bearer ", " bearer", "bearer token", None, 5, True, ["Bearer"]]
)
def test_a16_m03_another_token_type_is_not_believed(kind: Any) -> None:
    """We can only present a Bearer token."""
    assert "token_type" in unusable(GOOD | {"token_type": kind})


@pytest.mark.parametrize("life", [0, -1, -(10**18), "3600", "", 3600.0, 0.5, True, False, None, [3600], {"s": 1}])
def test_a16_ra12_m03_expires_in_is_a_positive_whole_number(life: Any) -> None:
    """Zero, negative, text, fractions, booleans and nothing are a failed attempt, not a token for ever."""
    assert "expires_in" in unusable(GOOD | {"expires_in": life})


@pytest.mark.parametrize(("life", "kept"), [(1, 1), (86400, 86400), (86401, 86400), (10**18, 86400)])
def test_ra12_a_huge_life_is_cut_to_a_day(life: int, kept: int) -> None:
    """However long the server says, we ask again tomorrow."""
    assert read(GOOD | {"expires_in": life}).expires_in == kept


# RA-09: whatever comes

NOT_OBJECTS = {
    "nothing": b"",
    "null": b"null",
    "array": b"[]",
    "number": b"5",
    "text": b'"token"',
    "truncated": b'{"access_token":"x","token_',
    "two": b"{}{}",
    "NaN": b'{"access_token":"x","token_type":"Bearer","expires_in":NaN}',
    "Infinity": b'{"access_token":"x","token_type":"Bearer","expires_in":60,"a":Infinity}',
    "deep": b"[" * 60000,
    "deep object": b'{"a":' * 20000,
    "5,000 digits": b'{"expires_in":' + b"9" * 5000 + b"}",
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "BOM": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "latin-1": '{"é":1}'.encode("latin-1"),
    "HTML": b"<html><title>Welcome to our network</title></html>",
}


@pytest.mark.parametrize("body", NOT_OBJECTS.values(), ids=NOT_OBJECTS.keys())
@pytest.mark.parametrize("status", [200, 400, 503])
def test_ra09_m03_what_is_no_json_object_is_one_kind_of_error(body: bytes, status: int) -> None:
    """Malformed, truncated, deep or foreign bodies raise TransportError and nothing else, in any status."""
    assert unusable(body, status=status) == f"the server answered {status} without a JSON object"


def test_ra09_a_number_that_is_infinite_is_no_life() -> None:
    """1e400 reads as infinity, which is no whole number."""
    assert "expires_in" in unusable(b'{"access_token":"x","token_type":"Bearer","expires_in":1e400}')


@given(
    status=st.integers(100, 599),
    media=st.sampled_from([JSON, "text/html", ""]) | st.text(max_size=20),
    body=st.binary(),
)
def test_ra09_any_bytes_give_a_token_or_our_error(status: int, media: str, body: bytes) -> None:
    """Whatever status, media type and body come, the outcome is a Token, an OAuthError or a TransportError."""
    with contextlib.suppress(OAuthError, TransportError):
        assert isinstance(oauth.read_answer(status, media, body), Token)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    max_leaves=5,
)
MEMBERS = {
    name: st.just(value) | ANYTHING
    for name, value in (GOOD | {"scope": "read", "error": "x", "error_description": "y"}).items()
}


@given(
    members=st.fixed_dictionaries({}, optional=MEMBERS),
    status=st.sampled_from([200, 400, 401, 500]),
    scope=st.sampled_from(["", "read"]),
)
def test_ra09_any_members_give_a_token_or_our_error(members: dict[str, Any], status: int, scope: str) -> None:
    """Whatever JSON the members hold, a Token keeps every promise, and an error is printable and short."""
    try:
        token = read(members, status=status, scope=scope)
    except OAuthError as error:
        assert (error.error + error.description).isprintable()
        assert 0 < len(error.error) <= 64
        assert len(error.description) <= 200
    except TransportError as error:
        assert str(error).isprintable()
    else:
        assert status == 200
        assert token.access_token
        assert 0 < token.expires_in <= oauth.MAX_LIFE
        assert token.scope.isprintable()
        assert not scope or set(token.scope.split()) <= {"read"}


# scope


@pytest.mark.parametrize(
    ("asked", "granted"),
    [("", "read write"), ("read write", "write"), ("read write", "write read"), ("read", ""), ("", "")],
)
def test_a20_a_narrower_scope_is_taken(asked: str, granted: str) -> None:
    """Less than was asked, in any order, is what we have; and without asking, the server's default."""
    assert read(GOOD | {"scope": granted}, scope=asked).scope == granted


def test_a20_no_scope_in_the_answer_is_the_one_that_was_asked_for() -> None:
    """RFC 6749 section 5.1: it may be left out when it is identical."""
    assert read(scope="read write").scope == "read write"


@pytest.mark.parametrize("granted", ["read admin", "admin", "read write", "READ", "read\u00a0read"])
def test_a20_a_wider_scope_is_refused(granted: str) -> None:
    """A scope that was not asked for is no gift."""
    assert "scope" in unusable(GOOD | {"scope": granted}, scope="read")


@pytest.mark.parametrize(
    "granted", [None, 5, True, ["read"], {}, "a\nb", "a\0", "caf\u00e9", '"', "\\", "\x1b[2J", "\ud800", "a\tb"]
)
@pytest.mark.parametrize("asked", ["", "read"])
def test_a20_a_scope_is_text_in_the_characters_of_a_scope(asked: str, granted: Any) -> None:
    """Another type, or a character that RFC 6749 section 3.3 does not allow, is refused even when we asked for nothing."""
    assert "scope" in unusable(GOOD | {"scope": granted}, scope=asked)


# Errors


@pytest.mark.parametrize("status", [400, 401, 403, 429])
def test_an_oauth_error_keeps_code_description_status_and_pause(status: int) -> None:
    """A refusal in OAuth's words comes back as they were said."""
    with pytest.raises(OAuthError) as caught:
        read({"error": "invalid_grant", "error_description": "not approved"}, status=status, retry_after=7)
    error = caught.value
    assert (error.error, error.description, error.status, error.retry_after) == (
        "invalid_grant",
        "not approved",
        status,
        7,
    )


@pytest.mark.parametrize(
    "members",
    [{"error": ""}, {"error": None}, {"error": 5}, {"error": ["x"]}, {"error": "x", "error_description": 5}, {}],
)
def test_what_is_no_oauth_error_is_a_server_that_is_not_well(members: dict[str, Any]) -> None:
    """A refusal without a code, or with another type, says nothing about this device."""
    assert unusable(members, status=400) == "the server answered 400"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_ra05_a_server_error_says_nothing_about_the_device(status: int) -> None:
    """invalid_grant in a 503 is a failing server, which is tried again soon; the pause it asks for is kept."""
    with pytest.raises(TransportError) as caught:
        read({"error": "invalid_grant"}, status=status, retry_after=30)
    assert caught.value.retry_after == 30


def test_g05_a_description_cannot_speak_to_the_terminal() -> None:
    """Control characters, bidirectional marks and quotes are dropped, and the length is bounded."""
    with pytest.raises(OAuthError) as caught:
        read({"error": "a b" * 99}, status=400)
    assert len(caught.value.error) == 64
    with pytest.raises(OAuthError) as caught:
        read({"error": "a\x1b[2Jb\r\n", "error_description": "x\x1b]0;y\x07\u202e\r\nz" + " w" * 400}, status=400)
    assert caught.value.error == "a[2Jb"
    assert caught.value.description.startswith("x]0;yz w")
    assert len(caught.value.description) == 200


@pytest.mark.parametrize("member", ["error", "error_description"])
def test_g01_a_server_that_repeats_our_assertion_does_not_get_it_into_the_log(member: str) -> None:
    """Whatever is long enough to be an assertion or a token is cut out of what the server says."""
    secret = "eyJhbGciOiJFUzI1NiJ9." + "Q" * 200 + ".c2ln"
    with pytest.raises(OAuthError) as caught:
        read({"error": "invalid_grant"} | {member: f"bad assertion {secret} !"}, status=400)
    assert "bad assertion ... !" in str(caught.value)
    assert "QQQ" not in str(caught.value)


def test_g01_no_refusal_repeats_what_the_answer_held() -> None:
    """The message names the member that was wrong, never its content."""
    mark = "canary 4711"
    for name in ("access_token", "token_type", "expires_in", "scope"):
        assert mark not in unusable(GOOD | {name: mark + "\n"}, scope="read")
    assert mark not in unusable(mark.encode())


def test_g01_a_token_does_not_show_itself() -> None:
    """repr, as a traceback or a log would print it, holds no token."""
    assert repr(read(scope="read")) == "Token(expires_in=1800, scope='read')"
