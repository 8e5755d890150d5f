"""A key as a code to type and words to read out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.errors import UsageError
from pi_agent.jws import b64url
from pi_agent.words import WORDS, code, read_code, words

THUMBPRINTS = st.binary(min_size=32, max_size=32).map(b64url)


def test_every_byte_has_a_word_of_its_own() -> None:
    """256 different words of plain small letters, sorted, no two with the same first four."""
    assert len({word[:4] for word in WORDS}) == len(WORDS) == 256
    assert sorted(WORDS) == WORDS
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)


def test_no_slip_of_the_pen_turns_one_word_into_another() -> None:
    """No two words of one length differ in a single letter."""
    for one, other in itertools.combinations(WORDS, 2):
        assert len(one) != len(other) or sum(a != b for a, b in zip(one, other, strict=True)) > 1, (one, other)


def test_the_words_of_a_known_thumbprint_never_change() -> None:
    """The list is part of the format: a Pi and a server of different releases must say the same."""
    kid = b64url(bytes(range(32)))
    assert code(kid) == "000G-40R4"
    assert words(kid) == ("album", "almond", "amber", "anchor", "ankle", "apple", "april", "arrow")


@given(THUMBPRINTS)
def test_a_code_is_read_back_however_it_is_typed(kid: str) -> None:
    """Small letters, no hyphen, and the usual slips (O for 0, I and L for 1) find the same code."""
    shown = code(kid)
    assert read_code(shown) == read_code(shown.lower().replace("-", "")) == shown
    assert read_code(shown.replace("0", "o").replace("1", "l")) == shown


@given(THUMBPRINTS, st.integers(0, 103))
def test_any_bit_of_the_first_104_shows(kid: str, bit: int) -> None:
    """Two keys that differ in one of the first 104 bits differ in code or words."""
    from pi_agent.jws import b64url_decode

    number = int.from_bytes(b64url_decode(kid), "big") ^ 1 << 255 - bit
    other = b64url(number.to_bytes(32, "big"))
    assert (code(kid), words(kid)) != (code(other), words(other))


@given(st.text())
def test_any_text_is_a_code_or_our_error(text: str) -> None:
    """Whatever is typed, the answer is a code or a UsageError."""
    try:
        assert read_code(read_code(text)) == read_code(text)
    except UsageError:
        return


@pytest.mark.parametrize("text", ["", "7QK2", "7QK2-0XWU", "7QK2-0XWM-1", "\u017f" * 8])
def test_what_is_no_code_is_refused(text: str) -> None:
    """Too short, too long, or with a letter that codes do not have."""
    with pytest.raises(UsageError):
        read_code(text)
