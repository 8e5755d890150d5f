"""The token endpoint beside node oidc-provider 9 and django-oauth-toolkit, with the same work, on the same core.

Run ``python benchmarks/authority.py`` (``--quick`` for a shorter one, ``--only sqlite,raw`` for a part). Every contender
serves 10,000 devices: it verifies an ES256 assertion, refuses a used one, notes the time at the device, and signs an
ES256 JWT. Ours waits for the disk in every transaction (synchronous=FULL); the peers do not (NORMAL), which favours
them. The server is held on core 0, the requests come from core 1, and what counts is CPU time for each request, which
other work on the machine disturbs least; a database server of its own is not counted. The raw rate is one verification
and one signature by ``cryptography`` with keys that are loaded, on the same core. All of them run at once and are asked
in turns, and ratios are those of one turn, since a shared machine changes its speed from one minute to the next.

The peers are installed into the user's cache folder: npm packages (with a node of their own) and a virtual environment.
Ends with 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

REPO = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).resolve().parent / "peers"
sys.path[:0] = [str(REPO / "src"), str(REPO / "tests")]

from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402

from pi_agent import assertion, jws, oauth  # noqa: E402
from pi_agent.jwk import public_key  # noqa: E402

DEVICES = 10_000
CONNECTIONS = 64
NPM = ("oidc-provider@9.13.3", "node@22.23.3")
PIP = ("django-oauth-toolkit==3.4.1", "django==5.2.19", "gunicorn==27.0.1", "pyjwt==2.15.1", "cryptography==50.0.2")
BOARD = {"revision": "a01041", "model": "2B", "memory_mib": 1024, "soc": "BCM2836", "pcb_revision": "1.1"}
OURS = {"PYTHONPATH": str(REPO / "src")}
SERVE = "import sys; from pi_agent.fleet.cli import main; sys.exit(main())"
BARS = {"oidc": 3.0, "raw": 0.40, "p99_ms": 10.0, "memory_mb": 100.0, "honest": 0.80}


@dataclass(frozen=True)
class Turn:
    """``cpu_us`` is CPU time of the server for one token, ``rate`` tokens a second on one core, ``half`` at half of that."""

    cpu_us: float
    rate: float
    p50_ms: float
    half_p99_ms: float
    memory_mb: float


@dataclass(frozen=True)
class Contender:
    """A server that runs, and how it is asked; ``home`` is a folder for it."""

    name: str
    pid: int
    port: int
    path: str
    home: Path
    devices: list[Device]
    form: Callable[[str], str]
    typ: str

    def write_bodies(self, name: str, number: int) -> Path:
        path, issuer = self.home / name, f"http://127.0.0.1:{self.port}"
        write_bodies(path, self.devices, number, issuer, self.form, typ=self.typ)
        return path


@dataclass(frozen=True)
class Device:
    client_id: str
    key: ec.EllipticCurvePrivateKey
    kid: str
    jwk: dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, and less exact")
    parser.add_argument("--turns", type=int, default=5, help="how often each of them has its turn")
    parser.add_argument("--only", default="raw,sqlite,postgres,oidc,dot,flood", help="which parts")
    arguments = parser.parse_args()
    parts, seconds = arguments.only.split(","), 3.0 if arguments.quick else 8.0
    print(f"Python {sys.version}")
    devices = make_devices()
    with ExitStack() as stack:
        contenders: dict[str, Contender] = {}
        for name in [name for name in CONTENDERS if name in parts]:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp")))
            try:
                contender = stack.enter_context(CONTENDERS[name](home, devices))
                warm(contender)
                contenders[name] = contender
            except (MissingError, subprocess.CalledProcessError) as error:
                print(f"{name}: left out: {error}")
        turns = [take_turns(contenders, seconds, raw="raw" in parts) for _ in range(arguments.turns)]
    rate = statistics.median(turn["sqlite"].rate for _, turn in turns) if "sqlite" in contenders else 0.0
    honest = flood(devices, rate, seconds) if "flood" in parts and rate else None
    return judge(turns, honest)


class MissingError(Exception):
    """A contender cannot run here."""


# Devices and what they send.


def make_devices() -> list[Device]:
    found = []
    for number in range(DEVICES):
        key = ec.generate_private_key(ec.SECP256R1())
        public = public_key(key.public_key())
        found.append(Device(f"pi-{number:016x}", key, public.kid, public.jwk))
    return found


def write_bodies(
    path: Path,
    devices: list[Device],
    number: int,
    issuer: str,
    form: Callable[[str], str],
    *,
    typ: str,
    forged: bool = False,
) -> None:
    """Request bodies with assertions of the devices in turn, in another order each time; forged ones have another's signature."""
    now, other = int(time.time()), ec.generate_private_key(ec.SECP256R1())
    with path.open("w") as file:
        for index in range(number):
            device = devices[index * 7919 % len(devices)]
            claims = assertion.claims(
                issuer=device.client_id,
                audience=issuer,
                now=now,
                jti=secrets.token_urlsafe(16),
                lifetime=300,
                board=BOARD | {"serial": device.client_id[3:]},
            )
            sign = jws.signer(other if forged else device.key, "ES256")
            signed = assertion.sign(claims, kind=assertion.GRANT, alg="ES256", kid=device.kid, sign=sign, typ=typ)
            file.write(form(signed) + "\n")


