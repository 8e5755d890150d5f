"""The query language: what a text means, that it comes back unchanged, and that mistakes are answered with a way out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.assertion import KEY_PROTECTIONS
from pi_agent.catalogue import (
    FIELDS,
    KINDS,
    MAX_WILDCARDS,
    MODELS,
    PROTECTIONS,
    UNIT_SECONDS,
    WORD_FIELDS,
    Between,
    Flag,
    Is,
    Unknown,
    Word,
    fold,
    joined,
    lower,
    model_key,
    moment,
    quote,
    size_text,
)
from pi_agent.errors import QueryError
from pi_agent.query import (
    ALL,
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_TERMS,
    And,
    Node,
    Or,
    Query,
    all_of,
    any_of,
    matches,
    negate,
    parse,
)

NOW = 1_795_221_900  # 2026-11-21 00:45:00 UTC
DAY = 86_400
GUIDE = Path(__file__).parents[1] / "docs" / "query.md"


def fields_table() -> str:
    """The table of fields as it stands in docs/query.md."""

    def values(name: str) -> str:
        field = FIELDS[name]
        listed = field.kind in ("choice", "known") and name != "model"
        return KINDS[field.kind] + (
            ": " + ", ".join(f"`{quote(lower(value))}`" for value in field.values) if listed else ""
        )

    rows = [f"| `{name}` | {field.help} | {values(name)} |" for name, field in FIELDS.items()]
    return "\n".join(["| field | what it is | values |", "|---|---|---|", *rows])


def root(text: str) -> Node:
    return parse(text, NOW).root


def refusal(text: str) -> QueryError:
    with pytest.raises(QueryError) as caught:
        parse(text, NOW)
    return caught.value


# What a text means.


def test_the_headline_question_is_three_typed_comparisons() -> None:
    """Which Pi 2 boards with 1 GB authenticated in the past day: a model, a size in MiB and a bound in epoch seconds."""
    assert root("model:2b memory:1gb auth:1d") == And(
        (Is("model", ("2b",)), Between("memory", 1024, 1025, "1gb"), Between("auth", NOW - DAY, None, "1d"))
    )


def test_the_headline_question_in_words() -> None:
    """The meaning names values as people know them, and absolute times."""
    assert parse("model:2b memory:1gb auth:1d", NOW).meaning() == (
        "model is 2B, memory is 1 GiB, authenticated after 2026-11-20 00:45 UTC"
    )


@pytest.mark.parametrize("text", ["", "   "])
def test_a_query_without_terms_is_all_devices(text: str) -> None:
    """Nothing asked is everything, and reads so."""
    query = parse(text, NOW)
    assert (query.root, str(query), query.meaning()) == (ALL, "", "all devices")
    assert matches(query, {})


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("2b", "2B"),
        ("2B", "2B"),
        ("2", "2B"),
        ("pi2b", "2B"),
        ("rpi-2b", "2B"),
        ('"Raspberry Pi 2 Model B"', "2B"),
        ("zero2w", "Zero 2 W"),
        ("zero-2-w", "Zero 2 W"),
        ('"zero 2 w"', "Zero 2 W"),
        ("3b+", "3B+"),
        ('"Raspberry Pi 3 Model B Plus"', "3B+"),
        ("3bplus", "3B+"),
        ("cm4", "CM4"),
        ('"Raspberry Pi Compute Module"', "CM1"),
        ("400", "400"),
        ("5", "5"),
        ("4", "4B"),
        ("500+", "500+"),
        ("1b+", "B+"),
        ("cm5-lite", "CM5 Lite"),
    ],
)
def test_a_model_is_known_by_every_name_people_use(text: str, model: str) -> None:
    """Short types, full names and common spellings all find the stored short type, and only that one."""
    query = parse(f"model:{text}", NOW)
    assert [known for known in MODELS if matches(query, {"model": known})] == [model]


def test_every_known_model_is_found_by_its_short_and_its_full_name() -> None:
    """The names that revision codes decode to are names that can be asked for, and no two models are one."""
    assert len({model_key(model) for model in MODELS}) == len(MODELS)
    for short, long in MODELS.items():
        assert root(f'model:"{short}"') == root(f'model:"{long}"') == Is("model", (model_key(short),))


def test_an_unknown_newer_board_can_be_asked_for_with_a_star() -> None:
    """A registry that is older than a board still finds it by a pattern."""
    assert matches(parse("model:unknown*", NOW), {"model": "unknown (type 0x1c)"})
    assert matches(parse("model:6*", NOW), {"model": "6B"})


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("1gb", 1024, 1025),
        ("1GB", 1024, 1025),
        ("1g", 1024, 1025),
        ("1gib", 1024, 1025),
        ("512mb", 512, 513),
        ("1024", 1024, 1025),
        ("=1024", 1024, 1025),
        (">=512mb", 512, None),
        (">512mb", 513, None),
        ("<=1gb", None, 1025),
        ("<1gb", None, 1024),
        ("512mb..1gb", 512, 1025),
        ("512mb..", 512, None),
        ("..1gb", None, 1025),
    ],
)
def test_sizes_are_mib_with_exact_bounds(text: str, low: int | None, high: int | None) -> None:
    """1 GB is 1024 MiB; the lower bound is included, the upper one is not."""
    node = root(f"memory:{text}")
    assert isinstance(node, Between)
    assert (node.low, node.high) == (low, high)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("90s", NOW - 90, None),
        ("15m", NOW - 15 * 60, None),
        ("1h", NOW - 3600, None),
        ("1d", NOW - DAY, None),
        ("2W", NOW - 14 * DAY, None),
        ("older:30d", None, NOW - 30 * DAY),
        ("older:2026-11-01", None, 1_793_491_200),
        ("2026-11-01", 1_793_491_200, 1_793_491_200 + DAY),
        ("2026-11-01..2026-11-07", 1_793_491_200, 1_793_491_200 + 7 * DAY),
        ("2026-11-01..", 1_793_491_200, None),
        ("..2026-11-01", None, 1_793_491_200 + DAY),
        ("2026-11-21T00:45", NOW, NOW + 60),
        ("2026-11-21T00:45Z", NOW, NOW + 60),
        ("2026-11-21t00:45:00z", NOW, NOW + 1),
    ],
)
def test_times_are_epoch_seconds_in_utc(text: str, low: int | None, high: int | None) -> None:
    """An age counts back from now, m is minutes, and a date is its whole UTC day, also at the end of a range."""
    node = root(f"auth:{text}")
    assert isinstance(node, Between)
    assert (node.low, node.high) == (low, high)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("memory:1024", "memory:1gb"),
        ("memory:>=0512MB", "memory:>=512mb"),
        ("auth:01D", "auth:1d"),
        ("model:a OR model:b tag:x", "model:a OR model:b tag:x"),
        ("( model:3b OR model:3b+ ) tag:kiosk", "model:3b,3b+ tag:kiosk"),
        ("model:3b OR tag:a OR tag:b", "model:3b OR tag:a,b"),
        ("NOT tag:lab and seen:1d", "-tag:lab seen:1d"),
        ("-(-tag:lab)", "tag:lab"),
        ("(a (b (c)))", "a b c"),
        ('name:"kitchen"', "name:kitchen"),
        ('name:"none"', 'name:"none"'),
        ('"or"', '"or"'),
        ('"-a" name:"-b"', '"-a" name:"-b"'),
        ('"@a" tag:@b', '"@a" tag:"@b"'),
        ("key:otp", "key:firmware-otp"),
        ("TAG:Lab", "tag:lab"),
        ("serial:**8F**", "serial:*8f*"),
        ("*kit*", "kit"),
        ("key:firmware", "key:firmware-otp"),
        ("simulated:no", "simulated:false"),
        ("-()", "-()"),
    ],
)
def test_a_query_has_one_spelling(text: str, canonical: str) -> None:
    """Different spellings of one question print alike, so that a saved view and a cursor can be compared."""
    assert str(parse(text, NOW)) == canonical


def test_space_binds_more_than_or() -> None:
    """a b OR c is (a and b) or c."""
    tag = {name: Is("tag", (name,)) for name in "abc"}
    assert root("tag:a tag:b OR tag:c") == Or((And((tag["a"], tag["b"])), tag["c"]))
    assert root("tag:a (tag:b OR tag:c)") == And((tag["a"], Or((tag["b"], tag["c"]))))


def test_the_shortcuts_for_key_protections_are_what_assertions_carry() -> None:
    """The values of the key field are the ones that a device may send."""
    assert PROTECTIONS == KEY_PROTECTIONS


# What matches.

KITCHEN: dict[str, object] = {
    "name": "Kitchen-1",
    "model": "2B",
    "memory": 1024,
    "serial": "00000000abcd8f3a",
    "status": "approved",
    "auth": NOW - 3600,
    "tag": ("kiosk", "Hall"),
    "warranty": True,
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model:2b memory:1gb auth:1d", True),
        ("auth:30m", False),
        ("auth:older:30m", True),
        ("serial:*8F3A", True),
        ("serial:*8f3", False),
        ("tag:kiosk tag:hall", True),
        ("tag:kiosk tag:lab", False),
        ("tag:lab,hall", True),
        ("-tag:lab", True),
        ("tag:none", False),
        ("-tag:none", True),
        ("kitch", True),
        ("KITCHEN*", True),
        ("itchen*", False),
        ("8f3a", True),
        ('"pi 2b"', True),
        ("pi", False),
        ("seen:1d", False),
        ("-seen:1d", True),
        ("seen:never", True),
        ("seen:never,1d", True),
        ("-seen:never", False),
        ("seen:older:1d", False),
        ("warranty:yes", True),
        ("warranty:no", False),
        ("overvoltage:no", False),
        ("-overvoltage:no", True),
        ("overvoltage:none", True),
        ("memory:none", False),
        ("rev:1.*", False),
        ("name:*", True),
        ("agent:*", False),
    ],
)
def test_what_a_device_matches(text: str, expected: bool) -> None:
    """What is not known matches nothing but none and never, and a minus turns the answer of a term around."""
    assert matches(parse(text, NOW), KITCHEN) is expected


def test_a_device_without_tags_has_none() -> None:
    """An empty collection is no value."""
    assert matches(parse("tag:none", NOW), {"tag": ()})
    assert not matches(parse("tag:*", NOW), {"tag": ()})


def test_letters_beyond_ascii_are_compared_exactly() -> None:
    """Only A-Z are folded: the databases agree on no more than that."""
    assert matches(parse("name:küche", NOW), {"name": "KüCHE"})
    assert not matches(parse("name:KÜCHE", NOW), {"name": "küche"})


@pytest.mark.parametrize(
    ("pattern", "text", "expected"),
    [
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("*a*b*", "xbya", False),
        ("*a*b*", "xaybz", True),
        ("ab*ba", "aba", False),
        ("a*b*c", "abbc", True),
        ("a*bc*c", "abc", False),
        ('"a*b"', "a*b", True),
        ('"a*b"', "axb", False),
        ("100%", "100 %", False),
        ("1_0", "100", False),
    ],
)
def test_a_star_is_the_only_wildcard(pattern: str, text: str, expected: bool) -> None:
    """Pieces do not overlap, quotes take the star its meaning, and percent and underscore never had one."""
    assert matches(parse(f"name:{pattern}", NOW), {"name": text}) is expected


# What is refused, and how.


@pytest.mark.parametrize(
    ("text", "position", "suggestion"),
    [
        ("modle:2b", 0, "model:2b"),
        ("tag:a modle:2b", 6, "tag:a model:2b"),
        ("modle:2b memmory:1gb", 0, "model:2b memory:1gb"),
        ("ram:1gb", 0, "memory:1gb"),
        ("lastseen:1d", 0, "seen:1d"),
        ("http://x", 0, None),
        ("status:pendng", 7, "status:pending"),
        ("status:xxxxx", 7, None),
        ("warranty:maybe", 9, None),
        ("model:3", 6, "model:3*"),
        ("model:pi", 6, None),
        ("model:2bb", 6, "model:2b"),
        ("maker:sonyuk", 6, 'maker:"sony uk"'),
        ("tag:a,", 6, None),
        ("model:", 6, None),
        ("model: 2b", 6, "model:2b"),
        ("tag:a memory:  1gb", 13, "tag:a memory:1gb"),
        ("model: tag:x", 6, None),
        ("model = 2b", 5, "model:2b"),
        ("model :2b tag:a", 5, "model:2b tag:a"),
        ("memory >= 1gb", 6, "memory:>=1gb"),
        ("= 2b", 0, None),
        ("kitchen = 2b", 7, None),
        ("()", 0, None),
        ("( )", 0, None),
        ("-(-())", 3, "-()"),
        ("tag:a OR ()", 9, "tag:a"),
        ("-(() OR tag:a)", 2, "-(  tag:a)"),
        ("(()) tag:a", 1, "tag:a"),
        (":", 0, None),
        (",", 0, None),
        ('""', 0, None),
        ('name:""', 5, None),
        ("memory:1.5gb", 7, None),
        ("memory:gb", 7, None),
        ("memory:99999999gb", 7, None),
        ("memory:99999999999999999999", 7, None),
        ("memory:..", 7, None),
        ("memory:2gb..1gb", 7, "memory:1gb..2gb"),
        ("memory:\N{ARABIC-INDIC DIGIT ONE}gb", 7, None),
        ("memory>=1gb", 0, "memory:>=1gb"),
        ("model=2b", 0, "model:2b"),
        ("auth>1d", 0, "auth:1d"),
        ("auth:<1d", 5, "auth:1d"),
        ("seen:>=12h", 5, "seen:12h"),
        ("auth:>2026-11-01", 5, "auth:2026-11-01.."),
        ("auth:<=2026-11-01", 5, "auth:..2026-11-01"),
        ("auth:1mo", 5, None),
        ("auth:d", 5, None),
        ("auth:-1d", 5, None),
        ("auth:101w..", 5, None),
        ("auth:9999w", 5, None),
        ("auth:30d..7d", 5, None),
        ("auth:2026-02-30", 5, None),
        ("auth:2026-W01-1", 5, None),
        ("auth:20261101", 5, None),
        ("auth:2026-11-01T00+01", 5, None),
        ("auth:1969-12-31", 5, None),
        ("auth:2026-11-07..2026-11-01", 5, "auth:2026-11-01..2026-11-07"),
        ("created:never", 8, None),
        ("status:none", 7, None),
        ("name:>x", 5, None),
        ("tag:-lab", 4, None),
        ("serial:xyz", 7, None),
        ("name:*a*b*c*d*", 5, None),
        ("*a*b*c*d*", 0, None),
        ("(model:2b", 0, "(model:2b)"),
        ("tag:a (b", 6, "tag:a (b)"),
        ("model:2b)", 8, "model:2b"),
        ('"kitchen', 0, '"kitchen"'),
        ("model:2b OR", 9, "model:2b"),
        ("or model:2b", 0, "model:2b"),
        ("tag:a OR OR tag:b", 6, "tag:a  OR tag:b"),
        ("tag:a AND", 6, "tag:a"),
        ("(AND tag:a)", 1, "( tag:a)"),
        ("-", 0, None),
        ("tag:a -", 6, "tag:a"),
        ("NOT OR", 0, None),
        ("tag:a\ttag:b", 5, None),
        ("tag:a\x1b[31m", 5, None),
        ("tag:a\u202eb", 5, None),
        ("tag:a\x00", 5, None),
        ("tag:\ud800", 4, None),
        ("tag:\ue061", 4, None),
    ],
)
def test_a_mistake_has_a_place_and_often_a_way_out(text: str, position: int, suggestion: str | None) -> None:
    """The error points at the mistake, and offers a query that works where there is one to offer."""
    error = refusal(text)
    assert (error.position, error.suggestion) == (position, suggestion)


def test_an_unknown_field_names_the_nearest() -> None:
    """The message alone tells what was wrong, where, and what was meant."""
    error = refusal("modle:2b")
    assert str(error) == "no field 'modle' at character 1; did you mean 'model'?"
    assert error.hint == "try model:2b"


def test_an_order_on_an_age_is_answered_with_both_readings() -> None:
    """Tools disagree about auth:<1d, so the two clear spellings are shown."""
    error = refusal("auth:<1d")
    assert str(error) == "an age takes no '<' at character 6"
    assert error.hint == "did you mean auth:1d (within the past 1d) or auth:older:1d?"


@pytest.mark.parametrize(
    ("text", "position", "hint"),
    [
        ("tag:kiosk @v1", 10, "write @v1 tag:kiosk"),
        ("tag:kiosk @v1 model:2b", 10, "write @v1 tag:kiosk model:2b"),
        ("(@v1)", 1, ""),
        ("-@v1", 1, ""),
        ("tag:kiosk OR @v1", 13, ""),
        ("a,@v1", 2, ""),
        ("@v1", 0, ""),
        (" @v1 tag:kiosk", 1, ""),
    ],
)
def test_a_view_is_not_taken_for_a_word(text: str, position: int, hint: str) -> None:
    """It would be a word that no device has, and with a minus before it every device."""
    error = refusal(text)
    assert error.position == position
    assert error.hint == (hint or "write out its query, which pi-fleet view list shows")


def test_an_unknown_choice_lists_the_choices() -> None:
    """Who gets a status wrong sees all of them."""
    assert "pending, approved, quarantined, revoked, rejected" in str(refusal("status:x"))


def test_text_in_an_error_is_cut_short() -> None:
    """A long mistake does not fill the screen."""
    assert len(str(refusal("x" * 1500 + ":1"))) < 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * (MAX_LENGTH + 1), "longer than 2000 characters"),
        ("tag:" + ",".join(["a" * 17 + "="] * MAX_TERMS), "written out, the query is longer"),
        ("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), "more than 32 brackets"),
        ("-" * (MAX_DEPTH + 1) + "a", "more than 32 brackets"),
        (" ".join("a" * (MAX_TERMS + 1)), "more than 100 terms"),
        ("tag:" + ",".join("a" * (MAX_TERMS + 1)), "more than 100 terms"),
    ],
)
def test_a_query_is_bounded(text: str, message: str) -> None:
    """Length, depth and number of terms have limits that no database has to find."""
    assert message in str(refusal(text))


def test_the_largest_queries_are_taken() -> None:
    """A query at its limits is still a query."""
    assert root("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH) == Word(("", "a", ""))
    assert root("(-a) " * (MAX_DEPTH + 1))
    assert len(parse(" ".join("a" * MAX_TERMS), NOW).root.parts) == MAX_TERMS  # type: ignore[union-attr]  # an And


# Properties.

TRICKY = st.text(st.sampled_from('abmodel:tagnamey 0129dhgb.,*"\\()-<>=OR\t\x1b\ue061é'), max_size=40)


@given(st.one_of(st.text(max_size=60), TRICKY))
def test_any_text_is_a_query_or_a_query_error(text: str) -> None:
    """Nothing else ever comes out; an error lies inside the text, and its suggestion works."""
    try:
        query = parse(text, NOW)
    except QueryError as error:
        assert 0 <= error.position <= len(text)
        assert error.suggestion is None or parse(error.suggestion, NOW)
    else:
        assert parse(str(query), NOW) == query
        assert query.meaning()


PRINTABLE = st.characters(exclude_categories=("C", "Z"), include_characters=' "\\*,:()-')
PIECE = st.text(PRINTABLE, min_size=1, max_size=6).filter(str.isprintable)


def patterns(field: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Folded pieces, of which only the ends of a pattern with a wildcard may be empty."""
    ends = st.one_of(st.just(""), PIECE)
    many = st.tuples(ends, st.lists(PIECE, max_size=MAX_WILDCARDS - 1), ends).map(lambda t: (t[0], *t[1], t[2]))
    exact = st.tuples(PIECE) if field and FIELDS[field].kind == "text" else st.nothing()
    kept = PIECE if not field or FIELDS[field].kind != "hex" else st.text("0123456789abcdef", min_size=1)
    if kept is not PIECE:
        return st.lists(kept, min_size=1, max_size=MAX_WILDCARDS + 1).map(tuple)
    return st.one_of(exact, many).map(lambda parts: joined(fold(field, part) for part in parts))


