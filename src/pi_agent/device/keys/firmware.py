"""The key store ``firmware``: a P-256 key in the board's one-time programmable memory, used through ``rpi-fw-crypto``.

The firmware signs; the key stays with the board when the card is copied. Rules kept here:

* only ``get-num-otp-keys``, ``get-key-status``, ``pubkey`` and ``sign`` are ever run: a key is burnt by its owner, never by an agent;
* a slot is found by asking each for its public key, since no number and no flag can be relied on;
* the tool hashes what it signs, so it is given the signing input itself, in memory and not on the card;
* what comes back is checked against the public key before anybody else sees it.

The slot is shared with Raspberry Pi Connect and disk encryption. What we sign begins with a JOSE header, which neither
of them signs. (Tool: raspberrypi/utils, rpifwcrypto.)
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from pi_agent.errors import KeyStoreError
from pi_agent.jwk import PublicKey, public_key

TOOL = "rpi-fw-crypto"
SLOTS = range(16)
SECONDS = 10

_COUNT = re.compile(r"Number of OTP keys: ([0-9]{1,3})\b")
_STATUS = re.compile(r"Key [0-9]+ status: 0x[0-9a-fA-F]+ \(([A-Z_ ]*)\)")
_REFUSAL = re.compile(r"Last crypto error: ([0-9]+)\b")

# The firmware's own codes, as the tool prints them; they matter because each has another remedy.
REFUSALS = {
    3: "there is no such slot",
    4: "the key is locked against signing until the next boot",
    6: "the slot is empty",
    7: "what the slot holds is no P-256 key",
}
INSTALL = "sudo apt install rpifwcrypto, on a board with firmware of September 2025 or newer (rpi-eeprom-update)"
BURN = f"burning a key cannot be undone, so only you can do it: sudo {TOOL} genkey --key-id 1 --alg ec"


@dataclass(frozen=True, slots=True)
class FirmwareKey:
    """The key in ``slot``. ``status`` are the firmware's flags, such as READ_LOCKED; empty when it names none."""

    tool: str
    slot: int
    public: PublicKey
    status: tuple[str, ...] = ()

    protection = "firmware-otp"
    alg = "ES256"

    def public_key(self) -> PublicKey:
        return self.public

    def sign(self, signing_input: bytes) -> bytes:
        """The 64 bytes r || s (RFC 7518 section 3.4) of the firmware's DER signature. Raises KeyStoreError."""
        memory = os.memfd_create("signing-input", os.MFD_CLOEXEC)
        try:
            os.write(memory, signing_input)
            os.lseek(memory, 0, os.SEEK_SET)
            arguments = ("--in", f"/proc/self/fd/{memory}", "--key-id", str(self.slot), "--alg", "ec")
            der = _run(self.tool, "sign", *arguments, keep=memory)
        finally:
            os.close(memory)
        return _raw(der, signing_input, self.public)


def load(slot: int, tool: str = TOOL) -> FirmwareKey:
    """The key in ``slot``. Raises KeyStoreError: no tool, one that is too old, an empty slot, a lock."""
    der = _run(tool, "pubkey", "--key-id", str(slot))
    try:
        key = load_der_public_key(der)
    except ValueError:
        key = None
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        raise KeyStoreError(f"slot {slot} gave no P-256 public key", path=tool, hint=f"{tool} get-key-status {slot}")
    return FirmwareKey(tool, slot, public_key(key), _status(tool, slot))


def find(tool: str = TOOL) -> FirmwareKey:
    """The key in the first slot that has one. Raises KeyStoreError when none has."""
    text = _run(tool, "get-num-otp-keys").decode("utf-8", "replace")
    if (found := _COUNT.search(text)) is None:
        raise KeyStoreError(f"{tool} does not say how many keys there are", path=tool, hint=INSTALL)
    if found[1] != "0":
        for slot in SLOTS:
            try:
                return load(slot, tool)
            except KeyStoreError:
                continue
    raise KeyStoreError("the board's one-time programmable memory holds no key yet", path=tool, hint=BURN)


def _status(tool: str, slot: int) -> tuple[str, ...]:
    try:
        text = _run(tool, "get-key-status", str(slot)).decode("utf-8", "replace")
    except KeyStoreError:
        return ()  # it only informs; the key was readable
    found = _STATUS.search(text)
    return tuple(found[1].split()) if found else ()


def _raw(der: bytes, signed: bytes, public: PublicKey) -> bytes:
    assert isinstance(public.key, EllipticCurvePublicKey)
    try:
        public.key.verify(der, signed, ECDSA(SHA256()))
        r, s = decode_dss_signature(der)
    except (InvalidSignature, ValueError):
        raise KeyStoreError(
            "the firmware's signature does not fit its own public key", path=TOOL, hint="sudo rpi-eeprom-update -a"
        ) from None
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _run(tool: str, command: str, *arguments: str, keep: int | None = None) -> bytes:
    """What ``tool`` prints on standard output. ``keep`` is a descriptor that it may use."""
    try:
        done = subprocess.run(  # noqa: S603  # the tool's name is ours or the owner's
            [tool, command, *arguments],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=SECONDS,
            check=False,
            pass_fds=(keep,) if keep is not None else (),
        )
    except FileNotFoundError:
        raise KeyStoreError(f"{tool} is not installed", path=tool, hint=INSTALL) from None
    except subprocess.TimeoutExpired:
        raise KeyStoreError(f"{tool} {command} did not end within {SECONDS} s", path=tool, hint="reboot") from None
    except OSError as error:
        raise KeyStoreError(f"cannot run {tool}: {error.strerror}", path=tool, hint=f"ls -l {tool}") from None
    if done.returncode != 0:
        raise _refused(tool, command, done)
    return done.stdout


def _refused(tool: str, command: str, done: subprocess.CompletedProcess[bytes]) -> KeyStoreError:
    words = done.stderr.decode("utf-8", "replace")
    if code := _REFUSAL.search(words):
        why = REFUSALS.get(int(code[1]), f"firmware error {code[1]}")
        return KeyStoreError(f"the firmware refuses {command}: {why}", path=tool, hint=f"{tool} get-num-otp-keys")
    if "sage" in words:  # the tool prints its usage for what it does not know
        return KeyStoreError(f"{tool} is too old: it does not know {command}", path=tool, hint=INSTALL)
    if "vcio" in words or "ermission" in words:
        return KeyStoreError(
            "the firmware's mailbox is closed to this user", path="/dev/vcio", hint="sudo usermod -aG video pi-agent"
        )
    return KeyStoreError(f"{tool} {command} ended with status {done.returncode}", path=tool, hint=INSTALL)
