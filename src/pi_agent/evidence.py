"""Is it a Raspberry Pi, and if it is one that cannot be read, why? Readings in, a verdict or a sentence out.

Rules kept here:

* What the machine says about itself decides: a foreign ``Hardware`` line refuses, then a Raspberry Pi name proves,
  then a foreign name, instruction set or core refuses. Silence is neither.
* Old-style codes are small numbers which other boards print too (0003 on Zynq, 0009 on a Galaxy Nexus, 0010 on
  BeagleBone), so they need proof. A new-style code of a known type, on a machine that says nothing else, is enough.
* "Not a Raspberry Pi" and "a Raspberry Pi that cannot be read" are different answers, each with its reason and with
  a command to run next.
"""

from __future__ import annotations

from collections.abc import Mapping

from pi_agent.errors import NotARaspberryPiError, UnreadableBoardError
from pi_agent.facts import CPUINFO, MAILBOX, TREE_REVISION, TREES, Facts, Readings
from pi_agent.revision import PROCESSORS, TYPES, Revision, is_unknown

NAME = "Raspberry Pi"
COMPATIBLE = "raspberrypi,"
PI_HARDWARE = frozenset({"BCM2708", "BCM2709", "BCM2710", *PROCESSORS.values()})
NEUTRAL_HARDWARE = "Generic DT based system"  # rpi-4.14 kernels said so on a Pi 3, others say it on anything

ARM = "0x41"
PARTS = {"0xb76": "BCM2835", "0xc07": "BCM2836", "0xd03": "BCM2837", "0xd08": "BCM2711", "0xd0b": "BCM2712"}

NOT_A_PI_HINT = "to decode a recording from a Raspberry Pi: pi-agent board --cpuinfo FILE, or --root DIR"
READ_AS_ROOT = "run: sudo pi-agent board"
PERMISSION = "permission denied"
ABSENT = "absent"


def is_pi_name(text: str) -> bool:
    """True for ``Raspberry Pi`` as whole words at the start."""
    return f"{text} ".startswith(f"{NAME} ")


def require_pi(found: Readings) -> bool:
    """True when something names a Raspberry Pi, False when nothing says what the machine is.

    Raises ``NotARaspberryPiError`` when the machine says that it is something else.
    """
    for origin, hardware in found.hardware:
        if not (hardware in PI_HARDWARE or is_pi_name(hardware) or hardware == NEUTRAL_HARDWARE):
            raise _not_a_pi(f"{origin} says Hardware: {hardware}")
    if any(name.startswith(COMPATIBLE) for name in found.compatible):
        return True
    if found.compatible:
        raise _not_a_pi(f"its device tree is for {found.compatible[0]}")
    if any(is_pi_name(text) for _, text in found.models) or any(origin == MAILBOX for origin, _ in found.revisions):
        return True
    if any(hardware != NEUTRAL_HARDWARE for _, hardware in found.hardware):
        return True
    _refuse_foreign(found)
    return False


def _refuse_foreign(found: Readings) -> None:
    for origin, model in found.models:
        raise _not_a_pi(f"{origin} says {model}")
    for line in found.foreign:
        raise _not_a_pi(f"its processor is no Arm ({line})")
    for implementer in found.implementers:
        if implementer != ARM:
            raise _not_a_pi(f"its processor is by implementer {implementer}, every Raspberry Pi has {ARM} (Arm)")
    for part in found.parts:
        if part not in PARTS:
            raise _not_a_pi(f"its processor is part {part}, which no Raspberry Pi has")


def require_proof(revision: Revision) -> None:
    """Judge a code on a machine that names nothing. Raises ``NotARaspberryPiError`` unless the code proves itself."""
    if not revision.new_style:
        raise _not_a_pi(f"revision {revision} is printed by other boards too, and nothing names a Raspberry Pi")
    if revision.type_number not in TYPES or is_unknown(revision.soc):
        raise _not_a_pi(f"revision {revision} is of no known type, and nothing names a Raspberry Pi")


def unreadable(facts: Facts, found: Readings, *, is_pi: bool) -> UnreadableBoardError:
    """Why there is no usable code, and what to run."""
    who = _who(found, is_pi=is_pi)
    reason, hint = _why(facts, found)
    return UnreadableBoardError(f"{who}, but its revision code cannot be read: {reason}", hint=hint)


def _who(found: Readings, *, is_pi: bool) -> str:
    if not is_pi:
        return "this may be a Raspberry Pi"
    names = [text for _, text in found.models if is_pi_name(text)]
    return f"this is a {names[0]}" if names else "this is a Raspberry Pi"


def _why(facts: Facts, found: Readings) -> tuple[str, str]:
    if found.revisions:
        origin, code = found.revisions[0]
        return _never_given(origin, code)
    if denied := _failed(facts.failures, PERMISSION):
        return f"permission denied on {denied}", _permission_hint(denied)
    if facts.cpuinfo is None and not facts.trees:
        reasons = ", ".join(f"{path}: {why}" for path, why in facts.failures.items()) or "nothing was read"
        return (
            f"nothing could be read ({reasons})",
            f"run: cat {CPUINFO}; in a service remove ProcSubset=pid, in a chroot run: mount -t proc proc /proc",
        )
    kernel = (
        "the kernel prints Revision 0000" if found.zero_revision else f"{facts.cpuinfo_origin} has no Revision line"
    )
    if facts.trees and found.u_boot:
        return (
            f"{kernel}, and U-Boot replaced the firmware's device tree ({TREE_REVISION} is missing)",
            "let U-Boot pass on the firmware's tree: boot with ${fdt_addr} instead of a .dtb file of its own, then "
            "run: pi-agent board",
        )
    if facts.trees:
        return (
            f"{kernel} (a mainline kernel), and the device tree is not the firmware's ({TREE_REVISION} is missing)",
            "boot the Raspberry Pi kernel, or let the firmware load the device tree; if you know the code, "
            "run: pi-agent board --revision CODE",
        )
    if not facts.failures.keys() & set(TREES):
        return (
            f"{kernel}, and this text is all there is",
            "run pi-agent board on the machine itself: there it asks the device tree and the firmware too",
        )
    return (
        f"{kernel}, and there is no device tree to ask (containers hide it)",
        "run pi-agent board outside the container, or start it with: "
        "docker run --security-opt systempaths=unconfined (podman: --security-opt unmask=ALL)",
    )


def _never_given(origin: str, code: int) -> tuple[str, str]:
    try:
        Revision(code)
    except UnreadableBoardError as error:
        return f"{origin}: {error}", error.hint or READ_AS_ROOT
    raise AssertionError("a usable code was called unreadable")  # pragma: no cover


def _failed(failures: Mapping[str, str], reason: str) -> str | None:
    return next((path for path, why in failures.items() if why == reason), None)


def _permission_hint(path: str) -> str:
    if path == MAILBOX:
        return f"{READ_AS_ROOT}, or once: sudo usermod -aG video $USER, and log in again"
    return READ_AS_ROOT


def _not_a_pi(reason: str) -> NotARaspberryPiError:
    return NotARaspberryPiError(f"not a Raspberry Pi: {reason}", hint=NOT_A_PI_HINT)