def spans(name: str) -> st.SearchStrategy[Between]:
    if FIELDS[name].kind == "size":
        sizes = st.integers(0, 40_000)
        return st.one_of(
            sizes.map(lambda mib: Between(name, mib, mib + 1, size_text(mib))),
            sizes.map(lambda mib: Between(name, mib + 1, None, f">{size_text(mib)}")),
            sizes.map(lambda mib: Between(name, None, mib + 1, f"..{size_text(mib)}")),
        )
    ages = st.tuples(st.integers(0, 5000), st.sampled_from(sorted(UNIT_SECONDS)))
    days = st.dates().filter(lambda day: 1970 <= day.year < 3000).map(lambda day: moment(day.isoformat()))
    return st.one_of(
        ages.map(lambda age: Between(name, NOW - age[0] * UNIT_SECONDS[age[1]], None, f"{age[0]}{age[1]}")),
        ages.map(lambda age: Between(name, None, NOW - age[0] * UNIT_SECONDS[age[1]], f"older:{age[0]}{age[1]}")),
        days.map(lambda day: Between(name, *day) if day else Between(name, None, None, "")),
    )


def leaves(name: str) -> st.SearchStrategy[Node]:
    """Comparisons of one field, made without the parser."""
    field = FIELDS[name]
    unknown = [st.just(Unknown(name))] if field.optional else []
    if field.kind in ("size", "time"):
        return st.one_of(spans(name), *unknown)
    if field.kind == "flag":
        return st.one_of(st.booleans().map(lambda value: Flag(name, value)), *unknown)
    exact = [st.sampled_from(field.values).map(lambda value: Is(name, (fold(name, value),)))]
    listed = exact if field.kind in ("choice", "known") else []
    wild = [] if field.kind == "choice" else [patterns(name).map(lambda parts: Is(name, parts))]
    return st.one_of(*listed, *wild, *unknown)


