"""The agent beside what else a program on a Pi would use: memory, first token, a token over the socket, the command line.

Run ``python benchmarks/agent.py``. It makes a virtual environment with the pinned peers in the user's cache folder and
runs itself in it; everybody gets the same interpreter, the same packages and the same token endpoint on loopback, and
is measured in turns, so that only the ratios count. Part by part:

* memory: the resident after a refresh, beside a daemon that holds requests-oauthlib, PyJWT and cryptography itself, and
  beside a bare ``python -I -S``; and its growth over 100 refreshes;
* first token: our worker from its start to its end, beside google-auth (as it ships, with RS256, and with its ES256
  signer) and Authlib (ES256); instructions are counted where valgrind is installed;
* socket: CPU of a token over a new connection, beside oidc-agent where it is installed;
* command line: the script that the Debian package installs, beside ``curl --unix-socket`` and a console script of pip.

Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
PEERS = (
    *("google-auth==2.62.2", "authlib==1.9.8", "requests==2.34.2", "requests-oauthlib==2.0.0"),
    *("pyjwt==2.15.1", "cryptography==50.0.2"),
)
IN_VENV = "PI_AGENT_BENCH_AGENT"
SYSTEM_PYTHON = next(
    path for path in ("/usr/bin/python3", os.path.realpath(sys.executable)) if os.access(path, os.X_OK)
)
ROUNDS, REFRESHES, REQUESTS = 15, 100, 1000
CPUINFO = REPO / "fixtures" / "cpuinfo"

SERVER = """
import asyncio, json, sys
class Endpoint(asyncio.Protocol):
    def connection_made(self, transport): self.transport, self.data = transport, b""
    def data_received(self, data):
        self.data += data
        head, end, body = self.data.partition(b"\\r\\n\\r\\n")
        if not end: return
        length = next((int(row.split(b":")[1]) for row in head.split(b"\\r\\n") if row.lower().startswith(b"content-length")), 0)
        if len(body) < length: return
        self.data = b""
        text = json.dumps({"access_token": "t" * 768, "token_type": "Bearer", "expires_in": int(sys.argv[2])}).encode()
        self.transport.write(b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(text) + text)
async def main():
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", int(sys.argv[1]))
    print("ready", flush=True)
    await server.serve_forever()
asyncio.run(main())
"""

INSIDE = """
import os, selectors, socket, sys, time
import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from requests_oauthlib import OAuth2Session
from oauthlib.oauth2 import ServiceApplicationClient
os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
key = load_pem_private_key(open(sys.argv[2], "rb").read(), None)
class Client(ServiceApplicationClient):
    def prepare_request_body(self, *_, **__):
        return "grant_type=x&assertion=" + jwt.encode({"iss": "a", "exp": int(time.time()) + 60}, key, "ES256")
door = socket.socket(socket.AF_UNIX); door.bind(sys.argv[3]); door.listen()
poll = selectors.DefaultSelector(); poll.register(door, selectors.EVENT_READ)
with OAuth2Session(client=Client("a")) as session:
    token = session.fetch_token(sys.argv[1], include_client_id=True)
print("ready", flush=True)
poll.select()
"""

GOOGLE = """
import sys
from google.auth.transport.requests import Request
from google.oauth2 import service_account
from google.auth import crypt
pem = open(sys.argv[2]).read()
signer = (crypt.ES256Signer if sys.argv[3] == "ES256" else crypt.RSASigner).from_string(pem, "key-1")
credentials = service_account.Credentials(signer, "board-1", sys.argv[1], scopes=["telemetry"])
credentials.refresh(Request())
assert credentials.token
"""

AUTHLIB = """
import sys
from authlib.integrations.requests_client import AssertionSession
session = AssertionSession(
    sys.argv[1], "board-1", "board-1", sys.argv[1], grant_type=AssertionSession.JWT_BEARER_GRANT_TYPE,
    key=open(sys.argv[2]).read(), header={"alg": "ES256"},
)
session.refresh_token()
assert session.token
"""


def main(argv: list[str]) -> int:
    if argv:
        print(__doc__)
        return 2
    if os.environ.get(IN_VENV):
        with tempfile.TemporaryDirectory(prefix="pi-agent-bench-") as folder:
            return Bench(Path(folder)).run()
    try:
        python = environment() / "bin" / "python"
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"agent: MISSED: the peers could not be installed: {error}")
        return 1
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    variables = kept | {IN_VENV: "1", "PYTHONPATH": str(REPO / "src")}
    return subprocess.run([str(python), str(Path(__file__).resolve())], env=variables, check=False).returncode


def environment() -> Path:
    """A virtual environment with the peers, byte-compiled; made once."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi-agent-bench" / "agent"
    stamp = folder / "made-from"
    if stamp.exists() and stamp.read_text() == repr(PEERS):
        return folder
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--compile"]
    subprocess.run([*pip, "--disable-pip-version-check", *PEERS], check=True)
    stamp.write_text(repr(PEERS))
    return folder


