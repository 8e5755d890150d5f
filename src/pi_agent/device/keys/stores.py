"""From a location to a key, and from a wish to a location (``keys`` lists the forms).

A location is complete: it names the file, slot or object, so that a key that was moved is found again whatever the
settings say by then. Only ``file`` and ``pkcs11`` make keys; nothing here ever replaces one.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from pathlib import Path

from pi_agent.device import files
from pi_agent.device.keys import KeyStore, file
from pi_agent.errors import ConfigError, KeyFileError
from pi_agent.jws import ALGORITHMS

KINDS = ("file", "credential", "firmware", "pkcs11")


def choose(store: str, algorithm: str = "ES256", *, first: bool = False) -> str:
    """The location of a key yet to be made (or found) in ``store``: a kind, ``firmware:SLOT``, or a ``pkcs11:`` URI.

    ``first`` gives the file its plain name. Raises ConfigError, and KeyFileError when the firmware has no key.
    """
    kind, _, rest = store.partition(":")
    if kind not in KINDS or algorithm not in ALGORITHMS:
        raise ConfigError(
            f"there is no key store {kind!r} for {algorithm}", key="key.store", hint="one of " + ", ".join(KINDS)
        )
    if kind in ("firmware", "pkcs11") and algorithm != "ES256":
        raise ConfigError(f"a key in {kind} signs ES256, not {algorithm}", key="key.algorithm")
    suffix = "" if algorithm == "ES256" else f";alg={algorithm}"
    if kind == "firmware":
        return _firmware(rest)
    if kind == "pkcs11":
        return _pkcs11(store)
    if kind == "credential":
        return f"credential:{rest or file.NAME}{suffix}"
    name = file.NAME if first else f"key-{secrets.token_hex(4)}.pem"
    return f"file:{name}{suffix}"


def load(location: str, state: Path) -> KeyStore:
    """The key at ``location``. Raises FileNotFoundError when there is none, KeyFileError when it cannot be used."""
    kind, rest, algorithm = _parts(location)
    if kind == "file":
        return file.load(state, algorithm, name=rest)
    return _load_elsewhere(location, kind, rest, algorithm)


def load_or_create(location: str, state: Path) -> KeyStore:
    """The key at ``location``, made first where we may make one. Idempotent: what was interrupted is taken up again."""
    kind, rest, algorithm = _parts(location)
    if kind == "file":
        return file.load_or_create(state, algorithm, name=rest)
    if kind == "pkcs11":
        from pi_agent.device.keys import pkcs11

        return pkcs11.load_or_create(location)
    return _load_elsewhere(location, kind, rest, algorithm)


def successor(location: str) -> str:
    """Where the key after the one at ``location`` goes, in the same store. Raises ConfigError where that cannot be."""
    kind, _, algorithm = _parts(location)
    if kind in ("firmware", "credential"):
        raise ConfigError(
            f"a key in {kind} cannot be renewed in place",
            key="key.store",
            hint="pi-agent key move --to file (or --to pkcs11:...)",
        )
    if kind == "file":
        return choose("file", algorithm)
    from pi_agent.device.keys import pkcs11

    return _pkcs11(str(replace(pkcs11.parse(location), object="")))


def discard(location: str, state: Path) -> bool:
    """Remove a key that nobody will ask for again. False for one that we did not make (firmware, credential): it stays."""
    kind, rest, _ = _parts(location)
    if kind == "pkcs11":
        from pi_agent.device.keys import pkcs11

        return pkcs11.remove(location)
    if kind == "file":
        files.remove(state / rest)
    return kind == "file"


def _load_elsewhere(location: str, kind: str, rest: str, algorithm: str) -> KeyStore:
    """The stores whose modules only their users pay for."""
    if kind == "credential":
        from pi_agent.device.keys import credential

        return credential.load(rest, algorithm)
    if kind == "firmware":
        from pi_agent.device.keys import firmware

        return firmware.load(int(rest))
    from pi_agent.device.keys import pkcs11

    return pkcs11.load(location)


def _parts(location: str) -> tuple[str, str, str]:
    """Kind, what is left, algorithm. Raises KeyFileError for what no version of us has written."""
    kind, _, rest = location.partition(":")
    algorithm = "ES256"
    if kind in ("file", "credential"):
        rest, _, attribute = rest.partition(";alg=")
        algorithm = attribute or algorithm
    named = "/" not in rest and not rest.startswith(".") and rest != ""
    good = {"file": named, "credential": named, "firmware": rest.isascii() and rest.isdigit(), "pkcs11": True}
    if not good.get(kind) or algorithm not in ALGORITHMS:
        raise KeyFileError(f"{location!r} is no place for a key", path=location, hint="upgrade pi-agent")
    return kind, rest, algorithm


def _firmware(slot: str) -> str:
    from pi_agent.device.keys import firmware

    found = firmware.load(int(slot)) if slot.isascii() and slot.isdigit() else firmware.find()
    return f"firmware:{found.slot}"


def _pkcs11(text: str) -> str:
    from pi_agent.device.keys import pkcs11

    uri = pkcs11.parse(text)
    return str(uri if uri.object else replace(uri, object=f"pi-agent-{secrets.token_hex(4)}"))
