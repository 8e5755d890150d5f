"""The key stores beyond the plain file: the firmware's key, systemd's credential, a PKCS #11 token, and their locations."""

from __future__ import annotations

import base64
import gc
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from device import rpi_fw_crypto
from device.conftest import needs_root
from pi_agent import jws
from pi_agent.device import cli, identity
from pi_agent.device.identity import Identity
from pi_agent.device.keys import KeyStore, credential, file, firmware, pkcs11, stores
from pi_agent.errors import ConfigError, KeyFileError, PiAgentError
from pi_agent.jwk import public_key

SOFTHSM = next(
    (
        path
        for path in map(Path, ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"))
        if path.exists()
    ),
    None,
)
PIN = "480-canary-713"


def assert_signs(key: KeyStore) -> None:
    """What the store signs is a JWS that its own public key verifies."""
    token = jws.parse(jws.serialize({"alg": key.alg, "kid": key.public_key().kid}, {"a": 1}, sign=key.sign))
    jws.verify_signature(token, key=key.public_key().key, alg=key.alg)


# file


@pytest.mark.parametrize("algorithm", jws.ALGORITHMS)
def test_a_file_key_keeps_its_algorithm_in_its_location(state: Path, algorithm: str) -> None:
    """A key made with any of our algorithms is found again by its location alone, and signs with that algorithm."""
    location = stores.choose("file", algorithm, first=True)
    made = stores.load_or_create(location, state)
    again = stores.load(location, state)
    assert (made.public_key().kid, made.alg, made.protection) == (again.public_key().kid, algorithm, "file")
    assert_signs(again)


def test_f06_a_damaged_key_is_reported_and_kept(state: Path) -> None:
    """F-06: a garbled key file is named, left byte for byte, and no new key is made beside it."""
    (state / "key.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\ngarbled")
    (state / "key.pem").chmod(0o600)
    with pytest.raises(KeyFileError, match="left as it is"):
        stores.load_or_create(identity.FIRST_KEY, state)
    assert [path.name for path in state.iterdir()] == ["key.pem"]
    assert (state / "key.pem").read_bytes().endswith(b"garbled")


def test_a_successor_never_takes_the_name_of_the_key_before_it(state: Path) -> None:
    """A-10: the key after a file key gets a file of its own, with the same algorithm."""
    names = {stores.successor("file:key.pem;alg=EdDSA") for _ in range(50)}
    assert len(names) == 50
    assert all(re.fullmatch(r"file:key-[0-9a-f]{8}\.pem;alg=EdDSA", name) for name in names)


@given(st.text())
def test_any_location_is_a_key_or_our_error(text: str) -> None:
    """Whatever stands in the identity as a location, loading it gives our error or says that nothing is there."""
    try:
        stores.load(text, Path("/nonexistent"))
    except (PiAgentError, FileNotFoundError):
        return
    raise AssertionError(text)


@pytest.mark.parametrize("text", ["file:../key.pem", "file:.pem", "file:", "firmware:x", "firmware:²", "vault:1", ""])
def test_e08_a_location_cannot_lead_out_of_the_folder(state: Path, text: str) -> None:
    """E-08: a location with a path in it, or of an unknown kind, is refused."""
    with pytest.raises(KeyFileError, match="no place for a key"):
        stores.load(text, state)


@pytest.mark.parametrize(("store", "algorithm"), [("tpm", "ES256"), ("file", "HS256"), ("firmware", "EdDSA")])
def test_a01_a_store_or_algorithm_that_is_not_ours_is_a_setting_that_is_wrong(store: str, algorithm: str) -> None:
    """A-01: an algorithm fixed by the key cannot be set to another one, and HS256 or none to nothing at all."""
    with pytest.raises(ConfigError) as caught:
        stores.choose(store, algorithm)
    assert caught.value.exit_code == 2


# credential


def test_a_credential_of_either_systemd_is_taken(tmp_path: Path, state: Path) -> None:
    """Mode 0400 (systemd 252) and mode 0440 (systemd 257) are both what systemd hands over."""
    made = file.load_or_create(state)
    for mode in (0o400, 0o440):
        handed = tmp_path / f"credentials-{mode:o}"
        handed.mkdir()
        shutil.copy(state / "key.pem", handed / "key.pem")
        (handed / "key.pem").chmod(mode)
        key = credential.load(environ={"CREDENTIALS_DIRECTORY": str(handed)})
        assert key.public_key().kid == made.public_key().kid
        assert key.protection == "file"
        assert_signs(key)


@pytest.mark.parametrize("mode", [0o444, 0o460, 0o644])
def test_a10_a_credential_that_others_can_read_is_refused(tmp_path: Path, state: Path, mode: int) -> None:
    """A-10: a key that anybody may read, or its group may write, is not systemd's work."""
    file.load_or_create(state)
    (state / "key.pem").chmod(mode)
    with pytest.raises(KeyFileError, match="not a credential"):
        credential.load(environ={"CREDENTIALS_DIRECTORY": str(state)})


def test_a_missing_credential_says_what_belongs_in_the_unit(tmp_path: Path) -> None:
    """Without systemd, or without the credential, the hint is the unit's line."""
    for environ in ({}, {"CREDENTIALS_DIRECTORY": str(tmp_path)}):
        with pytest.raises(KeyFileError) as caught:
            credential.load(environ=environ)
        assert "LoadCredentialEncrypted=key.pem" in str(caught.value.hint)


# firmware


def test_the_firmware_signs_es256_as_a_jws_wants_it(tmp_path: Path) -> None:
    """RFC 7518 3.4: the DER signature of the firmware arrives as 64 bytes, whatever the lengths of r and s were."""
    key = firmware.find(str(rpi_fw_crypto.install(tmp_path / "fw", slots=(1,))))
    assert (key.slot, key.protection, key.status) == (1, "firmware-otp", ("DEVICE", "READ_LOCKED"))
    assert_signs(key)
    assert len(key.sign(b"signing input")) == 64


def test_short_r_and_s_are_padded_on_the_left() -> None:
    """RFC 7518 3.4: one signature in about 128 has a short r or s; both halves still take 32 bytes."""
    private = generate_private_key(SECP256R1())
    public = public_key(private.public_key())
    signatures = (private.sign(b"x", ECDSA(SHA256())) for _ in range(20_000))
    short = next(der for der in signatures if min(decode_dss_signature(der)) < 2**248)
    raw = firmware._raw(short, b"x", public)
    assert (int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")) == decode_dss_signature(short)
    assert len(raw) == 64


def test_the_slots_are_probed_and_nothing_is_burnt(tmp_path: Path) -> None:
    """The key is found in whatever slot it is, and genkey is never run."""
    tool = rpi_fw_crypto.install(tmp_path / "fw", slots=(9,))
    assert firmware.find(str(tool)).slot == 9
    assert set((tmp_path / "fw/commands").read_text().split()) == {"get-num-otp-keys", "pubkey", "get-key-status"}


def test_an_empty_board_is_told_to_its_owner(tmp_path: Path) -> None:
    """No key in any slot: the error says that burning one is the owner's to do, and how."""
    tool = rpi_fw_crypto.install(tmp_path / "fw")
    with pytest.raises(KeyFileError, match="holds no key yet") as caught:
        firmware.find(str(tool))
    assert "cannot be undone" in str(caught.value.hint)


FAULTS = {
    "get-num-otp-keys unknown": "too old: it does not know get-num-otp-keys",
    "pubkey unknown": "holds no key yet",
}


@pytest.mark.parametrize(("fault", "sentence"), FAULTS.items())
def test_a_tool_that_is_too_old_is_said_plainly(tmp_path: Path, fault: str, sentence: str) -> None:
    """A command that the tool does not know is an old tool, not a broken key."""
    with pytest.raises(KeyFileError, match=sentence):
        firmware.find(str(rpi_fw_crypto.install(tmp_path / "fw", slots=(1,), fault=fault)))


def test_a_missing_tool_is_said_plainly() -> None:
    """Without the tool the error names the package."""
    with pytest.raises(KeyFileError, match="is not installed") as caught:
        firmware.find("/nonexistent/rpi-fw-crypto")
    assert "apt install rpifwcrypto" in str(caught.value.hint)


def test_a_locked_key_says_that_it_is_locked(tmp_path: Path) -> None:
    """The firmware's code 4 reaches the user as a sentence."""
    key = firmware.find(str(rpi_fw_crypto.install(tmp_path / "fw", slots=(1,), fault="locked")))
    with pytest.raises(KeyFileError, match="locked against signing until the next boot"):
        key.sign(b"x")


def test_a_signature_over_other_bytes_never_leaves(tmp_path: Path) -> None:
    """A signature that does not fit the public key is refused on the board, where the reason can still be seen."""
    key = firmware.find(str(rpi_fw_crypto.install(tmp_path / "fw", slots=(1,), fault="other bytes")))
    with pytest.raises(KeyFileError, match="does not fit"):
        key.sign(b"x")


def test_a05_the_signing_input_is_given_in_memory(tmp_path: Path) -> None:
    """A-05: what is signed never lies in a file; the tool is shown a descriptor."""
    tool = rpi_fw_crypto.install(tmp_path / "fw", slots=(1,))
    seen = tmp_path / "seen"
    watched = tmp_path / "watched"
    watched.write_text(f'#!/bin/sh\necho "$@" >> {seen}\nexec {tool} "$@"\n')
    watched.chmod(0o755)
    firmware.load(1, str(watched)).sign(b"x")
    assert re.search(r"sign --in /proc/self/fd/[0-9]+ --key-id 1 --alg ec", seen.read_text())


# pkcs11


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a SoftHSM token of this test's own."""
    pytest.importorskip("PyKCS11", reason="PyKCS11 is not installed: the extra pkcs11")
    if SOFTHSM is None or shutil.which("softhsm2-util") is None:
        pytest.skip("SoftHSM is not installed: apt install softhsm2")
    (tmp_path / "tokens").mkdir()
    configuration = tmp_path / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    monkeypatch.setenv("SOFTHSM2_CONF", str(configuration))
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "pi agent", "--so-pin", "so-pin", "--pin", PIN],
        check=True,
        capture_output=True,
    )
    pin = tmp_path / "pin"
    pin.touch(mode=0o600)
    pin.write_text(PIN + "\n")
    yield f"pkcs11:token=pi%20agent?module-path={SOFTHSM}&pin-source=file:{pin}"
    pkcs11._library.cache_clear()  # the next test has other tokens, which the module looks for when it is loaded
    gc.collect()