class Bench:
    """All parts; ``_bars`` collects (what, ratio or figure, bar)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bars: list[tuple[str, float, float]] = []

    def run(self) -> int:
        self._prepare()
        with self._endpoint(1800) as url:
            self._memory(url)
            self._first_token(url)
            self._socket(url)
            self._command_line(url)
        with self._endpoint(2) as url:
            self._growth(url)
        missed = [what for what, figure, bar in self._bars if figure > bar]
        print()
        for what, figure, bar in self._bars:
            print(f"  {what:<58}{figure:7.2f}  bar {bar:<6g}{'MISSED' if figure > bar else 'ok'}")
        figures = ", ".join(f"{what} {figure:.2f}" for what, figure, _ in self._bars)
        print(f"agent: {f'MISSED: {len(missed)} of {len(self._bars)} bars' if missed else 'all bars met'}; {figures}")
        return int(bool(missed))

    def _prepare(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        pem = generate_private_key(65537, 2048).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self._folder / "rsa.pem").write_bytes(pem)
        for name, text in {"server": SERVER, "inside": INSIDE, "with_google": GOOGLE, "with_authlib": AUTHLIB}.items():
            (self._folder / f"{name}.py").write_text(text)
        (self._folder / "root/proc/sys/kernel/random").mkdir(parents=True)
        recording = next(
            path for path in sorted(CPUINFO.rglob("*.txt")) if "a01041" in path.read_text(errors="replace")
        )
        shutil.copy(recording, self._folder / "root/proc/cpuinfo")
        (self._folder / "root/proc/sys/kernel/random/boot_id").write_text("5f6f3f0e-6f2c-4a5e-9d5f-0d0f6f7a8b9c")

    @contextlib.contextmanager
    def _endpoint(self, life: int) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as door:
            port = door.getsockname()[1]
        command = [sys.executable, str(self._folder / "server.py"), str(port), str(life)]
        with started(command):
            yield f"http://127.0.0.1:{port}/token"

    @contextlib.contextmanager
    def _agent(self, url: str) -> Iterator[int]:
        """Our agent with a token; the value is its process id."""
        self._identity(url)
        command = [sys.executable, "-m", "pi_agent.device.cli", *self._flags(), "run"]
        command[1:3] = ["-c", "import sys; from pi_agent.device.cli import main; sys.exit(main())"]
        with subprocess.Popen(
            command, env=os.environ | {"PI_AGENT_TOKEN_SPREAD": "0"}, stderr=subprocess.DEVNULL
        ) as agent:
            try:
                self._wait_for_token()
                yield agent.pid
            finally:
                agent.send_signal(signal.SIGTERM)

    def _identity(self, url: str) -> None:
        from pi_agent.device import identity
        from pi_agent.device.keys import file

        state = self._folder / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        key = file.load_or_create(state)
        serial = re.search(r"Serial\s*: (\w+)", (self._folder / "root/proc/cpuinfo").read_text())
        issuer = url.removesuffix("/token")
        identity.store(
            state, identity.Identity(issuer, "board-1", url, key.public_key().kid, serial[1] if serial else "")
        )
        (self._folder / "config.toml").write_text(f'[server]\nissuer = "{issuer}"\nloopback_http = true\n')

    def _flags(self) -> list[str]:
        names = ("state", "root", "runtime")
        return [f"--config={self._folder / 'config.toml'}", *(f"--{name}={self._folder / name}" for name in names)]

    def _wait_for_token(self) -> None:
        from pi_agent import client
        from pi_agent.errors import PiAgentError

        deadline = time.monotonic() + 20
        while True:
            try:
                client.token(runtime=str(self._folder / "runtime"), min_valid=1)
                return
            except PiAgentError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    # The parts

    def _memory(self, url: str) -> None:
        with started([sys.executable, "-I", "-S", "-c", "print('ready', flush=True); input()"]) as bare:
            floor = resident(bare)
        inside = [str(self._folder / "inside.py"), url, str(self._folder / "ec.pem"), str(self._folder / "inside.sock")]
        self._identity(url)
        shutil.copy(self._folder / "state/key.pem", self._folder / "ec.pem")
        with started([sys.executable, *inside]) as daemon:
            whole = resident(daemon)
        with self._agent(url) as agent:
            ours = resident(agent)
        print(f"memory: resident {ours} kB, everything in one process {whole} kB, bare interpreter {floor} kB")
        self._bars.append(("memory: resident / everything in one process", ours / whole, 0.35))
        self._bars.append(("memory: resident / bare python -I -S", ours / floor, 1.35))

    def _growth(self, url: str) -> None:
        from pi_agent import client

        with self._agent(url) as agent:
            first, runtime = 0, str(self._folder / "runtime")
            while (count := int(client.ask("/v1/status", runtime=runtime)["refreshes"])) <= REFRESHES:
                first = first or (resident(agent) if count >= 5 else 0)
                time.sleep(0.3)
            last = resident(agent)
        print(f"growth: {first} kB after 5 refreshes, {last} kB after {count}")
        self._bars.append(("growth over 100 refreshes, MB", max(0, last - first) / 1024, 0.2))

    def _first_token(self, url: str) -> None:
        self._identity(url)
        frame = self._frame()
        worker = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path[1:]!r}; "]
        worker[-1] += "from pi_agent.device.worker import main; main()"
        rsa, ec = str(self._folder / "rsa.pem"), str(self._folder / "ec.pem")
        runs = {
            "worker": (worker, frame),
            "google-auth": ([sys.executable, str(self._folder / "with_google.py"), url, rsa, "RS256"], b""),
            "google-auth ES256": ([sys.executable, str(self._folder / "with_google.py"), url, ec, "ES256"], b""),
            "authlib ES256": ([sys.executable, "-W", "ignore", str(self._folder / "with_authlib.py"), url, ec], b""),
        }
        wall = in_turns({name: partial(wall_of, *each) for name, each in runs.items()}, ROUNDS)
        print(
            "first token, ms: "
            + ", ".join(f"{name} {statistics.median(each) * 1000:.0f}" for name, each in wall.items())
        )
        self._bars.append(("first token: worker / google-auth, wall", ratio(wall, "worker", "google-auth"), 0.85))
        self._bars.append(
            ("first token: worker / google-auth ES256, wall", ratio(wall, "worker", "google-auth ES256"), 1.0)
        )
        self._bars.append(("first token: worker / Authlib ES256, wall", ratio(wall, "worker", "authlib ES256"), 1.0))
        self._instructions(runs)

    def _instructions(self, runs: dict[str, tuple[list[str], bytes]]) -> None:
        if not shutil.which("valgrind"):
            print("instructions: valgrind is not installed, not counted")
            return
        counted = {name: instructions(*run) for name, run in runs.items() if name != "authlib ES256"}
        print("instructions, M: " + ", ".join(f"{name} {count / 1e6:.0f}" for name, count in counted.items()))
        mine = counted["worker"]
        self._bars.append(("first token: worker / google-auth, instructions", mine / counted["google-auth"], 0.65))
        self._bars.append(
            ("first token: worker / google-auth ES256, instructions", mine / counted["google-auth ES256"], 1.0)
        )

    def _frame(self) -> bytes:
        from pi_agent.device import frames, preparation

        flags = {name: str(self._folder / name) for name in ("state", "root", "runtime")}
        fields = preparation.prepare(flags | {"config": str(self._folder / "config.toml")})
        return frames.pack(fields | {"action": "token", "audience": "", "anchor": "", "refresh_token": ""})

    def _socket(self, url: str) -> None:
        with self._agent(url) as agent, oidc_agent(self._folder / "oidc-agent") as peer:
            runtime = str(self._folder / "runtime/agent.sock")
            ask = b"GET /v1/token HTTP/1.1\r\nHost: pi\r\nConnection: close\r\n\r\n"
            spent: dict[str, list[float]] = {"ours": [], "oidc-agent": []}
            for _ in range(15):
                spent["ours"].append(cpu_of([agent], partial(connections, runtime, ask)))
                if peer:
                    pids, path, request = peer
                    spent["oidc-agent"].append(cpu_of(pids, partial(connections, path, request)))
                time.sleep(REQUESTS / 1000)  # within the agent's own limit of requests a second
        each = {name: statistics.median(values) / REQUESTS * 1e6 for name, values in spent.items() if values}
        print("socket, us of CPU a connection: " + ", ".join(f"{name} {value:.0f}" for name, value in each.items()))
        if "oidc-agent" in each:
            self._bars.append(("socket: resident / oidc-agent, CPU", ratio(spent, "ours", "oidc-agent"), 0.7))
        else:
            print("socket: oidc-agent is not set up here, not compared")

    def _command_line(self, url: str) -> None:
        script = self._folder / "pi-agent"
        text = (REPO / "packaging/pi-agent").read_text()
        script.write_text(text.replace("/usr/bin/python3", SYSTEM_PYTHON))
        script.chmod(0o755)
        console = self._folder / "console"
        console.write_text(
            f"#!{sys.executable}\nimport re, sys\nfrom pi_agent.device.cli import main\nsys.exit(main())\n"
        )
        console.chmod(0o755)
        path = self._folder / "runtime"
        commands = {
            "pi-agent": ([str(script), "token"], b""),
            "curl": (
                [str(shutil.which("curl")), "-s", "--unix-socket", f"{path}/agent.sock", "http://pi/v1/token"],
                b"",
            ),
            "console script": ([str(console), f"--runtime={path}", "token"], b""),
        }
        variables = os.environ | {"PI_AGENT_RUNTIME": str(path)}
        with self._agent(url):
            wall = in_turns({name: partial(wall_of, *each, variables) for name, each in commands.items()}, 41)
        print(
            "command line, ms: "
            + ", ".join(f"{name} {statistics.median(each) * 1000:.1f}" for name, each in wall.items())
        )
        self._bars.append(("command line: pi-agent token / curl, wall", ratio(wall, "pi-agent", "curl"), 1.15))
        self._bars.append(
            ("command line: pi-agent token / console script, wall", ratio(wall, "pi-agent", "console script"), 0.3)
        )


# Measuring


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[int]:
    """A process that has said "ready"; the value is its id."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", command
            yield process.pid
        finally:
            process.kill()


