"""From facts to a Board: the three outcomes, the order of the sources, and hostile text."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pi_agent
from pi_agent.board import Board, board_claims, board_from_revision, identify, needs_mailbox, parse_cpuinfo
from pi_agent.errors import BoardError, NotARaspberryPiError, UnreadableBoardError
from pi_agent.facts import TREE_PROPERTIES, TREES, Facts, clean
from pi_agent.revision import Revision, decode_revision

SERIAL = "00000000c3a91e5f"
PI2 = f"Hardware\t: BCM2835\nRevision\t: a01041\nSerial\t\t: {SERIAL}\nModel\t\t: Raspberry Pi 2 Model B Rev 1.1\n"
PROC, SYS = TREES
SRC = Path(__file__).parents[1] / "src"


def tree(**properties: bytes) -> dict[str, bytes]:
    """A device tree; keywords name the properties by their last word."""
    names = {name.rpartition("/")[2].replace(",", "_").replace("-", "_"): name for name in TREE_PROPERTIES}
    return {names[word]: raw for word, raw in properties.items()}


def test_a_board_tells_everything_and_where_it_came_from() -> None:
    """A plain Pi 2 text gives every field with its origin."""
    board = parse_cpuinfo(PI2)
    assert (board.model, board.type, board.memory_mib) == ("Raspberry Pi 2 Model B", "2B", 1024)
    assert (board.soc, board.manufacturer, board.pcb_revision) == ("BCM2836", "Sony UK", "1.1")
    assert (board.serial, str(board.revision), board.flags) == (SERIAL, "a01041", ())
    assert (board.conflicts, board.notes) == ((), ())
    assert board.kernel_model == "Raspberry Pi 2 Model B Rev 1.1"
    assert board.sources["serial"] == board.sources["revision"] == "/proc/cpuinfo"
    assert board.sources["memory_mib"] == board.sources["model"] == "revision code"


def test_claims_are_exactly_the_six_and_hold_no_flags() -> None:
    """Two boards that differ in state bits only make equal claims."""
    plain, overvolted = parse_cpuinfo(PI2), parse_cpuinfo(PI2.replace("a01041", "3a01041"))
    assert overvolted.flags == ("warranty-old", "warranty")
    assert board_claims(plain) == board_claims(overvolted)
    assert board_claims(plain) == {
        "serial": SERIAL,
        "revision": "a01041",
        "model": "2B",
        "memory_mib": 1024,
        "soc": "BCM2836",
        "pcb_revision": "1.1",
    }


def test_claims_of_an_unknown_board_are_none_not_guesses() -> None:
    """What the tables do not know is None in a claim, and old-style codes keep four digits."""
    claims = board_claims(board_from_revision(decode_revision("d061c3")))
    assert (claims["model"], claims["soc"], claims["serial"]) == (None, None, None)
    assert (claims["revision"], claims["memory_mib"], claims["pcb_revision"]) == ("d061c3", 8192, "1.3")
    assert board_claims(board_from_revision(decode_revision("1000002")))["revision"] == "0002"
    assert board_claims(board_from_revision(decode_revision("c04190")))["model"] is None


@pytest.mark.parametrize(
    ("hardware", "code"),
    [("Generic AM33XX (Flattened Device Tree)", "0010"), ("Xilinx Zynq Platform", "0003"), ("Tuna", "0009")],
)
def test_old_style_codes_of_other_boards_are_refused(hardware: str, code: str) -> None:
    """BeagleBone, Zynq and Galaxy Nexus print codes of a B+, a B and an A, and are none of them."""
    with pytest.raises(NotARaspberryPiError, match="Hardware"):
        parse_cpuinfo(f"Hardware\t: {hardware}\nRevision\t: {code}\nSerial\t\t: 0000000000000000\n")


@pytest.mark.parametrize("code", ["0002", "0010", "1000002", "0020", "020c"])
def test_an_old_style_code_proves_nothing_by_itself(code: str) -> None:
    """Without any line that names a Raspberry Pi, an old-style number is not one."""
    with pytest.raises(NotARaspberryPiError, match=f"{code} is printed by other boards"):
        parse_cpuinfo(f"Revision\t: {code}\n")


def test_a_new_style_code_of_a_known_type_proves_itself() -> None:
    """A known new-style code suffices where nothing speaks against it; an unknown one does not."""
    assert parse_cpuinfo("Revision : c03114\n").type == "4B"
    with pytest.raises(NotARaspberryPiError, match="no known type"):
        parse_cpuinfo("Revision : c031c4\n")


@pytest.mark.parametrize("evidence", ["Hardware : BCM2708", "Model : Raspberry Pi Model B Rev 1"])
def test_an_old_style_code_with_evidence_is_a_board(evidence: str) -> None:
    """A Raspberry Pi's chip or name is the evidence an old-style code needs."""
    assert parse_cpuinfo(f"{evidence}\nRevision : 0002\n").type == "B"