LEAVES: st.SearchStrategy[Node] = st.one_of(
    st.sampled_from(sorted(FIELDS)).flatmap(leaves),
    patterns("").filter(lambda parts: len(parts) > 1).map(Word),
)
TREES: st.SearchStrategy[Node] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map(all_of),
        st.lists(inner, min_size=2, max_size=4).map(any_of),
        inner.map(negate),
    ),
    max_leaves=8,
)


@given(TREES)
def test_a_query_comes_back_from_its_text(node: Node) -> None:
    """parse(print(q)) == q, for trees that no text made."""
    query = Query(node, NOW)
    assert parse(str(query), NOW) == query


TEXTS = st.one_of(st.none(), st.sampled_from(("", "a", "ab", "2B", "Zero W", "BCM2835", "1.2", "lab")), PIECE)
TIMES = st.one_of(st.none(), st.integers(NOW - 60 * DAY, NOW))
ROWS = st.fixed_dictionaries(
    {
        name: {
            "size": st.sampled_from((None, 256, 512, 1024, 4096)),
            "time": TIMES,
            "flag": st.sampled_from((None, True, False)),
        }.get(field.kind, st.lists(st.text("ab"), max_size=2) if field.many else TEXTS)
        for name, field in FIELDS.items()
    }
)


@given(TREES, TREES, ROWS)
def test_and_or_and_not_are_what_they_say(left: Node, right: Node, row: dict[str, object]) -> None:
    """matches keeps the laws of logic, De Morgan's included: there is no third truth value."""

    def holds(node: Node) -> bool:
        return matches(Query(node, NOW), row)

    assert holds(all_of((left, right))) == (holds(left) and holds(right))
    assert holds(any_of((left, right))) == (holds(left) or holds(right))
    assert holds(negate(left)) != holds(left)
    assert holds(negate(all_of((left, right)))) == holds(any_of((negate(left), negate(right))))


