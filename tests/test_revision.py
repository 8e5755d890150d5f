"""The revision code: every code there is, from its bits, and nothing guessed."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_agent.errors import UnreadableBoardError
from pi_agent.revision import (
    FLAGS,
    MANUFACTURERS,
    MEMORY_MIB,
    OLD_STYLE,
    PROCESSORS,
    TYPES,
    Revision,
    decode_revision,
    is_hex,
    is_unknown,
)

CODES = Path(__file__).parents[1] / "fixtures" / "revision-codes.csv"


def known_codes() -> list[dict[str, str]]:
    with CODES.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("row", known_codes(), ids=lambda row: row["code"])
def test_every_known_code_decodes_to_its_documented_fields(row: dict[str, str]) -> None:
    """The official table, the codes seen in the field and the codes with flags all give what is documented."""
    revision = decode_revision(row["code"])
    assert str(revision) == row["code"]
    assert (revision.type, revision.pcb_revision) == (row["type"], row["pcb_revision"])
    assert (revision.soc, revision.manufacturer) == (row["soc"], row["manufacturer"])
    assert "/".join(str(size) for size in revision.memory_choices) == row["memory_mib"]


def test_the_list_holds_every_official_code() -> None:
    """17 old-style and 60 new-style codes are official, and the old-style table holds exactly those 17."""
    official = [row["code"] for row in known_codes() if row["where"] == "official"]
    old = {int(code, 16) for code in official if len(code) == 4}
    assert old == set(OLD_STYLE)
    assert len(official) == len(set(official)) == 17 + 60


@pytest.mark.parametrize(
    ("code", "flags"),
    [
        ("1000002", ["warranty-old"]),
        ("1a01040", ["warranty-old"]),
        ("2a01041", ["warranty"]),
        ("3a21041", ["warranty-old", "warranty"]),
        ("80c03114", ["overvoltage-disallowed"]),
        ("60a220b0", ["otp-read-disallowed", "otp-program-disallowed"]),
        ("a01041", []),
    ],
)
def test_flags_are_kept_apart_from_identity(code: str, flags: list[str]) -> None:
    """Every flag combination seen in the field is named, and the masked code is that of the board without flags."""
    revision = decode_revision(code)
    assert list(revision.flags) == flags
    assert revision.masked == int(code, 16) & 0xFFFFFF
    assert decode_revision(revision.masked).type == revision.type


def test_0015_has_two_sizes_and_so_no_memory() -> None:
    """The one code given to two sizes says both, and does not pick one."""
    assert decode_revision("0015").memory_choices == (256, 512)
    assert decode_revision("0015").memory_mib is None


def test_memory_field_7_leaves_the_size_to_the_firmware() -> None:
    """ "Other" is no size."""
    assert decode_revision("f04171").memory_mib is None
    assert decode_revision("f04171").memory_choices == ()


def test_500_and_500_plus_are_told_apart_by_the_known_sizes_only() -> None:
    """8 GB is a 500 and 16 GB a 500+; any other size of that type stays open."""
    assert decode_revision("d04190").type == "500"
    assert decode_revision("e04190").type == "500+"
    assert decode_revision("c04190").type == "unknown (500 or 500+)"
    assert decode_revision("c04190").name == "Raspberry Pi 500 or 500+"


def test_unknown_fields_stay_unknown_and_the_others_decode() -> None:
    """A type, processor and manufacturer newer than the tables read unknown, with their numbers."""
    revision = decode_revision("df51c3")
    assert revision.type == "unknown (type 0x1c)"
    assert revision.soc == "unknown (processor 0x5)"
    assert revision.manufacturer == "unknown (manufacturer 0xf)"
    assert (revision.memory_mib, revision.pcb_revision) == (8192, "1.3")
    assert revision.name == "Raspberry Pi, unknown (type 0x1c)"


@pytest.mark.parametrize("code", ["0000", "0001", "000a", "000c", "0016", "1000000", "00110002", "7fffff"])
def test_a_number_that_was_never_given_to_a_board_is_refused(code: str) -> None:
    """Zero and unassigned old-style numbers are no boards, and the message names the number."""
    with pytest.raises(UnreadableBoardError, match=f"{int(code, 16):04x}"):
        decode_revision(code)


@pytest.mark.parametrize("text", ["", "xyz", "0xa01041", "a0_1041", "+a01041", "a01041 ", "1a0104100", "٠٠٠٢"])
def test_text_that_is_no_code_is_refused(text: str) -> None:
    """Only one to eight ASCII hexadecimal digits are a code: no sign, blank, underscore or other script's digits."""
    with pytest.raises(UnreadableBoardError):
        decode_revision(text)


@pytest.mark.parametrize("code", [-1, 1 << 32])
def test_more_than_32_bits_are_refused(code: int) -> None:
    """A number outside 32 bits is no code."""
    with pytest.raises(UnreadableBoardError, match="32 bits"):
        decode_revision(code)


@given(st.integers(0, 0xFFFF_FFFF))
def test_any_32_bit_number_is_a_revision_or_our_error(code: int) -> None:
    """Every number decodes to printable fields, or is refused as a code that no board has."""
    try:
        revision = decode_revision(code)
    except UnreadableBoardError:
        return
    assert decode_revision(str(revision)) == revision
    texts = (revision.type, revision.name, revision.soc, revision.manufacturer, revision.pcb_revision)
    assert all(text and text.isprintable() and len(text) <= 64 for text in texts)
    assert len(revision.flags) == (code >> 24).bit_count()


@given(
    type_number=st.sampled_from(sorted(TYPES)),
    pcb=st.integers(0, 15),
    processor=st.sampled_from(sorted(PROCESSORS)),
    manufacturer=st.sampled_from(sorted(MANUFACTURERS)),
    memory=st.sampled_from(sorted(MEMORY_MIB)),
    flags=st.integers(0, 255),
)
def test_each_field_of_a_new_style_code_is_read_from_its_own_bits(
    type_number: int, pcb: int, processor: int, manufacturer: int, memory: int, flags: int
) -> None:
    """NOQu uuWw FMMM CCCC PPPP TTTT TTTT RRRR: whatever the other fields hold."""
    bits = f"{flags:08b} 1{memory:03b} {manufacturer:04b} {processor:04b} {type_number:08b} {pcb:04b}"
    revision = Revision(int(bits.replace(" ", ""), 2))
    assert revision.new_style
    assert revision.type_number == type_number
    assert revision.pcb_revision == f"1.{pcb}"
    assert revision.soc == PROCESSORS[processor]
    assert revision.manufacturer == MANUFACTURERS[manufacturer]
    assert revision.memory_mib == MEMORY_MIB[memory]
    assert revision.code >> 24 == flags


def test_every_state_bit_has_a_word() -> None:
    """Bits 24 to 31 are named, each with its own word."""
    assert sorted(FLAGS) == list(range(24, 32))
    assert len({word for word, _ in FLAGS.values()}) == 8


def test_hex_means_ascii_digits_only() -> None:
    """Empty text, other scripts and inner blanks are not hexadecimal."""
    assert is_hex("00aF")
    assert not any(is_hex(text) for text in ("", "a f", "٣", "0x1", "g"))
    assert is_unknown("unknown (type 0x1c)")
    assert not is_unknown("2B")
