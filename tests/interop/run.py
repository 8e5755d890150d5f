"""``./dev interop``: install real authorization servers into ``.interop`` and run the tests against them on loopback.

npm brings oidc-provider, and a node that is new enough for it; Debian brings glewlwyd. What cannot be installed here is
said, and its tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("PI_AGENT_INTEROP") or PROJECT / ".interop")
NODE_PACKAGES = ("oidc-provider@9", "node@22")


def main(arguments: list[str]) -> int:
    install_node_packages()
    if not shutil.which("glewlwyd"):
        say("glewlwyd is not installed: apt install glewlwyd")
    command = [sys.executable, "-m", "pytest", "tests/interop", "-q", *arguments]
    return subprocess.run(command, cwd=PROJECT, check=False).returncode


def install_node_packages() -> None:
    if (FOLDER / "node_modules/oidc-provider").is_dir():
        return
    npm = shutil.which("npm")
    if npm is None:
        say("npm is not installed, so oidc-provider is left out: apt install npm")
        return
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "package.json").write_text('{"private": true}\n')
    say(f"installing {' and '.join(NODE_PACKAGES)} into {FOLDER.name}")
    if subprocess.run(
        [npm, "install", "--silent", *NODE_PACKAGES], cwd=FOLDER, stdout=sys.stderr, check=False
    ).returncode:
        say("npm could not install them: its messages above say why")


def say(text: str) -> None:
    print(f"interop: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