def test_names_are_whole_words() -> None:
    """A "Raspberry Pine" is no Raspberry Pi."""
    with pytest.raises(NotARaspberryPiError, match="Raspberry Pine"):
        parse_cpuinfo("Model : Raspberry Pine 64\n")


def test_keys_are_matched_whole_and_from_the_line_start() -> None:
    """CPU revision, model name, lower-case revision and text inside a line are other things."""
    text = "CPU revision\t: a02082\nmodel name\t: Raspberry Pi\nrevision\t: a02082\n... Revision : a02082\n"
    with pytest.raises(UnreadableBoardError):
        parse_cpuinfo(text)


def test_the_first_of_two_different_serials_counts_and_the_other_is_told() -> None:
    """RA-28: two Serials never settle in silence."""
    board = parse_cpuinfo(PI2 + "Serial\t\t: 00000000deadbeef\n")
    assert board.serial == SERIAL
    assert board.conflicts == (f"/proc/cpuinfo says serial {SERIAL}, /proc/cpuinfo says 00000000deadbeef",)


def test_lines_repeated_per_core_are_one_value() -> None:
    """Kernel 6.18 repeats the lines for each core: no conflict."""
    assert parse_cpuinfo(PI2 * 4) == parse_cpuinfo(PI2)


@pytest.mark.parametrize("serial", ["0" * 16, "0", "", "00000000xxxxxxxx", "#############", "3" * 20, "c0ffee tail"])
def test_a_serial_that_is_none_is_absent(serial: str) -> None:
    """All zeros, masked and overlong serials are no serial; RA-28: a missing one is no error."""
    assert parse_cpuinfo(PI2.replace(SERIAL, serial)).serial is None


def test_a_masked_serial_is_told_and_zeros_are_not() -> None:
    """A serial in the wrong form is worth a note, one of zeros is the kernel's way to say none."""
    assert "xxxx" in parse_cpuinfo(PI2.replace(SERIAL, "00000000xxxxxxxx")).notes[0]
    assert parse_cpuinfo(PI2.replace(SERIAL, "0" * 16)).notes == ()


def test_the_device_tree_fills_in_and_the_mailbox_is_last() -> None:
    """cpuinfo without a code: the device tree has it; without either, the firmware's mailbox."""
    silent = "Hardware : BCM2835\nRevision : 0000\n"
    properties = tree(linux_revision=bytes.fromhex("00a02082"), serial_number=SERIAL.encode() + b"\0")
    mailbox = {"revision": 0xA22082, "serial": 0xC3A91E5F}
    board = identify(Facts(cpuinfo=silent, trees={PROC: properties}, mailbox=mailbox))
    assert (str(board.revision), board.sources["revision"]) == ("a02082", f"{PROC}/system/linux,revision")
    assert board.serial == SERIAL
    assert board.conflicts == (f"{PROC}/system/linux,revision says revision a02082, /dev/vcio says a22082",)
    last = identify(Facts(cpuinfo=silent, mailbox=mailbox))
    assert (str(last.revision), last.serial, last.sources["serial"]) == ("a22082", SERIAL, "/dev/vcio")


def test_the_mailbox_alone_proves_a_pi() -> None:
    """Only VideoCore firmware answers there, so it is evidence for an old-style code."""
    assert identify(Facts(mailbox={"revision": 0x0010})).type == "B+"


def test_the_mailbox_is_needed_only_without_code_or_serial() -> None:
    """The last resort is not touched when the others have told all."""
    assert not needs_mailbox(Facts(cpuinfo=PI2))
    assert needs_mailbox(Facts(cpuinfo=PI2.replace(SERIAL, "0" * 16)))
    assert needs_mailbox(Facts())