def test_a_token_makes_a_key_and_signs_with_it(token: str, state: Path) -> None:
    """A key is made inside the token once, found again by its location, and signs ES256."""
    location = stores.choose(token)
    made = stores.load_or_create(location, state)
    again = stores.load_or_create(location, state)
    assert made.public_key().kid == again.public_key().kid == stores.load(location, state).public_key().kid
    assert_signs(again)
    assert list(state.iterdir()) == []


def test_a_software_token_is_called_a_file(token: str, state: Path) -> None:
    """SoftHSM keeps its keys in files, and that is what the claim says: honest, not marketing."""
    assert stores.load_or_create(stores.choose(token), state).protection == "file"


def test_a12_a_key_in_a_token_cannot_be_taken_out(token: str, state: Path) -> None:
    """A-12: the private key is sensitive and not extractable."""
    key = pkcs11.load_or_create(stores.choose(token))
    api = key.library.api
    wanted = [api.CKA_SENSITIVE, api.CKA_EXTRACTABLE, api.CKA_NEVER_EXTRACTABLE]
    assert [bool(value) for value in key.session.getAttributeValue(key.handle, wanted)] == [True, False, True]


def test_a_successor_in_a_token_is_another_object_and_the_old_one_can_go(token: str, state: Path) -> None:
    """Two keys live side by side in one token; discarding one leaves the other."""
    first = stores.choose(token)
    stores.load_or_create(first, state)
    second = stores.successor(first)
    kid = stores.load_or_create(second, state).public_key().kid
    stores.discard(first, state)
    with pytest.raises(FileNotFoundError):
        stores.load(first, state)
    assert stores.load(second, state).public_key().kid == kid


