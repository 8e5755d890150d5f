"""The crash sweep, as SQLite does it: the n-th system call fails, or the process dies there, for n = 1, 2, ... to the end.

``python tests/device/chaos.py [SCENARIO...]`` runs every scenario with every call and every fault (``./dev chaos``); the
tests run a part of it. strace puts the faults in, into the resident and into its worker. After each: the key is the old
one, a whole new one, or not there; identity, settings and token files likewise; nothing else has changed; and the next,
undisturbed run gets where this one did not.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from device.living import CPUINFO, SOURCE, living
from device.rotating import Rotating
from pi_agent.device import config, frames, identity, joining, preparation, sinks, worker
from pi_agent.device.keys import file

OPEN = "openat"  # only of what is in our folders
CALLS = (
    *("mkdir", "write", "fsync", "fchown", "fchmod", "link,linkat", "rename,renameat,renameat2", "unlink,unlinkat"),
    *("bind", "chown,fchownat,lchown", OPEN),
)
OURS = ("state", "run", "out")
FAULTS = ("error=ENOSPC", "error=EIO", "error=EROFS", "signal=KILL")
PYTHON = [sys.executable, "-I", "-B", "-c"]
URL = "http://127.0.0.1:9"
ASKED = {"action": "token", "audience": "", "refresh_token": "", "anchor": "", "may_rotate": "1"}
WRITE = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from pi_agent.device import sinks; "


@dataclass(frozen=True)
class Scenario:
    """``command`` is what is disturbed in a folder; ``check`` raises AssertionError when it left something half done."""

    name: str
    prepare: Callable[[Path], AbstractContextManager[None]]
    command: Callable[[Path], list[str]]
    check: Callable[[Path], None]
    recovers: Callable[[Path], None]


def set_up(folder: Path) -> list[str]:
    options = [f"--{name}={folder / name}" for name in ("state", "root", "runtime")]
    words = ["setup", URL, "--preset", "oidc-provider", "--client-id", "board-1", "--json"]
    code = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from pi_agent.device.cli import main; sys.exit(main())"
    site = next(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    return [
        *PYTHON,
        f"import sys; sys.path.append({site!r}); {code}",
        f"--config={folder / 'config.toml'}",
        *options,
        *words,
    ]


@contextlib.contextmanager
def make_board(folder: Path) -> Iterator[None]:
    (folder / "root/proc").mkdir(parents=True)
    shutil.copy(CPUINFO, folder / "root/proc/cpuinfo")
    (folder / "config.toml").write_text(f'[server]\ntoken_endpoint = "{URL}/token"\nloopback_http = true\n# kept\n')
    yield


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


@contextlib.contextmanager
def make_token_file(folder: Path) -> Iterator[None]:
    assert sinks.write(str(folder / "token"), b"old" * 100, None) == ""
    yield


def write_token(folder: Path) -> list[str]:
    return [*PYTHON, f"{WRITE} sys.exit(bool(sinks.write({str(folder / 'token')!r}, b'new' * 100, None)))"]


def old_or_new(folder: Path) -> None:
    assert (folder / "token").read_bytes() in (b"old" * 100, b"new" * 100)


def write_token_recovers(folder: Path) -> None:
    assert sinks.write(str(folder / "token"), b"new" * 100, None) == ""
    assert (folder / "token").read_bytes() == b"new" * 100


# The resident, for one refresh, while a key is being rotated

ONCE = """
import os, sys
sys.path[:0] = {path!r}
from pi_agent.device import agent
class Once(agent.Agent):
    def _finish(self, *answer):
        super()._finish(*answer)
        self._running = False
agent.Agent = Once
agent.main(os.open({fields!r}, os.O_RDONLY))
"""


def enrolled(*, steps: int) -> Callable[[Path], AbstractContextManager[None]]:
    """An enrolled board whose rotation has come ``steps`` refreshes far, and its server, for as long as it is looked at."""

    @contextlib.contextmanager
    def prepare(folder: Path) -> Iterator[None]:
        with living(folder) as pi:
            server = Rotating(file.load(folder / "state").public_key(), pi.server.url)
            pi.answers.now, pi.answers.metadata = server, server.metadata
            (folder / "out").mkdir()
            sinks_table = f'[sinks]\ntoken_file = "{folder}/out/token"\nenvironment_file = "{folder}/out/env"\n'
            local = f'[local]\ngroup = "{os.getgid()}"\n[token]\nspread = 0\n'
            pi.configure((folder / "config.toml").read_text() + sinks_table + local)
            settings = prepared(folder)
            (folder / "fields").write_bytes(frames.pack(settings))
            for _ in range(steps):
                server.is_due = True
                assert refreshed(settings)
            server.is_due = True
            (folder / "servers-keys").write_text(json.dumps(list(server.keys)))
            boards[folder] = server
            yield
            del boards[folder]

    return prepare


boards: dict[Path, Rotating] = {}


def prepared(folder: Path) -> dict[str, str]:
    flags = {"config": str(folder / "config.toml"), "runtime": str(folder / "run")}
    return preparation.prepare(flags | {name: str(folder / name) for name in ("state", "root")})


def refreshed(settings: dict[str, str]) -> bool:
    """One worker's work, in this process."""
    return worker.refresh(settings | ASKED)["outcome"] == "token"