@given(TREES, ROWS)
def test_the_canonical_text_matches_the_same_devices(node: Node, row: dict[str, object]) -> None:
    """Printing loses nothing that matters."""
    assert matches(parse(str(Query(node, NOW)), NOW), row) == matches(Query(node, NOW), row)


@given(patterns("name"), st.text("abAB*% ", max_size=8))
def test_patterns_agree_with_regular_expressions(parts: tuple[str, ...], text: str) -> None:
    """A pattern is its pieces in order with any text between them."""
    expected = re.fullmatch(".*".join(map(re.escape, parts)), fold("name", text), re.DOTALL) is not None
    assert matches(Query(Is("name", parts), NOW), {"name": text}) == expected


@given(st.integers(0, 16_384), st.integers(0, 16_384))
def test_orders_agree_with_integers(bound: int, value: int) -> None:
    """Each sign means what it means for numbers."""
    for sign, expected in ((">", value > bound), (">=", value >= bound), ("<", value < bound), ("<=", value <= bound)):
        assert matches(parse(f"memory:{sign}{bound}", NOW), {"memory": value}) == expected


# Several queries as one.


def test_any_of_nothing_is_no_device() -> None:
    """An action on an empty list of choices must not reach every device."""
    nothing = Query(any_of(()), NOW)
    assert not matches(nothing, KITCHEN)
    assert parse(str(nothing), NOW) == nothing
    assert matches(Query(all_of(()), NOW), KITCHEN)


