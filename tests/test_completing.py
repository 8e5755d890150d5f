"""Completion: what is offered fits what was typed, and can be asked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.catalogue import FIELDS, Between, Flag, Is, Unknown
from pi_agent.completing import complete
from pi_agent.query import parse


def test_completion_offers_fields_then_values() -> None:
    """Fields come until the colon, values after it; each stands in for what was typed of it."""
    assert [offer.text for offer in complete("tag:a m", 7)] == ["model:", "memory:", "maker:"]
    assert [(offer.start, offer.end, offer.text) for offer in complete("-status:pending,a", 17)] == [
        (16, 17, "approved")
    ]
    assert [offer.text for offer in complete("model:Zero", 10)] == ["zero", "zerow", "zero2w"]
    assert complete("colour:r", 8) == []


def test_completion_offers_what_the_caller_has_seen() -> None:
    """Tags in use are offered in the spelling that the grammar takes; what cannot be typed is not offered."""
    known = {"tag": ["lab", "back room", "a\x1b[2J"]}
    assert [offer.text for offer in complete("tag:", 4, known)] == ["lab", '"back room"', "none"]
    assert [(offer.start, offer.text) for offer in complete('tag:"back r', 11, known)] == [(4, '"back room"')]


@pytest.mark.parametrize("name", FIELDS)
def test_every_value_that_is_offered_can_be_asked(name: str) -> None:
    """Taking a suggestion gives a query."""
    for offer in complete(f"{name}:", len(name) + 1):
        assert isinstance(parse(f"{name}:{offer.text}", 0).root, Is | Between | Flag | Unknown)


@given(st.text(max_size=30), st.integers(-5, 40))
def test_completion_never_fails(text: str, cursor: int) -> None:
    """Whatever stands in the search box, and wherever the cursor is, there is an answer."""
    for offer in complete(text, cursor):
        assert 0 <= offer.start <= offer.end <= len(text)
