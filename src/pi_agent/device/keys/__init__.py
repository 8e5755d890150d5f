"""Where the device's private key lives. One small interface; the rest of the agent never sees a private key."""

from __future__ import annotations

from typing import Protocol

from pi_agent.jwk import PublicKey


class KeyStore(Protocol):
    """``protection`` is one of ``assertion.KEY_PROTECTIONS``, told to the server as it is."""

    @property
    def protection(self) -> str: ...

    @property
    def alg(self) -> str: ...

    def public_key(self) -> PublicKey: ...

    def sign(self, signing_input: bytes) -> bytes:
        """The raw JWS signature (RFC 7515; for ES256 the 64 bytes of RFC 7518 section 3.4)."""
        ...
