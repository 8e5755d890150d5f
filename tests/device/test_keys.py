"""The key file: made here, kept here, never overwritten, and never shown."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, rsa, x25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from pi_agent import jws
from pi_agent.device.keys import file
from pi_agent.errors import KeyFileError


def pem(key: Any) -> bytes:
    data: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return data


def put(state: Path, data: bytes) -> Path:
    path = state / "key.pem"
    path.write_bytes(data)
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("alg", jws.ALGORITHMS)
def test_a_key_is_made_once_and_signs_for_good(state: Path, alg: str) -> None:
    """Made on first use, the same ever after, and what it signs its public half verifies, for every algorithm."""
    made = file.load_or_create(state, alg)
    again = file.load_or_create(state, alg)
    assert made.public_key().kid == again.public_key().kid == file.load(state, alg).public_key().kid
    token = jws.parse(jws.serialize({"alg": alg}, {"a": 1}, sign=again.sign))
    jws.verify_signature(token, key=made.public_key().key, alg=alg)


def test_a11_two_boards_have_two_keys(tmp_path: Path) -> None:
    """Nothing but chance goes into a key."""
    kids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir(mode=0o700)
        kids.add(file.load_or_create(tmp_path / name).public_key().kid)
    assert len(kids) == 2


def test_a10_the_file_is_for_its_owner_alone(state: Path) -> None:
    """0600 and nothing beside it, whatever the umask."""
    file.load_or_create(state)
    assert stat.S_IMODE((state / "key.pem").stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["key.pem"]


def test_two_that_race_agree_on_one_key(state: Path) -> None:
    """Setup and service started at the same moment end up with one key, every time."""
    for _ in range(20):
        kids: list[str] = []
        barrier = threading.Barrier(4)

        def make(barrier: threading.Barrier = barrier, kids: list[str] = kids) -> None:
            barrier.wait()
            kids.append(file.load_or_create(state).public_key().kid)

        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(kids) == 4
        assert set(kids) == {file.load(state).public_key().kid}
        (state / "key.pem").unlink()


def test_ra23_a_missing_key_is_told_apart_from_a_bad_one(state: Path) -> None:
    """FileNotFoundError says that none was made yet."""
    with pytest.raises(FileNotFoundError):
        file.load(state)


EC = pem(ec.generate_private_key(ec.SECP256R1()))
NOT_KEYS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(241),
    "truncated": EC[:100],
    "cut in the last line": EC[:-30],
    "garbled": EC.replace(b"M", b"!"),
    "one letter changed": EC[:60] + (b"A" if EC[60:61] != b"A" else b"B") + EC[61:],
    "DER": ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
    "a public key": ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "encrypted": ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    ),
    "P-384": pem(ec.generate_private_key(ec.SECP384R1())),
    "secp256k1": pem(ec.generate_private_key(ec.SECP256K1())),
    "RSA of 1024 bits": pem(rsa.generate_private_key(65537, 1024)),
    "X25519": pem(x25519.X25519PrivateKey.generate()),
    "Ed448": pem(ed448.Ed448PrivateKey.generate()),
    "DSA": pem(dsa.generate_private_key(1024)),
    "a certificate": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    "text": b"this is no key\n",
}


@pytest.mark.parametrize("data", NOT_KEYS.values(), ids=NOT_KEYS.keys())
def test_f06_ra23_a_damaged_or_foreign_key_is_reported_and_left_as_it_is(state: Path, data: bytes) -> None:
    """No new key takes its place: that would be a new identity, and whether it is wanted is for the owner to say."""
    path = put(state, data)
    for attempt in (file.load, file.load_or_create):
        with pytest.raises(KeyFileError) as caught:
            attempt(state)
        assert "it was left as it is" in str(caught.value)
        assert caught.value.hint
        assert caught.value.__cause__ is None
    assert path.read_bytes() == data


@pytest.mark.parametrize(
    ("alg", "other"), [("ES256", "EdDSA"), ("EdDSA", "ES256"), ("ES256", "RS256"), ("RS256", "ES256")]
)
def test_a01_a_key_signs_its_own_algorithm_only(state: Path, alg: str, other: str) -> None:
    """The algorithm belongs to the key: asked for another one, the file is refused and stays."""
    kid = file.load_or_create(state, alg).public_key().kid
    with pytest.raises(KeyFileError):
        file.load_or_create(state, other)
    assert file.load(state, alg).public_key().kid == kid


def test_an_rsa_key_serves_both_of_its_algorithms(state: Path) -> None:
    """RS256 and PS256 differ in the padding, not in the key."""
    assert file.load_or_create(state, "RS256").public_key().kid == file.load(state, "PS256").public_key().kid


def test_a10_ra30_a_key_open_to_others_is_refused(state: Path) -> None:
    """As ssh does, with the command that closes it."""
    file.load_or_create(state)
    (state / "key.pem").chmod(0o640)
    with pytest.raises(KeyFileError) as caught:
        file.load_or_create(state)
    assert caught.value.hint == f"chmod 600 {state / 'key.pem'}"


def test_a12_a_key_does_not_show_itself(state: Path) -> None:
    """Neither repr nor the instance's attributes, as a traceback with locals would print them, hold key material."""
    key = file.load_or_create(state)
    secret = (state / "key.pem").read_text().splitlines()[1]
    assert secret not in repr(key) + repr(vars(key))
    assert "PRIVATE" not in repr(key) + repr(vars(key))