def resident(pid: int) -> int:
    """Resident memory in kB."""
    found = re.search(r"^Rss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1])


def wall_of(command: list[str], said: bytes, variables: dict[str, str] | None = None) -> float:
    """Seconds from a command's start to its end."""
    reader, writer = os.pipe()
    os.write(writer, said)
    os.close(writer)
    silent = os.open(os.devnull, os.O_WRONLY)
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_DUP2, silent, 1), (os.POSIX_SPAWN_DUP2, silent, 2)]
    begun = time.perf_counter()
    pid = os.posix_spawn(command[0], command, variables or dict(os.environ), file_actions=actions)
    _, status = os.waitpid(pid, 0)
    wall = time.perf_counter() - begun
    os.close(reader)
    os.close(silent)
    assert status == 0, command
    return wall


def instructions(command: list[str], said: bytes) -> int:
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    done = subprocess.run(
        [*tool, *command], input=said, capture_output=True, check=True, env=os.environ | {"PYTHONHASHSEED": "0"}
    )
    found = re.search(rb"Collected : (\d+)", done.stderr)
    assert found
    return int(found[1])


def in_turns(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """A B C, A B C, ...: what disturbs one disturbs all. Two rounds are for warming up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):
        for name, run in runs.items():
            seconds = run()
            if number >= 2:
                taken[name].append(seconds)
    return taken


def ratio(taken: dict[str, list[float]], ours: str, peer: str) -> float:
    """The median of the ratios round by round."""
    return statistics.median(mine / other for mine, other in zip(taken[ours], taken[peer], strict=True))


def cpu_of(pids: list[int], work: Callable[[], None]) -> float:
    """The seconds of CPU that the processes spend while ``work`` runs (schedstat: nanoseconds)."""

    def spent() -> int:
        return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)

    before = spent()
    work()
    return (spent() - before) / 1e9


def connections(path: str, request: bytes) -> None:
    for _ in range(REQUESTS):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(path)
            channel.sendall(request)
            received = b""
            while chunk := channel.recv(65536):
                received += chunk
            assert b"access_token" in received, received


@contextlib.contextmanager
def oidc_agent(home: Path) -> Iterator[tuple[list[int], str, bytes] | None]:
    """oidc-agent with an account at a mock provider: its processes, its socket, a request for a token; or None."""
    if not shutil.which("oidc-agent"):
        yield None
        return
    import _oidc_agent  # it needs cryptography, which is in the environment with the peers

    with _oidc_agent.running(home) as peer:
        yield peer


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