def client_form(signed: str) -> str:
    fields = {
        "grant_type": "client_credentials",
        "client_assertion_type": oauth.CLIENT_ASSERTION_TYPE,
        "client_assertion": signed,
    }
    return urlencode(fields | {"scope": "device"})


# The contenders.


@contextmanager
def ours(home: Path, devices: list[Device], database: str = "", name: str = "pi-fleet, SQLite") -> Iterator[Contender]:
    port, data = free_port(), home / "data"
    options = ["--database", database] if database else []
    fill(home, data, devices, database)
    serve = [sys.executable, "-c", SERVE, "--data", str(data), "serve"]
    command = [*serve, "--bind", f"127.0.0.1:{port}", "--no-rate-limit", *options]
    with running(command, home, "listening", env=OURS) as pid:
        yield Contender(name, pid, port, "/oauth/token", home, devices, oauth.grant_form, "pi-device-grant+jwt")


def fill(home: Path, data: Path, devices: list[Device], database: str) -> None:
    """The registry with these devices in it, by a process of its own: Django can be set up once in one."""
    rows = home / "devices.json"
    rows.write_text(json.dumps([[device.client_id, device.kid, device.jwk] for device in devices]))
    command = [sys.executable, str(PEERS / "fill.py"), str(data), str(rows), database]
    subprocess.run(command, check=True, env=os.environ | OURS)


@contextmanager
def on_postgres(home: Path, devices: list[Device]) -> Iterator[Contender]:
    from issuing.cluster import Cluster, missing

    if why := missing():
        raise MissingError(why)
    cluster = Cluster()
    try:
        with ours(home, devices, cluster.database(), "pi-fleet, PostgreSQL") as contender:
            yield contender
    finally:
        cluster.close()


@contextmanager
def oidc(home: Path, devices: list[Device]) -> Iterator[Contender]:
    folder, port = npm_folder(), free_port()
    clients = ((device.client_id, json.dumps(oidc_client(device))) for device in devices)
    fill_clients(home / "oidc.sqlite3", clients)
    node = folder / "node_modules" / "node" / "bin" / "node"
    command = [str(node), "--no-warnings", str(PEERS / "oidc.mjs"), str(port), str(home / "oidc.sqlite3")]
    with running(command, home, "listening", cwd=folder, env={"NODE_ENV": "production"}) as pid:
        yield Contender("oidc-provider 9", pid, port, "/token", home, devices, client_form, "JWT")


def oidc_client(device: Device) -> dict[str, Any]:
    return {
        "client_id": device.client_id,
        "grant_types": ["client_credentials"],
        "redirect_uris": [],
        "response_types": [],
        "token_endpoint_auth_method": "private_key_jwt",
        "token_endpoint_auth_signing_alg": "ES256",
        "id_token_signed_response_alg": "ES256",
        "jwks": {"keys": [device.jwk | {"kid": device.kid}]},
        "scope": "device",
    }


@contextmanager
def dot(home: Path, devices: list[Device]) -> Iterator[Contender]:
    python, port = dot_python(), free_port()
    fill_clients(home / "dot.sqlite3", ((device.client_id, json.dumps(oidc_client(device))) for device in devices))
    env = {"DOT_PORT": str(port), "DOT_DATABASE": str(home / "dot.sqlite3"), "PYTHONPATH": str(PEERS)}
    subprocess.run([str(python), str(PEERS / "dot.py")], check=True, env=os.environ | env)
    command = [
        str(python),
        "-m",
        "gunicorn",
        "--workers=1",
        "--threads=4",
        "--keep-alive=75",
        f"--bind=127.0.0.1:{port}",
        "dot:wsgi",
    ]
    with running(command, home, "Booting worker", env=env) as pid:
        yield Contender("django-oauth-toolkit", pid, port, "/oauth/token", home, devices, oauth.grant_form, "JWT")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