# The catalogue and the guide.


def test_the_words_of_a_bare_search_are_text_fields() -> None:
    """A bare word can only be sought in fields that hold text."""
    assert {FIELDS[name].kind for name in WORD_FIELDS} <= {"text", "hex", "known"}


def test_times_say_what_happened() -> None:
    """Every time has a verb for the plain words, and nothing else has."""
    assert {name for name, field in FIELDS.items() if field.phrase} == {
        name for name, field in FIELDS.items() if field.kind == "time"
    }


def test_the_guide_lists_every_field() -> None:
    """The table in docs/query.md is the catalogue."""
    assert fields_table() in GUIDE.read_text(encoding="utf-8")


def test_the_queries_in_the_guide_mean_what_it_says() -> None:
    """Every example is parsed, and the line below it is its meaning."""
    blocks = re.findall(r"```query\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) > 30
    for text, meaning in zip(lines[::2], lines[1::2], strict=True):
        assert f"  {parse(text, NOW).meaning()}" == meaning


def test_the_queries_inside_sentences_of_the_guide_are_queries() -> None:
    """What the guide mentions in passing works too, and what it calls wrong is refused with the answer it gives."""
    accepted, refused = GUIDE.read_text(encoding="utf-8").split("## What it refuses")
    names = "|".join(FIELDS)
    for text in re.findall(rf"`(-?(?:{names}):[^`]+)`", accepted):
        assert parse(text, NOW)
    rows = re.findall(r"\| `(.+)` \| `(.+)` \|", refused)
    assert len(rows) > 8
    assert [refusal(text).suggestion for text, _ in rows] == [better for _, better in rows]


def test_importing_the_language_is_cheap() -> None:
    """A command line pays for no framework, no cryptography, and not for the search of the nearest word."""
    program = "import sys, pi_agent.query; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    dear = {"django", "requests", "cryptography", "difflib", "json", "asyncio", "ssl", "typing"}
    assert not dear & set(done.stdout.split())


if __name__ == "__main__":
    print(fields_table())
