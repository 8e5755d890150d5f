"""Where the device's private key lives. One small interface; the rest of the agent never sees a private key.

``stores`` opens a key by its location, which is one line of text in the identity:

    file:key.pem            a PEM file in the state folder (``file:key.pem;alg=EdDSA`` for another algorithm)
    credential:key.pem      the same file, handed over by systemd, which had it encrypted
    firmware:1              a key in the board's one-time programmable memory, by the firmware's slot
    pkcs11:token=...        an object in a TPM or another token, as an RFC 7512 URI
"""

from __future__ import annotations

from typing import Protocol

from pi_agent.jwk import PublicKey


class KeyStore(Protocol):
    """``protection`` is one of ``protection.PROTECTIONS``, told to the server as it is."""

    @property
    def protection(self) -> str: ...

    @property
    def alg(self) -> str: ...

    def public_key(self) -> PublicKey: ...

    def sign(self, signing_input: bytes) -> bytes:
        """The raw JWS signature (RFC 7515; for ES256 the 64 bytes of RFC 7518 section 3.4)."""
        ...
