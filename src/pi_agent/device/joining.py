"""An enrollment in steps, each of which may be cut off, and done again by the next ``pi-agent setup``.

    draft      the identity names the server, this board and where the key will be   (on disk before the key is)
    key        it is made, or found
    register   the server knows it                                                   (the same key: the same device)
    identity   the draft is given the server's name for us

Whatever is cut off, there is one key, and the server sees one device. What belongs to another board, or lies on a card
that is being made into an image, is not used (``identity.claim``, ``golden``).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pi_agent.device import golden, identity
from pi_agent.device.identity import Identity
from pi_agent.device.keys import KeyStore, file, stores
from pi_agent.errors import ConflictError, KeyFileError


def begin(state: Path, *, issuer: str, serial: str, store: str, algorithm: str) -> tuple[Identity, KeyStore]:
    """The identity (a draft, the first time) and the key that the board with ``serial`` enrolls with.

    ``store`` and ``algorithm`` are the settings for a key yet to be made. Raises ConflictError when the board is
    enrolled elsewhere, ConfigError while an image is being made, KeyFileError when the key there is cannot be used.
    """
    golden.check(state, serial)
    known = identity.claim(state, serial)
    if known is not None and not known.is_draft:
        return _enrolled(state, known, issuer)
    if known is None:
        # An unbound key.pem is none of ours: a card was pulled while identities were being moved.
        location = stores.choose(store, algorithm, first=not (state / file.NAME).exists())
        known = Identity(issuer=issuer, client_id="", token_endpoint="", kid="", serial=serial, key=location)
        identity.store(state, known)
    elif known.issuer != issuer:
        known = replace(known, issuer=issuer)
        identity.store(state, known)
    return known, stores.load_or_create(known.key, state)


def complete(state: Path, known: Identity, key: KeyStore, *, client_id: str, token_endpoint: str) -> Identity:
    """Keep what the server calls us. Raises KeyFileError."""
    done = replace(known, client_id=client_id, token_endpoint=token_endpoint, kid=key.public_key().kid)
    if done != known:
        identity.store(state, done)
    return done


def load_key(state: Path, known: Identity) -> KeyStore:
    """The key in use. Raises KeyFileError when it is gone, cannot be used, or is not the one that was enrolled (F-06)."""
    try:
        key = stores.load(known.key, state)
    except FileNotFoundError:
        raise _not_the_key(state, f"the key at {known.key} is gone") from None
    if known.kid and key.public_key().kid != known.kid:
        raise _not_the_key(state, f"the key at {known.key} is not the one that was enrolled")
    return key


def _enrolled(state: Path, known: Identity, issuer: str) -> tuple[Identity, KeyStore]:
    if known.issuer != issuer:
        raise ConflictError(
            f"this board is enrolled at {known.issuer} as {known.client_id}",
            hint="to leave that server for good: pi-agent wipe-identity",
        )
    return known, load_key(state, known)


def _not_the_key(state: Path, what: str) -> KeyFileError:
    return KeyFileError(
        f"{what}; nothing was changed",
        path=str(state),
        hint="restore it from a backup, or enroll anew: sudo pi-agent wipe-identity && sudo pi-agent setup URL",
    )