def test_wiping_takes_the_keys_out_of_the_token(token: str, state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A-11: a software token lies on the card, so a key that was left in it would be in every copy of an image."""
    first = stores.choose(token)
    kid = stores.load_or_create(first, state).public_key().kid
    known = Identity("https://fleet.test", "pi-1", "https://fleet.test/oauth/token", kid, "", first)
    identity.store(state, replace(known, next_key=stores.successor(first)))
    assert cli.main(["--state", str(state), "--config", "/dev/null", "wipe-identity", "--yes"]) == 0, capfd.readouterr()
    with pytest.raises(FileNotFoundError):
        stores.load(first, state)
    assert list(state.iterdir()) == []


def test_a_key_in_a_token_that_somebody_else_made_is_left_there(
    token: str, state: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key of another program was taken for ours by name: neither a rotation nor wiping destroys it, and wiping says so."""
    theirs = token.replace("?", ";object=disk-signing?")
    with pytest.MonkeyPatch.context() as other:
        other.setattr(pkcs11, "OURS", b"another")
        kid = stores.load_or_create(theirs, state).public_key().kid
    assert stores.discard(theirs, state) is False
    identity.store(state, Identity("https://fleet.test", "pi-1", "https://fleet.test/oauth/token", kid, "", theirs))
    assert cli.main(["--state", str(state), "--config", "/dev/null", "wipe-identity", "--yes"]) == 0
    assert "disk-signing is left: pi-agent did not make it" in capfd.readouterr().err
    assert stores.load(theirs, state).public_key().kid == kid


def test_a_key_in_a_token_that_we_made_goes_whatever_its_name(token: str, state: Path) -> None:
    """A-11: a name given by the operator does not keep our key in a software token."""
    ours = token.replace("?", ";object=device?")
    stores.load_or_create(ours, state)
    assert stores.discard(ours, state) is True
    with pytest.raises(FileNotFoundError):
        stores.load(ours, state)


@pytest.mark.parametrize(("location", "words"), [("firmware:1", "no part of the card"), ("credential:key.pem", "rm ")])
def test_wiping_says_which_key_it_cannot_take_away(
    state: Path, capfd: pytest.CaptureFixture[str], location: str, words: str
) -> None:
    """A-11: what is left of a key, and whether a copy of the card has it, is said."""
    identity.store(state, Identity("https://fleet.test", "pi-1", "https://fleet.test/oauth/token", "kid", "", location))
    assert cli.main(["--state", str(state), "--config", "/dev/null", "wipe-identity", "--yes"]) == 0
    assert words in capfd.readouterr().err


def test_a_wrong_pin_is_said_and_never_shown(token: str, tmp_path: Path) -> None:
    """A wrong PIN is named as such, without the PIN, and one load tries it once."""
    (tmp_path / "pin").write_text("no-canary-pin")
    with pytest.raises(KeyFileError, match="CKR_PIN_INCORRECT") as caught:
        pkcs11.load_or_create(stores.choose(token))
    assert "canary" not in str(caught.value) + str(caught.value.hint)


def test_a10_a_pin_file_that_others_can_read_is_refused(token: str, tmp_path: Path) -> None:
    """A-10: the PIN is as good as the key to whoever has the token."""
    (tmp_path / "pin").chmod(0o644)
    with pytest.raises(KeyFileError, match="open to others"):
        pkcs11.load_or_create(stores.choose(token))


def test_no_such_token_and_no_such_module(token: str, tmp_path: Path) -> None:
    """What is missing is named: the token, or the module."""
    with pytest.raises(KeyFileError, match="no token elsewhere"):
        pkcs11.load(stores.choose(token.replace("pi%20agent", "elsewhere")))
    for junk in ("/etc/passwd", "/nonexistent.so"):  # root's own, as root loads no others
        with pytest.raises(KeyFileError, match="is no PKCS #11 module"):
            pkcs11.load(stores.choose(re.sub(r"module-path=[^&]*", f"module-path={junk}", token)))


@needs_root
@pytest.mark.parametrize("whose", ["the module is another's", "its folder is another's", "anybody may write into it"])
def test_root_runs_no_module_that_others_can_change(token: str, tmp_path: Path, whose: str) -> None:
    """The agent's user names a module of its own in the identity: root's commands, which read that, do not run it."""
    with tempfile.TemporaryDirectory(dir="/usr/local/lib") as folder:
        Path(folder).chmod(0o777 if whose.startswith("anybody") else 0o755)
        shutil.copy(str(SOFTHSM), f"{folder}/module.so")
        os.chown(f"{folder}/module.so", 65534 if whose.startswith("the module") else 0, 0)
        os.chown(folder, 65534 if whose.startswith("its folder") else 0, 0)
        (tmp_path / "link.so").symlink_to(f"{folder}/module.so")
        for path in (f"{folder}/module.so", tmp_path / "link.so"):
            with pytest.raises(KeyFileError, match=f"since others can change {folder}"):
                pkcs11.load(stores.choose(re.sub(r"module-path=[^&]*", f"module-path={path}", token)))


@needs_root
def test_root_runs_a_module_of_roots_through_a_link_of_anybodys(token: str, tmp_path: Path, state: Path) -> None:
    """What the link leads to is what is looked at, and what is loaded."""
    (tmp_path / "link.so").symlink_to(str(SOFTHSM))
    location = stores.choose(re.sub(r"module-path=[^&]*", f"module-path={tmp_path / 'link.so'}", token))
    assert_signs(stores.load_or_create(location, state))


@needs_root
def test_root_runs_what_it_looked_at_although_the_link_has_changed(
    token: str, tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that its owner turns to another module between the look and the loading changes nothing."""
    link, looked = tmp_path / "link.so", pkcs11._check_is_roots
    link.symlink_to(str(SOFTHSM))

    def look_and_turn(module: str) -> None:
        looked(module)
        link.unlink()
        link.symlink_to("/etc/passwd")

    monkeypatch.setattr(pkcs11, "_check_is_roots", look_and_turn)
    assert_signs(
        stores.load_or_create(stores.choose(re.sub(r"module-path=[^&]*", f"module-path={link}", token)), state)
    )


BAD_URIS = (
    "pkcs11:token=a",
    "pkcs11:token=a?module-path=/m.so",
    "pkcs11:token=a?module-path=m.so&pin-source=file:/pin",
    "pkcs11:token=a?module-path=/m.so&pin-value=1234",
    "pkcs11:slot-id=4?module-path=/m.so&pin-source=file:/pin",
)


@pytest.mark.parametrize("uri", BAD_URIS)
def test_a_uri_that_would_not_be_obeyed_whole_is_refused(uri: str) -> None:
    """RFC 7512: an attribute we do not read, a missing one, or a PIN in the open is an error with an example."""
    with pytest.raises(ConfigError, match="cannot be used") as caught:
        pkcs11.parse(uri)
    assert "1234" not in str(caught.value)
    assert "module-path=/usr" in str(caught.value.hint)


@given(st.dictionaries(st.sampled_from(pkcs11.PATH_ATTRIBUTES), st.text(min_size=1)), st.text(), st.text())
def test_a_uri_reads_back_as_it_was_written(named: dict[str, str], module: str, pin: str) -> None:
    """Any token, object or path survives the URI."""
    uri = pkcs11.Uri(module="/" + module, pin_file="/" + pin, **named)
    assert pkcs11.parse(str(uri)) == uri


# all of them


def test_a12_no_store_shows_its_key_in_words(state: Path) -> None:
    """A-12: what repr() says of a key holds none of it."""
    for algorithm in jws.ALGORITHMS:
        location = stores.choose("file", algorithm)
        key = stores.load_or_create(location, state)
        pem = (state / location.removeprefix("file:").partition(";")[0]).read_text()
        secret = "".join(pem.splitlines()[1:-1])
        assert secret[40:72] not in repr(key)
        assert base64.b64decode(secret)[40:].hex() not in repr(key)


def test_the_first_key_has_its_plain_name_and_belongs_to_its_owner_alone(state: Path) -> None:
    """A-10: the first file key is key.pem, mode 0600."""
    stores.load_or_create(stores.choose("file", first=True), state)
    assert (state / "key.pem").stat().st_mode & 0o777 == 0o600
