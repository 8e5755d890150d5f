"""Whose identity is on the card: bound to its board, set aside on another, held back while an image is made."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.conftest import needs_root
from pi_agent.device import files, golden, identity, joining, rotate
from pi_agent.device.identity import Identity
from pi_agent.device.keys import KeyStore, stores
from pi_agent.errors import ConfigError, ConflictError, KeyFileError, PiAgentError

ISSUER = "https://fleet.test"
HERE, THERE = "00000000c0ffee01", "00000000c0ffee02"


def enroll(state: Path, serial: str, client_id: str) -> Identity:
    """An enrollment whose server always agrees."""
    known, key = joining.begin(state, issuer=ISSUER, serial=serial, store="file", algorithm="ES256")
    return joining.complete(state, known, key, client_id=client_id, token_endpoint=f"{ISSUER}/oauth/token")


def listing(state: Path) -> list[str]:
    return sorted(str(path.relative_to(state)) for path in state.rglob("*") if path.is_file())


def test_a_key_is_bound_before_it_exists(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F-09: a card pulled while its key is made belongs to this board already; another board makes a key of its own."""

    def pulled(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "load_or_create", pulled)
    with pytest.raises(KeyboardInterrupt):
        enroll(state, HERE, "pi-1")
    assert listing(state) == ["identity.json"]
    draft = identity.find(state)
    assert draft is not None
    assert (draft.serial, draft.is_draft) == (HERE, True)
    with pytest.raises(ConfigError, match="not set up yet"):
        identity.load(state)


def test_ra25_on_another_board_the_identity_is_refused_and_untouched(state: Path) -> None:
    """RA-25: a copied card says whose identity it holds, and how to go on, and changes nothing."""
    known = enroll(state, HERE, "pi-1")
    before = {name: (state / name).read_bytes() for name in listing(state)}
    with pytest.raises(KeyFileError, match=f"belongs to the board with serial {HERE}") as caught:
        known.check_board(THERE)
    assert f"pi-agent setup {ISSUER}" in str(caught.value.hint)
    assert {name: (state / name).read_bytes() for name in listing(state)} == before


def test_another_board_enrolls_as_itself_and_keeps_what_it_found(state: Path) -> None:
    """F-09: setup on the other board sets the old identity aside whole, and makes a new key."""
    first = enroll(state, HERE, "pi-1")
    key = (state / "key.pem").read_bytes()
    second = enroll(state, THERE, "pi-2")
    assert first.kid != second.kid
    assert (state / "boards" / HERE / "key.pem").read_bytes() == key
    assert identity.set_aside(state) == [HERE]
    assert joining.load_key(state, second).public_key().kid == second.kid


def test_a_folder_that_is_no_serial_reaches_no_terminal(state: Path) -> None:
    """The agent's user can make any folder there, and root is shown what is set aside."""
    enroll(state, HERE, "pi-1")
    enroll(state, THERE, "pi-2")
    strange = state / "boards" / "\x1b[2J"
    strange.mkdir(mode=0o700)
    (strange / "identity.json").write_text("{}")
    assert identity.set_aside(state) == [HERE]


def test_a_card_that_goes_back_finds_its_identity_again(state: Path) -> None:
    """Swapping a card there and back leaves each board with the identity it had."""
    first, second = enroll(state, HERE, "pi-1"), enroll(state, THERE, "pi-2")
    for serial, known in ((HERE, first), (THERE, second), (HERE, first)):
        assert identity.claim(state, serial) == known
        assert joining.load_key(state, known).public_key().kid == known.kid


