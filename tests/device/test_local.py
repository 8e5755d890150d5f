"""HTTP on the socket, as bytes: what is a request, what never is, and that nothing a caller sends can end the agent."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.device import local
from pi_agent.device.local import MAX_REQUEST, BadRequestError, Request

GET = b"GET /v1/token HTTP/1.1\r\nHost: pi\r\n\r\n"


def request(data: bytes) -> Request:
    found = local.parse(data)
    assert found is not None
    return found[0]


def refused(data: bytes) -> int:
    with pytest.raises(BadRequestError) as caught:
        local.parse(data)
    assert caught.value.detail.isprintable()
    return caught.value.status


def headers(*lines: bytes) -> bytes:
    return b"\r\n".join((b"GET / HTTP/1.1", *lines)) + b"\r\n\r\n"


# Any bytes

NEARLY = st.lists(
    st.sampled_from(
        [
            b"GET ",
            b"/",
            b"v1/token?",
            b"a=%2",
            b"%41",
            b"&",
            b"=",
            b"+",
            b"%\t\t",
            b" HTTP/1.1",
            b"\r\n",
            b"\r\n\r\n",
            b"Host: pi",
            b":",
        ]
    )
    | st.binary(max_size=4)
).map(b"".join)


@given(st.binary() | NEARLY | NEARLY.map(lambda middle: b"GET /" + middle + b" HTTP/1.1\r\n\r\n"))
def test_any_bytes_are_a_request_or_not_yet_or_a_bad_one(data: bytes) -> None:
    """parse gives a request and its length, None, or BadRequestError with a status that has a reason."""
    try:
        found = local.parse(data)
    except BadRequestError as error:
        assert error.status in local.REASONS
        return
    if found is not None:
        asked, length = found
        assert 0 < length <= min(len(data), MAX_REQUEST)
        assert asked.path.startswith("/")
        assert not any(character < " " for text in (*asked.query, *asked.query.values()) for character in text)


@given(data=NEARLY, cut=st.integers(0, 200))
def test_a_request_does_not_depend_on_how_it_arrives(data: bytes, cut: int) -> None:
    """A prefix of a good request is "not yet", or bad for good; it is never another request."""
    try:
        whole = local.parse(data)
    except BadRequestError:
        return
    try:
        part = local.parse(data[:cut])
    except BadRequestError:
        assert whole is None
        return
    assert part is None or (whole is not None and part[1] == whole[1])


PARAMETER = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@given(st.dictionaries(PARAMETER, PARAMETER, max_size=4))
def test_what_a_library_encodes_is_decoded(query: dict[str, str]) -> None:
    """Any parameters that urllib quotes come back as they were."""
    target = "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in query.items())
    assert request(f"GET /x?{target} HTTP/1.1\r\n\r\n".encode()).query == query


# Requests


def test_a_plain_request() -> None:
    """Method, path, parameters and the length of what was taken; the rest of the buffer is the next request."""
    found = local.parse(b"GET /v1/token?min_valid=90&scope=a+b HTTP/1.1\r\nHost: pi\r\n\r\nGET ")
    assert found is not None
    asked, length = found
    assert (asked.method, asked.path, asked.query) == ("GET", "/v1/token", {"min_valid": "90", "scope": "a b"})
    assert length == len(b"GET /v1/token?min_valid=90&scope=a+b HTTP/1.1\r\nHost: pi\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "keep"),
    [
        (headers(), True),
        (headers(b"Connection: close"), False),
        (headers(b"connection:  Close , x"), False),
        (headers(b"Connection: keep-alive"), True),
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", True),
    ],
)
def test_the_connection_goes_on_as_http_says(data: bytes, keep: bool) -> None:
    """1.1 keeps it open unless told otherwise, 1.0 closes it unless told otherwise (RFC 9112 section 9.3)."""
    assert request(data).keep_alive is keep


@pytest.mark.parametrize("cut", range(len(GET)))
def test_every_prefix_of_a_request_is_not_yet_one(cut: int) -> None:
    """Half a line is waited for."""
    assert local.parse(GET[:cut]) is None


def test_e04_a_request_has_at_most_4096_bytes() -> None:
    """4096 are read; one more is 431, whether it is whole or not."""
    frame = len(headers(b"X: "))
    assert request(headers(b"X: " + b"a" * (MAX_REQUEST - frame))).path == "/"
    assert refused(headers(b"X: " + b"a" * (MAX_REQUEST - frame + 1))) == 431
    assert refused(b"GET /" + b"a" * MAX_REQUEST) == 431
    assert local.parse(b"G" * MAX_REQUEST) is None


REQUEST_LINES = {
    "no version": b"GET /\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\n\r\n",
    "a fourth word": b"GET / x HTTP/1.1\r\n\r\n",
    "HTTP/2": b"GET / HTTP/2.0\r\n\r\n",
    "lower case": b"GET / http/1.1\r\n\r\n",
    "absolute": b"GET http://pi/ HTTP/1.1\r\n\r\n",
    "no slash": b"GET v1/token HTTP/1.1\r\n\r\n",
    "asterisk": b"GET * HTTP/1.1\r\n\r\n",
    "an empty line first": b"\r\nGET / HTTP/1.1\r\n\r\n",
    "not ASCII": b"GET /\xff HTTP/1.1\r\n\r\n",
    "not ASCII in the query": b"GET /?a=\xc3\xa9 HTTP/1.1\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "nothing": b"\r\n\r\n",
}


@pytest.mark.parametrize("data", REQUEST_LINES.values(), ids=REQUEST_LINES.keys())
def test_what_is_no_request_line_is_400(data: bytes) -> None:
    """Anything but a method, a target of ours and HTTP/1.x is refused, in whatever bytes it comes."""
    assert refused(data) == 400


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"CONNECT", b"get", b"\x00"])
def test_other_methods_are_405(method: bytes) -> None:
    """The agent gives; nobody puts."""
    assert refused(method + b" / HTTP/1.1\r\n\r\n") == 405


BAD_HEADERS: dict[str, tuple[bytes, ...]] = {
    "no colon": (b"Host pi",),
    "no name": (b": pi",),
    "space before the colon": (b"Host : pi",),
    "a folded line": (b"X: a", b" b"),
    "not ASCII": (b"X: \xe9",),
    "host twice": (b"Host: a", b"Host: b"),
    "connection twice": (b"Connection: close", b"Connection: keep-alive"),
    "length twice": (b"Content-Length: 0", b"Content-Length: 0"),
    "a body": (b"Content-Length: 5",),
    "a strange length": (b"Content-Length: +0",),
    "a negative length": (b"Content-Length: -1",),
    "chunks": (b"Transfer-Encoding: chunked",),
    "any coding": (b"Transfer-Encoding: identity",),
}


@pytest.mark.parametrize("lines", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_headers_that_could_be_read_in_two_ways_are_400(lines: tuple[bytes, ...]) -> None:
    """No body, no folding, nothing twice: there is no second request to smuggle."""
    assert refused(headers(*lines)) == 400


def test_a_body_of_nothing_is_none() -> None:
    """Content-Length: 0 says so."""
    assert request(headers(b"Content-Length: 0")).path == "/"


@pytest.mark.parametrize(
    "query",
    [
        "a=1&a=2",
        "a&a",
        "%61=1&a=2",
        "a=%",
        "a=%4",
        "a=%zz",
        "a=%++",
        "a=%\t\t",
        "a=% 4",
        "a=%-1",
        "a=%ff",
        "a=%c0%af",
        "a=%ed%a0%80",
    ],
)
def test_parameters_that_are_not_what_they_say_are_400(query: str) -> None:
    """Twice the same, half an escape, or bytes that are no UTF-8."""
    assert refused(f"GET /?{query} HTTP/1.1\r\n\r\n".encode()) == 400


@pytest.mark.parametrize("character", ["%00", "%0a", "%0d", "%1b", "%7f"])
def test_g05_parameters_hold_no_control_characters(character: str) -> None:
    """Nothing that a log or a terminal would act on gets in."""
    assert refused(f"GET /?a={character} HTTP/1.1\r\n\r\n".encode()) == 400


# Answers

SCALARS = st.none() | st.booleans() | st.integers() | st.text(st.characters(blacklist_categories=["Cs"]))


@given(
    st.dictionaries(
        st.text(st.characters(blacklist_categories=["Cs"])),
        st.recursive(SCALARS, lambda c: st.dictionaries(st.text(max_size=5).filter(str.isascii), c)),
    )
)
def test_what_is_written_is_json(value: dict[str, Any]) -> None:
    """write_json and the standard library agree about every value that the agent writes."""
    assert json.loads(local.write_json(value)) == value


def test_ready_made_json_is_passed_through() -> None:
    """Bytes are JSON already."""
    assert json.loads(local.write_json({"board": b'{"model": null}'})) == {"board": {"model": None}}


@pytest.mark.parametrize("keep", [True, False])
def test_an_answer_is_what_http_clients_expect(keep: bool) -> None:
    """Status line, type, length, no caching, and whether the connection goes on."""
    head, _, body = local.answer(503, b"{}", keep_alive=keep, retry_after=7).partition(b"\r\n\r\n")
    assert body == b"{}"
    assert head.split(b"\r\n") == [
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: application/json",
        b"Content-Length: 2",
        b"Cache-Control: no-store",
        b"Connection: keep-alive" if keep else b"Connection: close",
        b"Retry-After: 7",
    ]


@pytest.mark.parametrize("status", sorted(local.REASONS))
def test_a_problem_document_says_what_and_what_to_do(status: int) -> None:
    """title, status and detail always; hint and reason when there is one (RFC 9457)."""
    head, _, body = local.refusal(status, 'it "broke"\n', keep_alive=True).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: application/problem+json" in head
    assert json.loads(body) == {
        "title": local.REASONS[status],
        "status": status,
        "detail": 'it "broke"\n',
    }
    body = local.refusal(status, "x", keep_alive=True, hint="h", reason="r").partition(b"\r\n\r\n")[2]
    assert json.loads(body) == {
        "title": local.REASONS[status],
        "status": status,
        "detail": "x",
        "hint": "h",
        "reason": "r",
    }


def test_the_query_is_read_as_a_form_is() -> None:
    """Plus is a space, and an empty value is an empty value."""
    query = "a=b+c&d=&e"
    assert request(f"GET /?{query} HTTP/1.1\r\n\r\n".encode()).query == {"a": "b c", "d": "", "e": ""}
    assert parse_qs(query, keep_blank_values=True) == {"a": ["b c"], "d": [""], "e": [""]}
