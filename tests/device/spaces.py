"""Programs that see mounts of their own: a small, a full, a read-only file system, another resolver. Nothing outside changes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNSHARE = ("unshare", "--mount", "--propagation", "private")


def mounting(*commands: str) -> tuple[str, ...]:
    """What stands before a command that is to run after ``commands``, in a mount namespace of its own."""
    return (*UNSHARE, "sh", "-c", "; ".join(("set -e", *commands, 'exec "$@"')), "sh")


def joining(pid: int) -> tuple[str, ...]:
    """What stands before a command that is to see what the process ``pid`` sees."""
    return ("nsenter", f"--target={pid}", "--mount")


def within(pid: int, *command: str) -> None:
    subprocess.run([*joining(pid), *command], check=True)


def seen_by(pid: int, path: Path) -> Path:
    """``path`` as the process ``pid`` sees it."""
    return Path(f"/proc/{pid}/root{path}")


def _why_not() -> str:
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        return "util-linux is not installed"
    tried = subprocess.run(
        [*mounting("mount -t tmpfs -o size=64k none /mnt"), "true"], capture_output=True, text=True, check=False
    )
    return f"no mounts of our own: {tried.stderr.strip()}" if tried.returncode else ""


WHY_NOT = _why_not()
needs_mounts = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)