def test_a_move_that_was_cut_off_goes_on(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many renames came through before the power went, no board ever gets the other one's key."""
    for survived in range(4):
        folder = state / str(survived)
        folder.mkdir(mode=0o700)
        first = enroll(folder, HERE, "pi-1")
        real, left = Path.rename, [survived]

        def rename(path: Path, target: Path, real: Any = real, left: list[int] = left) -> Any:
            if not left[0]:
                raise OSError(5, "Input/output error")
            left[0] -= 1
            return real(path, target)

        monkeypatch.setattr(Path, "rename", rename)
        if survived < 2:
            with pytest.raises(KeyFileError, match="Input/output"):
                identity.claim(folder, THERE)
        monkeypatch.undo()
        second = enroll(folder, THERE, "pi-2")
        assert second.kid != first.kid
        assert identity.claim(folder, HERE) == first
        assert joining.load_key(folder, first).public_key().kid == first.kid


def test_a_stray_key_without_an_identity_is_not_taken_for_ours(state: Path) -> None:
    """A key.pem of unknown origin stays, and this board makes its own."""
    stray = enroll(state, HERE, "pi-1")
    (state / "identity.json").unlink()
    known = enroll(state, THERE, "pi-2")
    assert known.kid != stray.kid
    assert known.key != "file:key.pem"
    assert (state / "key.pem").exists()


def test_setup_again_changes_nothing(state: Path) -> None:
    """An answer that was lost is asked for again with the same key."""
    first = enroll(state, HERE, "pi-1")
    assert enroll(state, HERE, "pi-1") == first


def test_an_enrolled_board_does_not_go_to_another_server_by_accident(state: Path) -> None:
    """A second server is a conflict, said with the command that would leave the first."""
    enroll(state, HERE, "pi-1")
    with pytest.raises(ConflictError, match="is enrolled at") as caught:
        joining.begin(state, issuer="https://other.test", serial=HERE, store="file", algorithm="ES256")
    assert "wipe-identity" in str(caught.value.hint)


def test_f06_a_lost_key_is_said_and_never_replaced(state: Path) -> None:
    """F-06: an enrolled board whose key is gone makes no new one, at setup neither."""
    enroll(state, HERE, "pi-1")
    (state / "key.pem").unlink()
    with pytest.raises(KeyFileError, match="is gone"):
        enroll(state, HERE, "pi-1")
    assert not (state / "key.pem").exists()


def test_f06_another_key_in_its_place_is_not_used(state: Path) -> None:
    """F-06: a key that is not the one that was enrolled is refused by name, before it signs anything."""
    known = enroll(state, HERE, "pi-1")
    (state / "key.pem").unlink()
    stores.load_or_create("file:key.pem", state)
    with pytest.raises(KeyFileError, match="not the one that was enrolled"):
        joining.load_key(state, known)


@pytest.mark.parametrize("version", [identity.VERSION + 1, 99])
def test_ra37_newer_state_is_left_alone(state: Path, version: int) -> None:
    """RA-37: an older agent says that the state is newer, and does not touch it."""
    enroll(state, HERE, "pi-1")
    document = json.loads((state / "identity.json").read_text())
    files.replace(state / "identity.json", json.dumps(document | {"version": version}).encode())
    before = (state / "identity.json").read_bytes()
    with pytest.raises(KeyFileError, match="newer pi-agent"):
        enroll(state, HERE, "pi-1")
    assert (state / "identity.json").read_bytes() == before


def test_ra37_older_state_is_understood(state: Path) -> None:
    """RA-37: the state of the first release, which named no key, means key.pem."""
    known = enroll(state, HERE, "pi-1")
    document = json.loads((state / "identity.json").read_text())
    old = {name: document[name] for name in ("issuer", "client_id", "token_endpoint", "kid", "serial")}
    files.replace(state / "identity.json", json.dumps({"version": 1} | old).encode())
    assert identity.load(state) == known


@pytest.mark.parametrize("text", ["file:key\0.pem", "\ud800", "https://fleet.test\n"])
@pytest.mark.parametrize("name", ["issuer", "client_id", "key", "kid", "serial"])
def test_ra23_an_identity_with_a_character_that_no_name_has_is_damaged(state: Path, name: str, text: str) -> None:
    """RA-23: what a flipped bit left in a member is found where the file is read, not where the member is used."""
    enroll(state, HERE, "pi-1")
    document = json.loads((state / "identity.json").read_text())
    files.replace(state / "identity.json", json.dumps(document | {name: text}).encode())
    with pytest.raises(KeyFileError, match="is damaged; it was left as it is"):
        identity.find(state)


@given(
    st.one_of(
        st.binary(),
        st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=3).map(
            lambda value: json.dumps({"version": 2, "issuer": value}).encode()
        ),
    )
)
def test_any_identity_file_is_an_identity_or_our_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Whatever the file holds, it is an identity or damaged, and it stays as it is."""
    state = tmp_path_factory.mktemp("state")
    state.chmod(0o700)
    files.create(state / "identity.json", content)
    try:
        assert isinstance(identity.find(state), Identity)
    except PiAgentError:
        assert (state / "identity.json").read_bytes() == content


# images


def test_f11_no_enrollment_while_an_image_is_made(state: Path) -> None:
    """F-11: with the marker of this board, nothing enrolls and nothing is written."""
    golden.mark(state, HERE)
    with pytest.raises(ConfigError, match="made into an image") as caught:
        enroll(state, HERE, "pi-1")
    assert f"rm {state}/golden-image" in str(caught.value.hint)
    assert listing(state) == ["golden-image"]


def test_f11_a_board_started_from_the_image_enrolls_by_itself(state: Path) -> None:
    """F-11: on another board the marker has done its work and goes."""
    golden.mark(state, HERE)
    assert enroll(state, THERE, "pi-2").client_id == "pi-2"
    assert not (state / "golden-image").exists()


def test_f11_a_marker_without_a_serial_holds_everywhere(state: Path) -> None:
    """F-11: an image made where no board is has to be released by hand."""
    golden.mark(state, "")
    for serial in (HERE, THERE):
        with pytest.raises(ConfigError, match="made into an image"):
            enroll(state, serial, "pi-1")


def test_wiping_leaves_no_identity_of_any_board(state: Path) -> None:
    """A-11: no key of this board or of one set aside gets into an image."""
    enroll(state, HERE, "pi-1")
    enroll(state, THERE, "pi-2")
    identity.forget(state)
    assert listing(state) == []


def test_wiping_leaves_no_second_name_of_a_key(state: Path) -> None:
    """A-11: power went between making the key and taking its temporary name away; a wiped card has neither name."""
    known = enroll(state, HERE, "pi-1")
    (state / ".pi-agent-0123456789abcdef").hardlink_to(state / known.key.removeprefix("file:"))
    identity.forget(state)
    assert list(state.iterdir()) == []


# rotation, as far as the card goes


def test_two_workers_cannot_undo_each_other(state: Path) -> None:
    """A worker that read the identity before another one finished a rotation changes nothing (F-04)."""
    known = enroll(state, HERE, "pi-1")
    begun = rotate.begin(state, known, "file:key-1.pem")
    key = stores.load_or_create(begun.next_key, state)
    done = rotate.finish(state, begun, key)
    assert rotate.finish(state, begun, key) == done
    with pytest.raises(ConflictError, match="changed in the meantime"):
        rotate.begin(state, known, "file:key-2.pem")
    assert identity.load(state) == done
    assert joining.load_key(state, done).public_key().kid == key.public_key().kid


STEPS: dict[str, Callable[[Path, Identity, KeyStore], object]] = {
    "begin": lambda state, known, _: rotate.begin(state, replace(known, next_key=""), "file:key-2.pem"),
    "finish": rotate.finish,
    "abandon": lambda state, known, _: rotate.abandon(state, known),
    "relocate": lambda state, known, _: rotate.relocate(state, known, "credential:key.pem"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_f04_every_step_of_a_rotation_is_taken_alone(
    state: Path, monkeypatch: pytest.MonkeyPatch, step: Callable[[Path, Identity, KeyStore], object]
) -> None:
    """F-04: the identity is read and changed under one lock, so that two workers do not change it at once."""
    begun = rotate.begin(state, enroll(state, HERE, "pi-1"), "file:key-1.pem")
    key = stores.load_or_create(begun.next_key, state)
    load, taken = identity.load, []

    def watched(folder: Path) -> Identity:
        handle = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken.append(folder)
        os.close(handle)
        return load(folder)

    monkeypatch.setattr(identity, "load", watched)
    step(state, begun, key)
    assert taken == []


def test_the_key_before_stays_until_the_next_rotation(state: Path) -> None:
    """Of three keys in a row, the last two are on the card."""
    known = enroll(state, HERE, "pi-1")
    for number in (1, 2):
        begun = rotate.begin(state, known, f"file:key-{number}.pem")
        known = rotate.finish(state, begun, stores.load_or_create(begun.next_key, state))
    assert listing(state) == ["identity.json", "key-1.pem", "key-2.pem"]
    assert known == replace(known, key="file:key-2.pem", previous_key="file:key-1.pem", next_key="")


def test_a_rotation_given_up_leaves_the_key_in_use(state: Path) -> None:
    """What was begun can be undone as long as nobody has used the new key."""
    known = enroll(state, HERE, "pi-1")
    begun = rotate.begin(state, known, "file:key-1.pem")
    stores.load_or_create(begun.next_key, state)
    assert rotate.abandon(state, begun) == known
    assert listing(state) == ["identity.json", "key.pem"]


def test_a_key_that_is_noted_elsewhere_does_not_undo_a_rotation(state: Path) -> None:
    """F-04: ``key move`` to a place with the same key, and a worker that has rotated meanwhile: the worker's key stays."""
    known = enroll(state, HERE, "pi-1")
    begun = rotate.begin(state, known, "file:key-1.pem")
    done = rotate.finish(state, begun, stores.load_or_create(begun.next_key, state))
    with pytest.raises(ConflictError, match="changed in the meantime"):
        rotate.relocate(state, known, "credential:key.pem")
    assert identity.load(state) == done


@needs_root
def test_root_works_in_a_state_folder_as_its_owner() -> None:
    """sudo pi-agent leaves files that the service can read, and opens the devices that the service may open: as its user."""
    with tempfile.TemporaryDirectory() as folder:  # below pytest's own folders nobody else can even look
        state = Path(folder)
        os.chown(state, 65534, 65534)
        before = os.getgroups()
        with files.as_owner_of(state):
            enroll(state, HERE, "pi-1")
            groups = os.getgroups()
        assert (os.geteuid(), os.getegid(), os.getgroups()) == (0, 0, before)
        assert groups == os.getgrouplist("nobody", 65534)
        assert {path.stat().st_uid for path in state.iterdir()} == {65534}
