"""What a device says about itself is text from a stranger: known members, short, and harmless to whoever prints it (D-07)."""

from __future__ import annotations

from typing import Any

import pytest

from hall.believing import BOARD, refused, verified
from hall.material import CLAIMS


@pytest.mark.parametrize("name", ["serial", "revision", "model", "soc", "pcb_revision"])
@pytest.mark.parametrize("value", [5, True, [], {}, "\x1b]0;x\x07", "a\nb", "caf\u00e9", "\u202e", "a\0", "x" * 65])
def test_d07_board_texts_are_short_and_printable_ascii(name: str, value: Any) -> None:
    """A board claim that could speak to a terminal, a log or a page is refused."""
    assert refused(CLAIMS | {"board": BOARD | {name: value}}) == "board"


@pytest.mark.parametrize("value", ["1024", 1024.0, True, 0, -1, 2**31, [1024]])
def test_board_memory_is_a_whole_number_of_mib(value: Any) -> None:
    """Text, fractions, booleans and impossible sizes are no memory."""
    assert refused(CLAIMS | {"board": BOARD | {"memory_mib": value}}) == "board"


@pytest.mark.parametrize("board", [[], "Raspberry Pi", 5, BOARD | {"admin": True}])
def test_board_is_an_object_of_known_members(board: Any) -> None:
    """An unknown member is refused, so that nothing rides along into the registry."""
    assert refused(CLAIMS | {"board": board}) == "board"


def test_an_unknown_board_is_unknown_in_every_member() -> None:
    """Absent members come back as None; no board at all comes back as None."""
    assert verified(CLAIMS | {"board": {"model": "Raspberry Pi 5"}}).board == dict.fromkeys(BOARD) | {
        "model": "Raspberry Pi 5"
    }
    assert verified(CLAIMS | {"board": None}).board is None
    assert verified().board is None


@pytest.mark.parametrize("boot", ["", "A" * 42, "A" * 44, "A" * 42 + "=", "A" * 42 + "+", 5, True, ["A" * 43], {}])
def test_boot_is_a_digest(boot: Any) -> None:
    """The clone ratchet compares digests; anything else is refused."""
    assert refused(CLAIMS | {"boot": boot}) == "boot"


@pytest.mark.parametrize(
    "agent",
    [
        None,
        [],
        "0.1.0",
        {"version": 1},
        {"version": "\x1b"},
        {"key": "hsm"},
        {"key": ["tpm"]},
        {"simulated": 1},
        {"simulated": "yes"},
        {"flags": "warranty"},
        {"flags": [1]},
        {"flags": ["w"] * 17},
    ],
)
def test_agent_says_version_key_and_simulated(agent: Any) -> None:
    """A protection level we do not know, or members of another type, are refused."""
    assert refused(CLAIMS | {"agent": agent}) == "agent"


def test_agent_drops_what_it_does_not_know() -> None:
    """Unknown members of agent are for the future; they do not reach the registry."""
    assert verified(CLAIMS | {"agent": {"key": "tpm", "later": 1}}).agent == {
        "version": "",
        "key": "tpm",
        "simulated": False,
        "flags": None,
    }


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        (None, (None, None)),
        ([], (True, False)),
        (["overvoltage-disallowed"], (False, False)),
        (["warranty-old", "otp-read-disallowed"], (True, True)),
    ],
)
def test_state_bits_are_what_the_device_says_today(
    flags: list[str] | None, state: tuple[bool | None, bool | None]
) -> None:
    """Overvoltage and warranty come from agent.flags, and are unknown when a client does not send them."""
    agent = {"key": "file"} | ({} if flags is None else {"flags": flags})
    assert verified(CLAIMS | {"agent": agent}).board_state == state