CONTENDERS: dict[str, Callable[[Path, list[Device]], AbstractContextManager[Contender]]] = {
    "sqlite": ours,
    "postgres": on_postgres,
    "oidc": oidc,
    "dot": dot,
}


def fill_clients(path: Path, clients: Iterator[tuple[str, str]]) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE client (id TEXT PRIMARY KEY, payload TEXT, last_seen INTEGER) WITHOUT ROWID")
        database.executemany("INSERT INTO client (id, payload) VALUES (?, ?)", clients)
    database.close()


def npm_folder() -> Path:
    if shutil.which("npm") is None:
        raise MissingError("npm is not installed")
    folder = cache() / f"bench-authority-npm-{'-'.join(NPM).replace('@', '-')}"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(NPM)} into {folder}", file=sys.stderr)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}')
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM], cwd=folder, check=True)
        (folder / "complete").touch()
    return folder


def dot_python() -> Path:
    folder = cache() / f"bench-authority-dot-{sys.version_info[0]}.{sys.version_info[1]}-{PIP[0].partition('==')[2]}"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(PIP)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run(
            [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *PIP],
            check=True,
            cwd="/",
        )
        (folder / "complete").touch()
    return folder / "bin" / "python"


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi-agent"


# Measuring.


@contextmanager
def running(
    command: list[str], home: Path, sign: str, *, cwd: Path | None = None, env: dict[str, str]
) -> Iterator[int]:
    """A server on core 0; its process id, once it has said ``sign``."""
    with (home / "log").open("wb") as log:
        pin = ["taskset", "-c", "0"]
        server = subprocess.Popen(
            [*pin, *command], stdout=log, stderr=log, cwd=cwd, env=os.environ | env, start_new_session=True
        )
    try:
        end = time.monotonic() + 60
        while sign not in (home / "log").read_text(errors="replace"):
            if server.poll() is not None or time.monotonic() > end:
                raise MissingError(f"it did not start: {(home / 'log').read_text(errors='replace')[-500:]}")
            time.sleep(0.1)
        time.sleep(0.5)
        yield server.pid
    finally:
        with suppress(ProcessLookupError):  # it did not start
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def warm(contender: Contender) -> None:
    """Every device once."""
    load(contender.port, contender.path, contender.write_bodies("warm", DEVICES), CONNECTIONS, 60)


def take_turns(contenders: dict[str, Contender], seconds: float, *, raw: bool) -> tuple[float, dict[str, Turn]]:
    """Each of them once, the others at rest meanwhile: so a machine that changes its speed is the same for all.

    One that fails is taken out of ``contenders``.
    """
    bare, found = raw_us() if raw else 0.0, {}
    for name in list(contenders):
        try:
            found[name] = measure(contenders[name], seconds)
        except (MissingError, subprocess.CalledProcessError) as error:
            print(f"{name}: left out: {error}")
            del contenders[name]
    return bare, found


def measure(contender: Contender, seconds: float) -> Turn:
    """As fast as it goes, then at half of that."""
    server, port, path = contender.pid, contender.port, contender.path
    bodies = contender.write_bodies("full", int(seconds * 4000))
    before = cpu_seconds(server)
    full = load(port, path, bodies, CONNECTIONS, seconds)["all"]
    spent = cpu_seconds(server) - before
    if full["statuses"].keys() != {"200"}:
        raise MissingError(f"{contender.name} answered {full['statuses']}: {full['sample']}")
    cpu_us = spent / full["answers"] * 1e6
    rate = min(full["rate"], 1e6 / cpu_us)
    half = load(port, path, contender.write_bodies("half", int(rate / 2 * seconds) + 1), CONNECTIONS, seconds, rate / 2)
    turn = Turn(cpu_us, full["rate"], full["p50_ms"], half["all"]["p99_ms"], memory_mb(server))
    show(contender.name, turn)
    return turn


