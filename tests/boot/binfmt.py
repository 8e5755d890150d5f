"""Run a command where ARM programs run through qemu-user: ``python3 binfmt.py COMMAND...``, as root.

The interpreters are registered in a user and mount namespace of their own (a binfmt_misc for each user namespace came
with Linux 6.7), so that nothing is registered on this machine and nothing is left when the command ends.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x0002_0000, 0x1000_0000  # linux/sched.h
REGISTRY = Path("/proc/sys/fs/binfmt_misc")
RULES = tuple(Path(f"/usr/lib/binfmt.d/qemu-{name}.conf") for name in ("arm", "aarch64"))
EVERY_ID = "0 0 4294967295"


def main(command: list[str]) -> int:
    if not command:
        sys.exit(__doc__)
    unshared, mapped = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(command, tell=unshared[1], wait=mapped[0])
    os.close(unshared[1])
    if os.read(unshared[0], 1):  # nothing comes when the child ended instead
        for name in ("uid_map", "gid_map"):  # only a process outside of the namespace may map every id
            Path(f"/proc/{pid}/{name}").write_text(EVERY_ID)
        os.write(mapped[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _become(command: list[str], *, tell: int, wait: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), "unshare")
    os.write(tell, b"x")
    os.read(wait, 1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    _check(libc.mount(b"binfmt_misc", bytes(REGISTRY), b"binfmt_misc", 0, None), "mount binfmt_misc")
    for rule in RULES:
        (REGISTRY / "register").write_bytes(rule.read_bytes().strip())
    os.execvp(command[0], command)


def _check(result: int, what: str) -> None:
    if result:
        sys.exit(f"binfmt: {what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
