"""How many instructions the agent takes on the oldest boards: counted, on an emulated ARM1176 (the Pi 1's and the Zero's).

Run ``python benchmarks/arm.py`` as root on Debian, with qemu-user, mmdebstrap, qemu-user-static, gcc and libc6-dev. It
makes a root file system of Debian 12 for armel once, in the user's cache folder (minutes), installs this tree's agent in
it, and runs each program there under ``qemu-arm -cpu arm1176`` with a plugin that counts (``_count_instructions.c``).
Time under emulation says nothing and is not shown; two counts of the same differ by less than 1 %.

Ends with 1 when something cannot be counted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import agent
from pi_agent.device import frames

sys.path.insert(0, str(agent.REPO / "tests" / "boot"))
import roots  # the root file systems that `./dev boot` uses, too

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi-agent-bench" / "arm"
ROOT = CACHE / "root"
PACKAGES = ROOT / "usr/lib/python3/dist-packages"
TOOLS = {"qemu-arm": "qemu-user", "qemu-arm-static": "qemu-user-static", "mmdebstrap": "mmdebstrap", "gcc": "gcc"}
EMULATED = ("/usr/bin/qemu-arm", "-cpu", "arm1176", "-plugin", "/count.so")
PYTHON = ("/usr/bin/python3", "-I", "-S")
BARE = "`python3 -I -S -c pass`"
PATH = "import sys; sys.path.append('/usr/lib/python3/dist-packages')"
ROUNDS = 3
FOLDERS = {"state": "/bench/state", "root": "/bench/root", "runtime": "/bench/emulated", "config": "/bench/config.toml"}


class CannotCountError(Exception):
    """What is missing, or what failed, and the next step."""


def main(argv: list[str]) -> int:
    if argv:
        print(__doc__)
        return 2
    try:
        check_machine()
        make_root()
        shutil.rmtree(ROOT / "bench", ignore_errors=True)
        (ROOT / "bench").mkdir()
        table = Counts(ROOT / "bench").take()
    except (CannotCountError, OSError, subprocess.CalledProcessError) as error:
        print(f"arm: {error}")
        return 1
    print("| program | instructions, M | x bare interpreter |\n|---|---|---|")
    for what, number in table.items():
        print(f"| {what} | {number / 1e6:.1f} | {number / table[BARE]:.2f} |")
    print("arm: all counted")
    return 0


def check_machine() -> None:
    if os.geteuid():
        raise CannotCountError("only root can make and enter a root file system: sudo ./dev bench arm")
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool)})
    if missing:
        raise CannotCountError(f"this needs programs that are not here: apt install {' '.join(missing)} libc6-dev")


# The root file system


def make_root() -> None:
    """Debian's own packages once; the plugin and our own code each time."""
    if not ROOT.exists():
        part = ROOT.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        tar = roots.rootfs("bookworm", "armel")
        subprocess.run(["tar", "-C", part, "-xf", tar, "--exclude=./dev/?*"], check=True)
        os.mknod(part / "dev/null", 0o20666, os.makedev(1, 3))
        part.rename(ROOT)
    for file in emulator():
        target = ROOT / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    compile_plugin()
    install_agent()


def emulator() -> list[Path]:
    """qemu-arm and the libraries that it needs, at the places where it looks for them."""
    libraries = re.findall(r"(/\S+) \(0x", roots.output("ldd", EMULATED[0]))
    return [Path(EMULATED[0]), *map(Path, libraries)]


def compile_plugin() -> None:
    found = re.search(r"version (\d+)", roots.output(EMULATED[0], "--version"))
    version = 1 if found and int(found[1]) < 9 else 2
    source = agent.REPO / "benchmarks/_count_instructions.c"
    options = ["-O2", "-Wall", "-shared", "-fPIC", f"-DAPI_VERSION={version}"]
    subprocess.run(["gcc", *options, "-o", str(ROOT / "count.so"), str(source)], check=True)


def install_agent() -> None:
    """As the Debian package does: the modules byte-compiled, by the Python that will run them, and the script."""
    shutil.rmtree(PACKAGES / "pi_agent", ignore_errors=True)
    leave_out = shutil.ignore_patterns("fleet", "__pycache__")
    shutil.copytree(agent.REPO / "src/pi_agent", PACKAGES / "pi_agent", ignore=leave_out)
    shutil.copy(agent.REPO / "packaging/pi-agent", ROOT / "usr/bin/pi-agent")
    count([*PYTHON, "-m", "compileall", "-q", "/usr/lib/python3/dist-packages/pi_agent"])


