"""A stand-in for ``rpi-fw-crypto`` that speaks its documented command line (raspberrypi/utils, rpifwcrypto).

The slots are PEM files in the folder named by ``$STANDIN_SLOTS``; ``$STANDIN_FAULT`` makes it misbehave. Every command
is written down in ``commands``, so that a test can see what was asked of the firmware.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

USAGE = "Usage: rpi-fw-crypto command ...\n"
KNOWN = ("get-num-otp-keys", "get-key-status", "pubkey", "sign", "genkey")


def main(arguments: list[str], slots: Path, fault: str) -> int:
    with (slots / "commands").open("a") as log:
        log.write(" ".join(arguments[:1]) + "\n")
    if not arguments or arguments[0] not in KNOWN or fault == arguments[0] + " unknown":
        sys.stderr.write(USAGE)
        return 1
    command, options = arguments[0], dict(zip(arguments[1::2], arguments[2::2], strict=False))
    if command == "get-num-otp-keys":
        sys.stdout.write(f"Number of OTP keys: {len(list(slots.glob('*.pem')))}\n")
        return 0
    if command == "get-key-status":
        sys.stdout.write(f"Key {arguments[1]} status: 0x00000101 (DEVICE READ_LOCKED)\n")
        return 0
    if command == "sign" and fault == "locked":
        return refuse(4, "key locked")
    pem = slots / f"{options['--key-id']}.pem"
    if not pem.exists():
        return refuse(6, "key not set")
    key = load_pem_private_key(pem.read_bytes(), password=None)
    if command == "pubkey":
        sys.stdout.buffer.write(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    else:
        signed = Path(options["--in"]).read_bytes() + (b"!" if fault == "other bytes" else b"")
        sys.stdout.buffer.write(key.sign(signed, ECDSA(SHA256())))  # type: ignore[union-attr, call-arg, arg-type]  # EC
    return 0


def refuse(code: int, words: str) -> int:
    """As the tool does: the firmware's code on stderr, and its negation as the status."""
    sys.stderr.write(f"Last crypto error: {code} ({words})\n")
    return 256 - code


def install(folder: Path, *, slots: tuple[int, ...] = (), fault: str = "") -> Path:
    """Put the stand-in into ``folder`` with a key in each of ``slots``, and say where it is."""
    folder.mkdir(exist_ok=True)
    for slot in slots:
        key = generate_private_key(SECP256R1())
        (folder / f"{slot}.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    tool = folder / "rpi-fw-crypto"
    tool.write_text(
        f"#!/bin/sh\nexport STANDIN_SLOTS='{folder}' STANDIN_FAULT='{fault}'\n"
        f"exec '{sys.executable}' '{Path(__file__).resolve()}' \"$@\"\n"
    )
    tool.chmod(0o755)
    return tool


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(os.environ["STANDIN_SLOTS"]), os.environ["STANDIN_FAULT"]))
