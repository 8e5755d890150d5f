"""The crash sweep, as SQLite does it: the n-th system call fails, or the process dies there, for n = 1, 2, ... to the end.

``python tests/device/chaos.py`` runs every scenario with every call and every fault (``./dev chaos``); the tests run a
part of it. strace puts the faults in. After each: the key is the old one, a whole new one, or not there; the identity
and the settings likewise; nothing else has changed; and the next, undisturbed run gets where this one did not.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from device.living import CPUINFO, SOURCE
from pi_agent.device import config, identity, joining, sinks
from pi_agent.device.keys import file
from pi_agent.errors import ConfigError

CALLS = ("mkdir", "write", "fsync", "fchown", "fchmod", "link,linkat", "rename,renameat,renameat2", "unlink,unlinkat")
FAULTS = ("error=ENOSPC", "error=EIO", "error=EROFS", "signal=KILL")
PYTHON = [sys.executable, "-I", "-B", "-c"]
URL = "http://127.0.0.1:9"
WRITE = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from pi_agent.device import sinks; "


@dataclass(frozen=True)
class Scenario:
    """``command`` is what is disturbed in a folder; ``check`` raises AssertionError when it left something half done."""

    name: str
    prepare: Callable[[Path], None]
    command: Callable[[Path], list[str]]
    check: Callable[[Path], None]
    recovers: Callable[[Path], None]


def set_up(folder: Path) -> list[str]:
    options = [f"--{name}={folder / name}" for name in ("state", "root", "runtime")]
    words = ["setup", URL, "--preset", "oidc-provider", "--client-id", "board-1", "--json"]
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from pi_agent.device.cli import main; sys.exit(main())"
    site = next(path for path in sys.path if path.endswith("site-packages"))
    return [
        *PYTHON,
        f"import sys; sys.path.append({site!r}); {code}",
        f"--config={folder / 'config.toml'}",
        *options,
        *words,
    ]


def make_board(folder: Path) -> None:
    (folder / "root/proc").mkdir(parents=True)
    shutil.copy(CPUINFO, folder / "root/proc/cpuinfo")
    (folder / "config.toml").write_text(f'[server]\ntoken_endpoint = "{URL}/token"\nloopback_http = true\n# kept\n')


def whole_or_absent(folder: Path) -> None:
    """Key, identity and settings are whole or not there, and closed to others."""
    state = folder / "state"
    if (state / file.NAME).exists():
        assert file.load(state).public_key().kid
        assert (state / file.NAME).stat().st_mode & 0o777 == 0o600
    if (state / identity.NAME).exists():
        assert json.loads((state / identity.NAME).read_text())["issuer"] == URL  # whole; it may be a draft
    text = (folder / "config.toml").read_text()
    assert "# kept" in text
    config.load({"config": str(folder / "config.toml")}, {})


def set_up_recovers(folder: Path) -> None:
    """The same command, undisturbed, ends well, with the key that was there if there was one."""
    state = folder / "state"
    before = file.load(state).public_key().kid if (state / file.NAME).exists() else None
    done = subprocess.run(set_up(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    known = identity.load(state)
    assert known.client_id == "board-1"
    assert before in (None, joining.load_key(state, known).public_key().kid)


def make_token_file(folder: Path) -> None:
    assert sinks.write(str(folder / "token"), b"old" * 100, None) == ""


def write_token(folder: Path) -> list[str]:
    return [*PYTHON, f"{WRITE} sys.exit(bool(sinks.write({str(folder / 'token')!r}, b'new' * 100, None)))"]


def old_or_new(folder: Path) -> None:
    assert (folder / "token").read_bytes() in (b"old" * 100, b"new" * 100)


def write_token_recovers(folder: Path) -> None:
    assert sinks.write(str(folder / "token"), b"new" * 100, None) == ""
    assert (folder / "token").read_bytes() == b"new" * 100


SCENARIOS = (
    Scenario("setup", make_board, set_up, whole_or_absent, set_up_recovers),
    Scenario("token file", make_token_file, write_token, old_or_new, write_token_recovers),
)


def sweep(scenario: Scenario, calls: str, fault: str) -> Iterator[tuple[int, int]]:
    """Disturb the first, second, ... of ``calls`` until a run has no such call left; gives n and the exit code of each."""
    for n in range(1, 1000):
        with tempfile.TemporaryDirectory(prefix="pi-agent-chaos-") as home:
            folder = Path(home)
            scenario.prepare(folder)
            log = folder.with_suffix(".strace")
            inject = [
                "strace",
                "-f",
                "-qq",
                "-o",
                str(log),
                "-e",
                f"trace={calls}",
                "-e",
                f"inject={calls}:{fault}:when={n}",
            ]
            done = subprocess.run([*inject, *scenario.command(folder)], capture_output=True, check=False)
            told = log.read_text()
            log.unlink()
            hit = "INJECTED" in told or "killed by SIGKILL" in told
            if not hit:
                assert done.returncode == 0, done.stderr
                return
            assert b"Traceback" not in done.stderr or re.search(rb"OSError|ENOSPC", done.stderr) is None, done.stderr
            scenario.check(folder)
            scenario.recovers(folder)
            yield n, done.returncode


def sweep_all() -> int:
    """Every scenario, call and fault; the number of disturbed runs."""
    runs = 0
    for scenario in SCENARIOS:
        for calls in CALLS:
            for fault in FAULTS:
                codes = [code for _, code in sweep(scenario, calls, fault)]
                runs += len(codes)
                print(
                    f"{scenario.name:<11}{calls:<28}{fault:<14}{len(codes):3} runs, ended with {sorted(set(codes))}",
                    flush=True,
                )
    return runs


if __name__ == "__main__":
    if not shutil.which("strace"):
        sys.exit("error: strace is not installed\nhint: sudo apt install strace")
    try:
        count = sweep_all()
    except (AssertionError, ConfigError) as error:
        sys.exit(f"chaos: something was left half done: {error!r}")
    print(f"chaos: {count} disturbed runs, nothing half done, every next run recovered")