def test_serials_of_64_bits_are_kept_whole() -> None:
    """A Pi 5 serial keeps both halves, from text and from cells, leading zero included."""
    cells = tree(linux_revision=bytes.fromhex("00d04171"), linux_serial=bytes.fromhex("0a8f7e5c12345678"))
    assert identify(Facts(trees={SYS: cells})).serial == "0a8f7e5c12345678"


def test_the_firmware_states_the_memory() -> None:
    """rpi-sdram-size-gbit fills memory field 7, goes before the code, and a difference is told."""
    facts = Facts(trees={PROC: tree(linux_revision=bytes.fromhex("00f04171"), rpi_sdram_size_gbit=b"\0\0\0\x18")})
    assert identify(facts).memory_mib == 3072
    differs = Facts(trees={PROC: tree(linux_revision=bytes.fromhex("00c03114"), rpi_sdram_size_gbit=b"\0\0\0\x40")})
    board = identify(differs)
    assert (board.memory_mib, board.sources["memory_mib"]) == (8192, f"{PROC}/chosen/rpi-sdram-size-gbit")
    assert len(board.conflicts) == 1
    assert "4096" in board.conflicts[0]


def test_0015_says_both_sizes() -> None:
    """The memory of an A+ 0015 is unknown, and the note names both sizes."""
    board = parse_cpuinfo("Hardware : BCM2835\nRevision : 0015\n")
    assert board.memory_mib is None
    assert "256 or 512 MB" in board.notes[0]


def test_a_newer_board_says_how_to_report_it() -> None:
    """An unknown type uses the kernel's words as its name, and the note has the command."""
    board = parse_cpuinfo(PI2.replace("a01041", "d061c3").replace("Pi 2 Model B Rev 1.1", "Pi 6 Model B Rev 1.3"))
    assert (board.type, board.model) == ("unknown (type 0x1c)", "Raspberry Pi 6 Model B Rev 1.3")
    assert board.sources["model"] == "/proc/cpuinfo"
    assert (board.memory_mib, board.manufacturer) == (8192, "Sony UK")
    assert "type 0x1c, processor 0x6" in board.notes[0]
    assert "pi-agent board --record" in board.notes[0]


def test_code_text_and_core_that_disagree_are_told() -> None:
    """A code of one board with the model text and the core of another is reported, not settled."""
    board = parse_cpuinfo("CPU part : 0xd08\n" + PI2.replace("Pi 2 Model B Rev 1.1", "Pi 4 Model B Rev 1.4"))
    assert board.type == "2B"
    assert [conflict.split(",")[0] for conflict in board.conflicts] == [
        "revision a01041 is a Raspberry Pi 2 Model B",
        "revision a01041 has a BCM2836",
    ]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("a020d3", "Raspberry Pi 3 Model B Plus Rev 1.3"),
        ("a020d3", "Raspberry Pi 3 Model B+"),
        ("902120", "Raspberry Pi Zero 2 Rev 1.0"),
        ("900061", "Raspberry Pi Compute Module Rev 1.1"),
        ("b041a0", "Raspberry Pi Compute Module 5 Rev 1.0"),
        ("e04190", "Raspberry Pi 500 Rev 1.0"),
        ("d04170", "Raspberry Pi 5 Model B Rev 1.0"),
        ("000e", "Raspberry Pi Model B Rev 2"),
    ],
)
def test_the_kernels_own_wording_is_no_conflict(code: str, text: str) -> None:
    """Kernel, firmware and mainline word the same board differently."""
    assert parse_cpuinfo(f"Hardware : BCM2835\nRevision : {code}\nModel : {text}\n").conflicts == ()


def test_plus_and_its_sign_are_one_name() -> None:
    """The kernel writes Plus where people write +: a 3B that calls itself Plus is a conflict."""
    text = "Hardware : BCM2835\nRevision : a02082\nModel : Raspberry Pi 3 Model B Plus Rev 1.3\n"
    assert len(parse_cpuinfo(text).conflicts) == 1


