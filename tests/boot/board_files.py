"""What a Raspberry Pi's firmware leaves in the device tree, as files that a container can be given for /sys/firmware."""

from __future__ import annotations

from pathlib import Path

# Names of QEMU's machines: (revision code, model as the firmware writes it, serial). A server tells two boards that
# claim one serial apart, so no two here do.
BOARDS = {
    "raspi0": ("900092", "Raspberry Pi Zero Rev 1.2", "00000000c3a91e5f"),
    "raspi2b": ("a21041", "Raspberry Pi 2 Model B Rev 1.1", "00000000915a04cb"),
    "raspi3b": ("a02082", "Raspberry Pi 3 Model B Rev 1.2", "000000003e8d7712"),
}
OTHER_SERIAL = "000000007b20d4e6"


def device_tree(folder: Path, board: str, other_serial: str = "") -> Path:
    """Write the properties below ``folder``, which is then what to bind over /sys/firmware."""
    revision, model, own_serial = BOARDS[board]
    serial = other_serial or own_serial
    base = folder / "devicetree" / "base"
    (base / "system").mkdir(parents=True, exist_ok=True)
    (base / "model").write_bytes(model.encode() + b"\0")
    (base / "serial-number").write_bytes(serial.encode() + b"\0")
    (base / "system" / "linux,revision").write_bytes(int(revision, 16).to_bytes(4, "big"))
    (base / "system" / "linux,serial").write_bytes(bytes.fromhex(serial))
    return folder