# Counting


def start(command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
    clean = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    whole = ["/usr/sbin/chroot", str(ROOT), *EMULATED, *command]
    return subprocess.Popen(
        whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean | variables
    )


def counted(process: subprocess.Popen[bytes], said: bytes = b"") -> tuple[int, bytes]:
    """The instructions until the program ends, and what it printed. Raises CannotCountError when it failed."""
    printed, words = process.communicate(said, timeout=300)
    found = re.search(rb"\ninstructions: (\d+)\n", words)
    if process.returncode or not found:
        raise CannotCountError(f"{process.args!r} ended with {process.returncode}: {words.decode(errors='replace')}")
    return int(found[1]), printed


def count(command: list[str], said: bytes = b"", **variables: str) -> tuple[int, bytes]:
    return counted(start(command, variables), said)


class Counts(agent.Bench):
    """The rows of the table. The identity, the token endpoint and the resident that is asked are those of agent.py."""

    def take(self) -> dict[str, int]:
        self._prepare()
        with self._endpoint(1800) as url:
            with self._agent(url):  # not emulated: only who asks it is counted
                token = median(partial(self._ask, ["/usr/bin/python3", "-IS", "/usr/bin/pi-agent", "token"]))
                curl = ["/usr/bin/curl", "-s", "--unix-socket", "/bench/runtime/agent.sock", "http://pi/v1/token"]
                rows = {
                    "`pi-agent token`": token,
                    "`curl --unix-socket`, for the same token": median(partial(self._ask, curl)),
                }
            flags = json.dumps(FOLDERS)
            preparation = [*PYTHON, "-c", f"{PATH}; from pi_agent.device.preparation import main; main()"]
            prepare = partial(count, preparation, frames.pack({"flags": flags}), PI_AGENT_TOKEN_SPREAD="300")
            settings = frames.unpack(prepare()[1])
            rows["`pi-agent run`: settings, identity and board are read"] = median(prepare)
            rows["`pi-agent run`: the resident, from its start to READY=1"] = median(partial(self._resident, settings))
            rows["one refresh: the worker, from its start to its end"] = median(partial(self._worker, settings))
        return {BARE: median(partial(count, [*PYTHON, "-c", "pass"]))} | rows

    def _ask(self, command: list[str]) -> tuple[int, bytes]:
        found = count(command, PI_AGENT_RUNTIME="/bench/runtime")
        if b"t" * 768 not in found[1]:
            raise CannotCountError(f"{command!r} brought no token: {found[1]!r}")
        return found

    def _resident(self, settings: dict[str, str]) -> tuple[int, bytes]:
        """Ended as soon as it says that it is ready, before it starts a worker."""
        code = f"{PATH}; from pi_agent.device.agent import main; main(0)"
        with (
            tempfile.TemporaryDirectory(dir=self._folder) as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear,
        ):
            ear.bind(f"{folder}/notify")
            ear.settimeout(60)
            resident = start([*PYTHON, "-c", code], {"NOTIFY_SOCKET": f"/bench/{Path(folder).name}/notify"})
            assert resident.stdin is not None
            resident.stdin.write(frames.pack(settings))
            resident.stdin.close()
            resident.stdin = None
            try:
                is_ready = b"READY=1" in ear.recv(4096)
            except TimeoutError:
                is_ready = False
            resident.terminate()
            found = counted(resident)
            if not is_ready:
                raise CannotCountError("the resident does not say that it is ready")
            return found

    def _worker(self, settings: dict[str, str]) -> tuple[int, bytes]:
        said = frames.pack(settings | {"action": "token", "audience": "", "anchor": "", "refresh_token": ""})
        found = count([*PYTHON, "-c", f"{PATH}; from pi_agent.device.worker import main; main()"], said)
        if frames.unpack(found[1]).get("outcome") != "token":
            raise CannotCountError(f"the worker brought no token: {found[1]!r}")
        return found


def median(run: Callable[[], tuple[int, bytes]]) -> int:
    return round(statistics.median(run()[0] for _ in range(ROUNDS)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