def load(port: int, path: str, bodies: Path, connections: int, seconds: float, *more: object) -> dict[str, Any]:
    command = [
        "taskset",
        "-c",
        "1",
        sys.executable,
        str(PEERS / "load.py"),
        str(port),
        path,
        str(bodies),
        str(connections),
        str(seconds),
    ]
    done = subprocess.run([*command, *map(str, more)], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def family(pid: int) -> list[int]:
    """A process and those it started."""
    children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


def cpu_seconds(pid: int) -> float:
    total = 0
    for each in family(pid):
        fields = (Path("/proc") / str(each) / "stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    """The largest resident set of the processes that serve."""
    found = 0.0
    for each in family(pid):
        text = (Path("/proc") / str(each) / "status").read_text()
        found = max(found, float(text.partition("VmHWM:")[2].split()[0]) / 1024)
    return found


RAW = """
import time
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
key, alg, data = ec.generate_private_key(ec.SECP256R1()), ec.ECDSA(hashes.SHA256()), b"x" * 600
public, signature = key.public_key(), key.sign(data, alg)
best = 1.0
for _ in range(5):
    start = time.process_time()
    for _ in range(2000):
        public.verify(signature, data, alg)
        key.sign(data, alg)
    best = min(best, (time.process_time() - start) / 2000)
print(best * 1e6)
"""


def raw_us() -> float:
    """CPU time of one verification and one signature, in microseconds."""
    done = subprocess.run(["taskset", "-c", "0", sys.executable, "-c", RAW], check=True, capture_output=True, text=True)
    return float(done.stdout)


def flood(devices: list[Device], rate: float, seconds: float) -> float:
    """Forged assertions at ten times what the server can do, from many addresses, and honest devices at a quarter: how many are served."""
    port = free_port()
    issuer = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as name:
        home = Path(name)
        fill(home, home / "data", devices, "")
        serve = [sys.executable, "-c", SERVE, "--data", str(home / "data"), "serve"]
        limits = ["--request-rate", "1000000", "--request-burst", "1000000"]
        with running([*serve, "--bind", f"127.0.0.1:{port}", *limits], home, "listening", env=OURS):
            write_bodies(home / "one", devices, 64, issuer, oauth.grant_form, typ="JWT")
            load(port, "/oauth/token", home / "one", CONNECTIONS, 5)
            write_bodies(home / "forged", devices, 30_000, issuer, oauth.grant_form, typ="JWT", forged=True)
            write_bodies(home / "honest", devices, int(rate / 4 * seconds), issuer, oauth.grant_form, typ="JWT")
            found = load(port, "/oauth/token", home / "forged", 256, seconds, rate * 10, home / "honest", rate / 4)
    served, sent = found["honest"]["statuses"].get("200", 0), found["honest"]["sent"]
    print(
        f"flood: {found['flood']['rate']:,.0f} forged a second went in ({found['flood']['statuses']}); "
        f"of {sent} honest requests {served} were served, p99 {found['honest']['p99_ms']:.0f} ms"
    )
    return float(served / sent)


# The verdict.


def show(name: str, turn: Turn) -> None:
    print(
        f"{name:<22} {turn.cpu_us:7.0f} us CPU  {1e6 / turn.cpu_us:6.0f} a second and core  {turn.rate:6.0f} seen  "
        f"p50 {turn.p50_ms:6.1f} ms  at half load p99 {turn.half_p99_ms:6.1f} ms  {turn.memory_mb:5.0f} MB",
        flush=True,
    )


def judge(turns: Sequence[tuple[float, dict[str, Turn]]], honest: float | None) -> int:
    """Each bar, held or missed, by the median of what was measured in one turn; 1 when one was missed."""
    missed = 0
    there = turns[-1][1]  # those that lasted
    for key, name in (("sqlite", "pi-fleet, SQLite"), ("postgres", "pi-fleet, PostgreSQL")):
        if key not in there:
            continue
        mine = [turn[key] for _, turn in turns]
        if "oidc" in there:
            beside = [turn["oidc"].cpu_us / turn[key].cpu_us for _, turn in turns]
            missed += bar(f"{name} beside oidc-provider", beside, BARS["oidc"], "x")
        if turns[0][0]:
            missed += bar(f"{name} beside raw", [raw / turn[key].cpu_us for raw, turn in turns], BARS["raw"], "of raw")
        missed += bar(
            f"{name}, p99 at half load", [turn.half_p99_ms for turn in mine], BARS["p99_ms"], "ms", at_most=True
        )
        missed += bar(f"{name}, memory", [mine[-1].memory_mb], BARS["memory_mb"], "MB", at_most=True)
    if honest is not None:
        missed += bar("honest devices in a flood", [honest], BARS["honest"], "served")
    print(f"authority: {'all bars held' if not missed else f'{missed} missed'}")
    return 1 if missed else 0


def bar(what: str, found: Sequence[float], wanted: float, unit: str, *, at_most: bool = False) -> int:
    """0 when the median of what was found holds the bar, else 1."""
    median = statistics.median(found)
    held = median <= wanted if at_most else median >= wanted
    spread = f", {min(found):.2f} to {max(found):.2f} in {len(found)} turns" if len(found) > 1 else ""
    print(
        f"{'held  ' if held else 'MISSED'} {what}: {median:.2f} {unit} "
        f"(bar: {'at most' if at_most else 'at least'} {wanted:g}{spread})"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