@pytest.mark.parametrize(
    ("facts", "reason", "hint"),
    [
        (Facts(cpuinfo="CPU part : 0xd08\n"), "this text is all there is", "on the machine itself"),
        (Facts(cpuinfo="", failures=dict.fromkeys(TREES, "absent")), "containers hide it", "systempaths=unconfined"),
        (Facts(cpuinfo="", trees={PROC: tree(compatible=b"raspberrypi,x\0")}), "not the firmware's", "--revision CODE"),
        (Facts(cpuinfo="", trees={PROC: tree(u_boot_version=b"2024.01\0")}), "U-Boot replaced", "fdt_addr"),
        (Facts(failures={"/dev/vcio": "permission denied"}), "permission denied on /dev/vcio", "usermod -aG video"),
        (Facts(failures={PROC: "permission denied"}), f"permission denied on {PROC}", "sudo pi-agent board"),
        (Facts(failures={"/proc/cpuinfo": "absent"}), "/proc/cpuinfo: absent", "ProcSubset=pid"),
        (Facts(cpuinfo="Hardware : BCM2835\nRevision : 000b\n"), "never given to a board", "--record"),
        (Facts(cpuinfo="Hardware : BCM2835\nRevision : what\n"), "'what'", "grep Revision"),
        (Facts(trees={PROC: tree(linux_revision=b"c03114\0", model=b"Raspberry Pi 4\0")}), "7 bytes", "grep Revision"),
    ],
)
def test_an_unreadable_pi_says_why_and_what_to_run(facts: Facts, reason: str, hint: str) -> None:
    """Each cause has its own sentence and its own next command, and the exit code is 1."""
    with pytest.raises(UnreadableBoardError) as caught:
        identify(facts)
    assert reason in str(caught.value)
    assert hint in (caught.value.hint or "")
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(cpuinfo="vendor_id : GenuineIntel\n"), "GenuineIntel"),
        (Facts(cpuinfo="isa : rv64imafdc\n"), "rv64imafdc"),
        (Facts(cpuinfo="CPU implementer : 0x61\n"), "0x61"),
        (Facts(cpuinfo="CPU implementer : 0x41\nCPU part : 0xd07\n"), "0xd07"),
        (Facts(cpuinfo="Hardware : BCM2835\n", trees={PROC: tree(compatible=b"roku,two\0brcm,bcm2835\0")}), "roku,two"),
        (Facts(trees={SYS: tree(model=b"Radxa ROCK 5 Model B\0")}), "Radxa ROCK 5"),
    ],
)
def test_another_machine_says_what_it_is(facts: Facts, reason: str) -> None:
    """Not a Raspberry Pi: the sentence repeats what the machine said, and the exit code is 3."""
    with pytest.raises(NotARaspberryPiError) as caught:
        identify(facts)
    assert reason in str(caught.value)
    assert caught.value.hint
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "change",
    [
        {"serial": "C3A91E5F"},
        {"serial": "0" * 16},
        {"serial": ""},
        {"serial": "1" * 17},
        {"memory_mib": 0},
        {"model": "\x1b]0;owned\x07"},
        {"model": "x" * 65},
        {"soc": ""},
        {"manufacturer": "Sony\nUK"},
    ],
)
def test_a_board_that_exists_is_valid(change: dict[str, object]) -> None:
    """No Board can be made with a serial, size or text out of form."""
    with pytest.raises(BoardError):
        dataclasses.replace(parse_cpuinfo(PI2), **change)  # type: ignore[arg-type]  # wrong on purpose


def test_terminal_escapes_never_leave() -> None:
    """A-08, D-07: escapes, NULs, RTL marks and other scripts are cut from every value."""
    text = "Hardware : BCM2835\nRevision : a01041\nModel : Raspberry Pi \x1b]0;x\x07\u202e2\x00 Model B\u2066 caf\xe9\n"
    assert parse_cpuinfo(text).kernel_model == "Raspberry Pi ]0;x2 Model B caf"
    assert clean("\x1b[31m" + "a" * 100) == ("[31m" + "a" * 100)[:64]


def test_endless_input_is_bounded() -> None:
    """A-08: ten megabytes, one endless line, and 100,000 different serials end in an outcome of normal size."""
    with pytest.raises(UnreadableBoardError) as caught:
        parse_cpuinfo("Serial : " + "x" * (10 << 20))
    assert len(str(caught.value)) < 400
    with pytest.raises(UnreadableBoardError):
        parse_cpuinfo("\n" * (1 << 20) + PI2)
    board = parse_cpuinfo(PI2 + "".join(f"Serial : {number:016x}\n" for number in range(1, 40_000)))
    assert len(board.conflicts) < 8


