"""The README's transcript is what the demo prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# What differs from run to run: each is a value that the demo makes up or looks up anew.
CHANGING = [
    (r'"[A-Za-z0-9_-]{43}"', "BOOT"),
    (r'"[A-Za-z0-9_-]{22}"', "JTI"),
    (r"pi-[0-9a-f]{16}", "DEVICE"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\b[12]\d{9}\b", "SECONDS"),
    (r"20\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?( UTC|Z)?", "TIME"),
    (r"\d+ ?s ago|just now", "AGO"),
    (r"/sign-in/\S+", "/sign-in/ONCE"),
]


def test_the_readme_shows_what_the_demo_prints() -> None:
    """``./dev demo --once`` ends with 0 and prints, but for what changes from run to run, the README's first screen."""
    done = subprocess.run(
        [sys.executable, PROJECT / "demo" / "demo.py", "--once"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    shown = re.search(r"```console\n\$ \./dev demo --once\n(.*?)```", (PROJECT / "README.md").read_text(), re.DOTALL)
    assert shown is not None
    assert masked(done.stdout) == masked(shown[1])


def masked(text: str) -> list[str]:
    for pattern, name in CHANGING:
        text = re.sub(pattern, name, text)
    return [re.sub(r" {2,}", "  ", line.rstrip()) for line in text.strip().splitlines()]
