"""A throw-away systemd: a Debian tree booted in a container, in well under a second, that leaves nothing.

The tree is the read-only lower layer of an overlay whose upper layer is in memory; a ``Lab`` may be booted several
times, and keeps what was written until it is left. Real in there: units, notify, watchdog, sandbox, users, dpkg. Not
enforced on every machine: memory limits. Needs root and systemd-nspawn; neither KVM nor systemd as this machine's PID 1.

Every mount is made in the mount namespace of this process, so ``enter_namespace`` comes first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

BASE = Path("/run/lab")
CGROUPS = Path("/sys/fs/cgroup")
MARK = "PI_AGENT_LAB_NAMESPACE"
BOOT_TIME, STOP_TIME = 60.0, 20.0


def enter_namespace() -> None:
    """Start this program again in a mount namespace of its own, with a /run and control groups that are its own, too."""
    if os.environ.get(MARK) != "yes":
        os.environ[MARK] = "yes"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", "--", sys.executable, *sys.argv])
    subprocess.run(["umount", "-R", CGROUPS], stderr=subprocess.DEVNULL, check=False)
    _mount("-t", "cgroup2", "cgroup2", CGROUPS)
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    Path("/run/systemd").mkdir()


def _mount(*words: str | Path) -> None:
    subprocess.run(["mount", *words], check=True)


class Lab:
    """``root`` is the tree as the container sees it, and may be written to while nothing is booted."""

    def __init__(self, tree: Path, name: str) -> None:
        self._home = BASE / name
        self._tree = tree
        self.root = self._home / "root"
        self.console = self._home / "console"

    def __enter__(self) -> Lab:
        for folder in ("upper", "work", "root"):
            (self._home / folder).mkdir(parents=True)
        layers = f"lowerdir={self._tree},upperdir={self._home}/upper,workdir={self._home}/work"
        _mount("-t", "overlay", "-o", layers, "overlay", self.root)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-R", self.root], check=True)
        subprocess.run(["rm", "-rf", self._home], check=True)

    @contextmanager
    def boot(self, *options: str, binds: Sequence[str] = ()) -> Iterator[Machine]:
        """Boot with further ``systemd-nspawn`` options; power off at the end. ``binds`` are ``SOURCE:TARGET``."""
        cgroup = CGROUPS / f"pi-agent-lab-{os.getpid()}"
        cgroup.mkdir(exist_ok=True)
        command = [
            *("systemd-nspawn", "-q", f"--directory={self.root}", "--boot", "--register=no", "--keep-unit"),
            *("--machine=lab", "--console=read-only", "--kill-signal=SIGRTMIN+4", "--link-journal=no"),
            *("--resolv-conf=off", "--timezone=off", *options, *(f"--bind={bind}" for bind in binds)),
        ]
        with self.console.open("wb") as console:
            process = subprocess.Popen(
                ["sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
            machine = Machine(process)
            try:
                if not machine.wait():
                    raise AssertionError("no boot: " + self.console.read_text(errors="replace")[-2000:])
                yield machine
            finally:
                machine.stop()
                _remove_cgroups(cgroup)


class Machine:
    """A booted container."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.started = time.monotonic()

    def run(self, *command: str, codes: Sequence[int] = (0,), timeout: float = 120, text: str | None = None) -> str:
        """What ``command`` prints, run as root inside. Raises AssertionError when it ends with another exit status."""
        done = subprocess.run(
            [*self._inside(), *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **({"input": text} if text is not None else {"stdin": subprocess.DEVNULL}),
        )
        if done.returncode not in codes:
            words = " ".join(command)[-300:]
            raise AssertionError(f"{words}\nended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
        return done.stdout + (done.stderr if codes != (0,) else "")

    def show(self, unit: str, what: str) -> str:
        return self.run("systemctl", "show", "-p", what, "--value", unit).strip()

    def wait(self) -> bool:
        """True once systemd is up; False when it does not come up."""
        deadline = time.monotonic() + BOOT_TIME
        while time.monotonic() < deadline and self._process.poll() is None:
            leader = self._leader()
            if leader and Path(f"/proc/{leader}/root/run/systemd/private").exists():
                state = self.run("systemctl", "is-system-running", "--wait", codes=(0, 1), timeout=BOOT_TIME).strip()
                if state in ("running", "degraded"):
                    return True
            time.sleep(0.02)
        return False

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _inside(self) -> list[str]:
        environment = [
            "env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "DEBIAN_FRONTEND=noninteractive",
        ]
        return ["nsenter", "-t", str(self._leader()), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w", *environment]

    def _leader(self) -> int:
        """The container's PID 1, as this machine numbers it; 0 while there is none."""
        try:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        except OSError:
            return 0
        return int(children[0]) if children else 0


def _remove_cgroups(top: Path) -> None:
    folders = sorted((Path(folder) for folder, _, _ in os.walk(top)), key=lambda path: len(path.parts), reverse=True)
    for folder in folders:
        for _ in range(50):
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.05)