def run_once(folder: Path) -> list[str]:
    path = frames.unpack((folder / "fields").read_bytes())["path"].split(os.pathsep)
    return [sys.executable, "-I", "-S", "-B", "-c", ONCE.format(path=path, fields=str(folder / "fields"))]


def run_worker(folder: Path) -> list[str]:
    settings = frames.unpack((folder / "fields").read_bytes())
    (folder / "asked").write_bytes(frames.pack(settings | ASKED))
    path = settings["path"].split(os.pathsep)
    code = f"import sys; sys.path[:0] = {path!r}; from pi_agent.device.worker import main; main()"
    interpreter = [sys.executable, "-I", "-S", "-B", "-c", code]
    return ["sh", "-c", f"exec {shlex.join(interpreter)} < {folder}/asked"]


def identity_and_outlets(folder: Path) -> None:
    """The identity is whole, its key is there and one of its keys is good; a token file is whole; nothing else is there."""
    state, out = folder / "state", folder / "out"
    known = identity.load(state)
    held = [joining.load_key(state, known).public_key().kid]
    if known.next_key and (state / known.next_key.removeprefix("file:")).exists():
        held.append(file.load(state, name=known.next_key.removeprefix("file:")).public_key().kid)
    assert set(held) & set(boards[folder].keys)
    for name, pattern in (("token", r"token-\d+"), ("env", r"PI_AGENT_TOKEN=token-\d+\n\w+=\d+\n")):
        if (out / name).exists():
            assert re.fullmatch(pattern, (out / name).read_text())
            assert (out / name).stat().st_mode & 0o777 == 0o640
    strange = [path.name for path in (*state.iterdir(), *out.iterdir(), *(folder / "run").iterdir())]
    known_names = r"identity\.json|key.*\.pem|\.pi-agent-\w+|token|env|\.(token|env)\.\w{12}|agent\.(sock|lock)"
    assert [name for name in strange if not re.fullmatch(known_names, name)] == []


def refresh_recovers(folder: Path) -> None:
    """The next start gets a token, leaves nothing half behind, and the rotation comes to its end."""
    before = json.loads((folder / "servers-keys").read_text())
    settings = prepared(folder)
    done = subprocess.run(run_once(folder), capture_output=True, text=True, check=False)
    assert (done.returncode, "token ok" in done.stderr) == (0, True), done.stderr
    left = [path.name for part in OURS for path in (folder / part).iterdir() if path.name.startswith(".")]
    assert left == []
    for _ in range(3):
        assert refreshed(settings)
        if boards[folder].keys.keys().isdisjoint(before):
            break
    known = identity.load(folder / "state")
    assert [known.kid] == list(boards[folder].keys)
    assert known.kid not in before


SCENARIOS = (
    Scenario("setup", make_board, set_up, whole_or_absent, set_up_recovers),
    Scenario("token file", make_token_file, write_token, old_or_new, write_token_recovers),
    Scenario("rotation begins", enrolled(steps=0), run_once, identity_and_outlets, refresh_recovers),
    Scenario("rotation ends", enrolled(steps=3), run_once, identity_and_outlets, refresh_recovers),
    # The n-th call is counted in each process: the resident above dies before its worker has come as far.
    Scenario("worker alone", enrolled(steps=3), run_worker, identity_and_outlets, refresh_recovers),
)


def sweep(scenario: Scenario, calls: str, fault: str) -> Iterator[tuple[int, int]]:
    """Disturb the first, second, ... of ``calls`` until a run has no such call left; gives n and the exit code of each."""
    for n in range(1, 1000):
        with tempfile.TemporaryDirectory(prefix="pi-chaos-") as home, scenario.prepare(Path(home)):
            folder = Path(home)
            log = folder.with_suffix(".strace")
            ours = [word for name in OURS for word in ("-P", str(folder / name))] if calls == OPEN else []
            inject = ["-e", f"trace={calls}", "-e", f"inject={calls}:{fault}:when={n}", *ours]
            command = ["strace", "-f", "-qq", "-o", str(log), *inject, *scenario.command(folder)]
            done = subprocess.run(command, capture_output=True, check=False)
            told = log.read_text()
            log.unlink()
            if not ("INJECTED" in told or "killed by SIGKILL" in told):
                assert done.returncode == 0, done.stderr
                return
            try:
                assert b"Traceback" not in done.stderr or re.search(rb"OSError|ENOSPC", done.stderr) is None
                scenario.check(folder)
                scenario.recovers(folder)
            except Exception as error:
                error.add_note(f"{scenario.name}, {calls}, {fault}, the {n}th\n{told}\n{done.stderr.decode()}")
                raise
            yield n, done.returncode


def sweep_all(names: list[str]) -> int:
    """Every scenario (or those named), call and fault; the number of disturbed runs."""
    runs = 0
    for scenario in [each for each in SCENARIOS if each.name in (names or [each.name])]:
        for calls in CALLS:
            for fault in FAULTS:
                codes = [code for _, code in sweep(scenario, calls, fault)]
                runs += len(codes)
                said = f"{len(codes):3} runs, ended with {sorted(set(codes))}"
                print(f"{scenario.name:<16}{calls:<28}{fault:<14}{said}", flush=True)
    return runs


if __name__ == "__main__":
    if not shutil.which("strace"):
        sys.exit("error: strace is not installed\nhint: sudo apt install strace")
    count = sweep_all(sys.argv[1:])
    print(f"chaos: {count} disturbed runs, nothing half done, every next run recovered")
