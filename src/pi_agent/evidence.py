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

from collections.abc import Sequence

from pi_agent.errors import NotARaspberryPiError, UnreadableBoardError
from pi_agent.facts import CPUINFO, MAILBOX, TREE_REVISION, TREES, Facts, Readings
from pi_agent.revision import NEW_STYLE, PROCESSORS, TYPES, Revision, is_unknown

NAME = "Raspberry Pi"
COMPATIBLE = "raspberrypi,"
PI_HARDWARE = frozenset({"BCM2708", "BCM2709", "BCM2710", *PROCESSORS.values()})
NEUTRAL_HARDWARE = "Generic DT based system"  # rpi-4.14 kernels said so on a Pi 3, others say it on anything

ARM = "0x41"
PARTS = {"0xb76": "BCM2835", "0xc07": "BCM2836", "0xd03": "BCM2837", "0xd08": "BCM2711", "0xd0b": "BCM2712"}

NOT_A_PI_HINT = "to decode a recording from a Raspberry Pi: pi-agent board --cpuinfo FILE, or --root DIR"
READ_AS_ROOT = "run: sudo pi-agent board"
JOIN_VIDEO = "run: sudo pi-agent board, or once: sudo usermod -aG video $USER, and log in again"
NOTHING_READ = "run: cat /proc/cpuinfo; in a service remove ProcSubset=pid, in a chroot: mount -t proc proc /proc"
GIVEN_FILE = "look at it: ls -l FILE; it must be a regular file that you may read"
BAD_CODE = "look at it: grep Revision /proc/cpuinfo; a good code reads like a02082"
TEXT_ONLY = "run pi-agent board on the machine itself: there it asks the device tree and the firmware too"
U_BOOT = "let U-Boot pass on the firmware's tree (use ${fdt_addr}, load no .dtb), reboot, and run: pi-agent board"
MAINLINE = (
    "this is what mainline kernels do: boot the Raspberry Pi kernel, or let the firmware load the device tree, and "
    "run: pi-agent board; if you know the code, run: pi-agent board --revision CODE"
)
CONTAINER = (
    "run pi-agent board outside the container, or start it with: "
    "docker run --security-opt systempaths=unconfined (podman: --security-opt unmask=ALL)"
)
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


def require_proof(code: int) -> None:
    """Judge a code on a machine that names nothing. Raises ``NotARaspberryPiError`` unless the code proves itself."""
    if not code & NEW_STYLE:
        raise _not_a_pi(f"revision {code:04x} is printed by other boards too, and nothing names a Raspberry Pi")
    revision = Revision(code)
    if revision.type_number not in TYPES or is_unknown(revision.soc):
        raise _not_a_pi(f"revision {code:04x} is of no known type, and nothing names a Raspberry Pi")


def unreadable(
    facts: Facts, found: Readings, refused: Sequence[tuple[str, UnreadableBoardError]], *, is_pi: bool
) -> UnreadableBoardError:
    """Why there is no usable code, and what to run. ``refused`` are the codes that no board was ever given."""
    reason, hint = _why(facts, found, refused)
    return UnreadableBoardError(
        f"{_who(found, is_pi=is_pi)}, but its revision code cannot be read: {reason}", hint=hint
    )


def _who(found: Readings, *, is_pi: bool) -> str:
    if not is_pi:
        return "this may be a Raspberry Pi"
    names = [text for _, text in found.models if is_pi_name(text)]
    return f"this is a {names[0]}" if names else "this is a Raspberry Pi"


def _why(facts: Facts, found: Readings, refused: Sequence[tuple[str, UnreadableBoardError]]) -> tuple[str, str]:
    for origin, error in refused:
        return f"{origin}: {error}", error.hint or READ_AS_ROOT
    if denied := [path for path, why in facts.failures.items() if why == PERMISSION]:
        return f"permission denied on {denied[0]}", JOIN_VIDEO if denied[0] == MAILBOX else READ_AS_ROOT
    if facts.cpuinfo is None and not facts.trees:
        reasons = ", ".join(f"{path}: {why}" for path, why in facts.failures.items()) or "nothing was asked"
        return f"nothing could be read ({reasons})", NOTHING_READ if facts.cpuinfo_origin == CPUINFO else GIVEN_FILE
    if found.bad_revisions:
        return found.bad_revisions[0], BAD_CODE
    return _no_code(facts, found)


def _no_code(facts: Facts, found: Readings) -> tuple[str, str]:
    if found.zero_revision:
        kernel = "the kernel prints Revision 0000"
    elif facts.cpuinfo is None:
        kernel = f"{facts.cpuinfo_origin} is not readable ({facts.failures.get(facts.cpuinfo_origin, 'not asked')})"
    else:
        kernel = f"{facts.cpuinfo_origin} has no Revision line"
    if facts.trees and found.u_boot:
        return f"{kernel}, and U-Boot replaced the firmware's device tree ({TREE_REVISION} is missing)", U_BOOT
    if facts.trees:
        return f"{kernel}, and the device tree is not the firmware's ({TREE_REVISION} is missing)", MAINLINE
    if not facts.failures.keys() & set(TREES):
        return f"{kernel}, and this text is all there is", TEXT_ONLY
    return f"{kernel}, and there is no device tree to ask (containers hide it)", CONTAINER


def _not_a_pi(reason: str) -> NotARaspberryPiError:
    return NotARaspberryPiError(f"not a Raspberry Pi: {reason}", hint=NOT_A_PI_HINT)
