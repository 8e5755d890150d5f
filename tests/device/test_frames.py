"""Frames on a pipe: what one process packs another unpacks, and garbage is a ValueError."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.device import frames

NAMES = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"), min_size=1, max_size=20)
VALUES = st.text(st.characters(blacklist_categories=["Cs"]), max_size=60)


@given(st.dictionaries(NAMES, VALUES | st.integers(), max_size=6))
def test_what_is_packed_is_unpacked(fields: dict[str, str | int]) -> None:
    """Any text and whole numbers, newlines and other frames included, come back as text."""
    assert frames.unpack(frames.pack(fields)) == {name: str(value) for name, value in fields.items()}


def test_a_value_may_hold_a_whole_frame() -> None:
    """Lengths, not marks, say where a value ends."""
    inner = frames.pack({"outcome": "token", "head": "x"}).decode()
    assert frames.unpack(frames.pack({"message": inner, "outcome": "failed"})) == {
        "message": inner,
        "outcome": "failed",
    }


@given(
    st.binary()
    | st.lists(st.sampled_from([b"a ", b"1", b"\n", b"a 1\nx\n", b"b 3\n", b"\xff", b"-1", b"a 99\n"])).map(b"".join)
)
def test_any_bytes_are_fields_or_a_value_error(frame: bytes) -> None:
    """unpack raises nothing but ValueError."""
    with contextlib.suppress(ValueError):
        assert isinstance(frames.unpack(frame), dict)


NOT_FRAMES = {
    "no length": b"outcome\ntoken\n",
    "an empty length": b"outcome \ntoken\n",
    "a negative length": b"outcome -5\ntoken\n",
    "a length with a sign": b"outcome +5\ntoken\n",
    "a length with spaces": b"outcome  5\ntoken\n",
    "Arabic digits": "outcome \u0665\ntoken\n".encode(),
    "a length too short": b"outcome 4\ntoken\n",
    "a length too long": b"outcome 6\ntoken\n",
    "a length beyond the end": b"outcome 50\ntoken\n",
    "a length of hundreds of digits": b"outcome " + b"9" * 400 + b"\ntoken\n",
    "no newline at the end": b"outcome 5\ntoken",
    "cut in the middle": frames.pack({"outcome": "token", "head": "abc"})[:-2],
    "a name that is not ASCII": b"\xc3\xa9 1\nx\n",
    "a value that is not UTF-8": b"a 1\n\xff\n",
    "an endless name": b"a" * 200 + b" 1\nx\n",
    "text": b"Traceback (most recent call last):\n",
    "too long": frames.pack({"a": "x" * frames.MAX_FRAME}),
}


@pytest.mark.parametrize("frame", NOT_FRAMES.values(), ids=NOT_FRAMES.keys())
def test_what_is_no_frame_is_a_value_error(frame: bytes) -> None:
    """A worker that broke off, or was taken over, does not get half a message through."""
    with pytest.raises(ValueError, match=r".+"):
        frames.unpack(frame)


def test_no_bytes_are_no_fields() -> None:
    """A process that said nothing said nothing; that an outcome is missing is for the caller to see."""
    assert frames.unpack(b"") == {}


def test_a_name_that_stands_twice_counts_once() -> None:
    """The last one counts, on both sides of the pipe alike."""
    assert frames.unpack(b"a 1\nx\na 1\ny\n") == {"a": "y"}


# Answers of a worker

TOKEN = {"outcome": "token", "head": '{"access_token": "x", "expires_in": ', "tail": "}", "expires_in": 60}

NO_ANSWERS: dict[str, bytes] = {
    "nothing": b"",
    "text": b"Traceback (most recent call last):\n",
    "no outcome": frames.pack({"head": "x"}),
    "a token without an answer": frames.pack({"outcome": "token", "expires_in": 60}),
    "a token without a life": frames.pack(
        {"outcome": "token", "head": '{"access_token": "x", "expires_in": ', "tail": "}"}
    ),
    "a life that is no number": frames.pack({"outcome": "token", "head": "x", "tail": "}", "expires_in": "soon"}),
    "a life of no time": frames.pack({"outcome": "token", "head": "x", "tail": "}", "expires_in": 0}),
    "a life that has ended": frames.pack({"outcome": "token", "head": "x", "tail": "}", "expires_in": "-5"}),
    "a life for ever": frames.pack({"outcome": "token", "head": "x", "tail": "}", "expires_in": "9" * 400}),
    "a life of other digits": frames.pack({"outcome": "token", "head": "x", "tail": "}", "expires_in": "\u00b2"}),
    "a pause of other digits": frames.pack({"outcome": "failed", "retry_after": "\u00b2"}),
    "a pause for ever": frames.pack({"outcome": "failed", "retry_after": "9" * 400}),
    "an anchor that is no number": frames.pack({"outcome": "failed", "anchor": "x"}),
    "an anchor that is not a number": frames.pack({"outcome": "failed", "anchor": "nan"}),
    "an anchor for ever": frames.pack({"outcome": "failed", "anchor": "1e400"}),
    "too much": b"x" * 200_000,
}


@pytest.mark.parametrize("frame", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_ra09_an_answer_that_is_not_whole_or_has_no_numbers_is_none(frame: bytes) -> None:
    """Whatever a worker says that was taken over, the resident works with seconds that are seconds."""
    with pytest.raises(ValueError, match=r".+"):
        frames.unpack_answer(frame)


@pytest.mark.parametrize(
    "fields",
    [
        TOKEN,
        TOKEN | {"anchor": "1795262400.5", "scope": ""},
        {"outcome": "failed", "retry_after": 0, "message": "m", "anchor": ""},
    ],
)
def test_an_answer_that_is_whole_is_read(fields: dict[str, str | int]) -> None:
    """A token with everything that belongs to it, and any other outcome."""
    assert frames.unpack_answer(frames.pack(fields)) == {name: str(value) for name, value in fields.items()}