IDENTITY = st.sampled_from(["Hardware", "Revision", "Serial", "Model", "CPU part", "CPU implementer", "vendor_id", "x"])
VALUES = st.one_of(
    st.text(max_size=80),
    st.sampled_from(["BCM2835", "a01041", "0000", "0010", "Raspberry Pi 2 Model B", "0xd03", "0x41", SERIAL]),
    st.integers(0, 0xFFFF_FFFF).map(lambda code: f"{code:04x}"),
)
CPUINFO = st.one_of(
    st.text(),
    st.lists(st.tuples(IDENTITY, VALUES), max_size=12).map(lambda lines: "\n".join(f"{k}\t: {v}" for k, v in lines)),
)
PROPERTIES = st.dictionaries(
    st.sampled_from(TREE_PROPERTIES),
    st.one_of(st.binary(max_size=80), st.sampled_from([b"raspberrypi,x\0", bytes.fromhex("00a02082"), b"\0" * 8])),
)


def harmless(text: str) -> bool:
    return text.isascii() and text.isprintable()


def one_of_three(facts: Facts) -> None:
    """A Board whose every text is printable, or one of the two errors with a printable sentence and a hint."""
    try:
        board = identify(facts)
    except BoardError as error:
        assert isinstance(error, NotARaspberryPiError | UnreadableBoardError)
        assert harmless(str(error))
        assert error.hint
        return
    assert all(harmless(text) for text in (*board.conflicts, *board.notes, board.kernel_model or "", board.model))
    assert set(board_claims(board)) == {"serial", "revision", "model", "memory_mib", "soc", "pcb_revision"}


@given(CPUINFO)
def test_any_text_has_one_of_three_outcomes(text: str) -> None:
    """RA-28: whatever the text, a Board, not a Pi, or unreadable."""
    one_of_three(Facts(cpuinfo=text))


@given(st.one_of(st.none(), CPUINFO), PROPERTIES, PROPERTIES, st.integers(0, 0xFFFF_FFFF))
def test_any_facts_have_one_of_three_outcomes(
    text: str | None, proc: dict[str, bytes], sys_tree: dict[str, bytes], code: int
) -> None:
    """Whatever all the sources say, a Board, not a Pi, or unreadable."""
    one_of_three(Facts(cpuinfo=text, trees={PROC: proc, SYS: sys_tree}, mailbox={"revision": code}))


@given(st.integers(0, 0xFFFF_FFFF))
def test_any_code_has_one_of_three_outcomes(code: int) -> None:
    """Every 32-bit code on a Raspberry Pi's chip is a Board with that code, or unreadable."""
    try:
        board = parse_cpuinfo(f"Hardware : BCM2835\nRevision : {code:04x}\n")
    except UnreadableBoardError:
        with pytest.raises(UnreadableBoardError):
            Revision(code)
    else:
        assert board.revision == Revision(code)


def test_the_public_names_are_these() -> None:
    """``__all__`` is the public surface; every name in it can be had."""
    assert sorted(pi_agent.__all__) == pi_agent.__all__
    assert {"Board", "decode_revision", "parse_cpuinfo"} <= set(pi_agent.__all__)
    for name in pi_agent.__all__:
        assert getattr(pi_agent, name).__name__ == name
    assert all(getattr(pi_agent, name).__doc__ for name in ("Board", "Revision", "decode_revision", "parse_cpuinfo"))
    assert pi_agent.Board is Board
    assert set(pi_agent.__all__) <= set(dir(pi_agent))
    with pytest.raises(AttributeError, match="no_such_name"):
        pi_agent.no_such_name  # noqa: B018 - the access is the test


def imported_by(statement: str) -> set[str]:
    """The modules that a bare interpreter loads for one statement."""
    code = f"import sys; sys.path.insert(0, {str(SRC)!r}); old = set(sys.modules); {statement}; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_imports_nothing_else() -> None:
    """A thin daemon imports the package: no dataclasses, enum, re, json, and none of our modules."""
    assert imported_by("import pi_agent") == {"pi_agent"}


def test_decoding_a_board_pulls_in_no_network_and_no_cryptography() -> None:
    """The decoder works without any of the dependencies."""
    loaded = imported_by("from pi_agent import Board, decode_revision, parse_cpuinfo; parse_cpuinfo; decode_revision")
    assert {"pi_agent.board", "pi_agent.revision"} <= loaded
    assert not loaded & {"requests", "cryptography", "jwt", "oauthlib", "ssl", "socket", "json", "pi_agent.device"}
