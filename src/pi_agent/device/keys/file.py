"""The key store ``file``: a PKCS #8 PEM of mode 0600, made on the device, never overwritten (requirements A-10 to A-12).

ES256 unless told otherwise. A damaged file is reported and left as it is: a new key would be a new identity, and
whether that is wanted is for the owner to say.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from pi_agent import jws
from pi_agent.device import files
from pi_agent.errors import KeyFileError, MalformedTokenError
from pi_agent.jwk import PublicKey, public_key

NAME = "key.pem"

_GENERATE: dict[str, Callable[[], Any]] = {
    "ES256": lambda: generate_ec(SECP256R1()),
    "EdDSA": Ed25519PrivateKey.generate,
    "RS256": lambda: generate_rsa(65537, 2048),
    "PS256": lambda: generate_rsa(65537, 2048),
}


class FileKey:
    """A private key held in this process for as long as one signature takes."""

    protection = "file"

    def __init__(self, private_key: Any, alg: str) -> None:
        self.alg = alg
        self._sign = jws.signer(private_key, alg)
        self._public = public_key(private_key.public_key())
        if alg not in self._public.algorithms:
            raise MalformedTokenError(f"the key cannot sign {alg}")

    def public_key(self) -> PublicKey:
        return self._public

    def sign(self, signing_input: bytes) -> bytes:
        return self._sign(signing_input)


def load(state: Path, alg: str = "ES256", *, name: str = NAME) -> FileKey:
    """The key in the state folder. Raises FileNotFoundError when there is none yet, KeyFileError when it cannot be used."""
    path = state / name
    return parse(files.read_private(path), alg, origin=str(path))


def load_or_create(state: Path, alg: str = "ES256", *, name: str = NAME) -> FileKey:
    """The key in the state folder, made first if there is none. Two that race agree on one key."""
    try:
        return load(state, alg, name=name)
    except FileNotFoundError:
        key = _GENERATE[alg]()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        files.create(state / name, pem)
    except FileExistsError:
        return load(state, alg, name=name)
    return FileKey(key, alg)


def parse(pem: bytes, alg: str, *, origin: str) -> FileKey:
    """The key in a PEM. Raises KeyFileError, which names ``origin``."""
    try:
        return FileKey(load_pem_private_key(pem, password=None), alg)
    except (ValueError, TypeError, UnsupportedAlgorithm, MalformedTokenError):
        # No cause is chained: cryptography's words could describe the key.
        raise KeyFileError(
            f"{origin} is damaged, or not a private key for {alg}; it was left as it is",
            path=origin,
            hint="restore it from a backup, or enroll anew: sudo pi-agent wipe-identity && sudo pi-agent setup URL",
        ) from None
