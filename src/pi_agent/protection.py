"""How well a private key is kept: the words that the ``agent.key`` claim, the registry, the query language and people share.

A word says what would have to be stolen to have the key. It is told by the device about itself, so it is a claim: good
for finding boards that should be better kept, never a proof.
"""

from __future__ import annotations

PROTECTIONS: dict[str, str] = {
    "file": "a file: whoever copies the card, or becomes root, has a copy of the key",
    "firmware-otp": "the board's own fuses: it stays when the card is copied; root can read it unless the firmware locks it",
    "tpm": "a TPM: it signs for whoever holds the board and is root, and never gives the key away",
    "token": "a hardware token behind PKCS #11: it signs for whoever holds it and its PIN, and never gives the key away",
}
