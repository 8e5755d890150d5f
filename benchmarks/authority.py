"""The token endpoint beside node oidc-provider 9 and django-oauth-toolkit, with the same work, on the same core.

Run ``python benchmarks/authority.py`` (``--quick`` for a shorter one, ``--only sqlite,raw`` for a part). Every contender
serves 10,000 devices: it verifies an ES256 assertion, refuses a used one, notes the time at the device, and signs an
ES256 JWT. Ours waits for the disk in every transaction (synchronous=FULL); the peers do not (NORMAL), which favours
them. The server is held on core 0, the requests come from core 1, and what counts is CPU time for each request, which
other work on the machine disturbs least; a database server of its own is not counted. The raw rate is one verification
and one signature by ``cryptography`` with keys that are loaded, on the same core in the same run.

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
import sqlite3
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@dataclass
class Result:
    """``cpu_us`` is CPU time of the server for one token, ``rate`` tokens a second on one core, ``half`` at half of that."""

    name: str
    cpu_us: float
    rate: float
    p50_ms: float
    half_p99_ms: float
    memory_mb: float

    @property
    def core(self) -> float:
        return 1e6 / self.cpu_us


@dataclass(frozen=True)
class Device:
    client_id: str
    key: ec.EllipticCurvePrivateKey
    kid: str
    jwk: dict[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, and less exact")
    parser.add_argument("--only", default="raw,sqlite,postgres,oidc,dot,flood", help="which parts")
    arguments = parser.parse_args()
    parts, seconds = arguments.only.split(","), 3.0 if arguments.quick else 8.0
    devices = make_devices()
    results: dict[str, Result] = {}
    raw = raw_us() if "raw" in parts else 0.0
    for name, contender in CONTENDERS.items():
        if name not in parts:
            continue
        try:
            with tempfile.TemporaryDirectory(prefix="bench-", dir="/var/tmp") as home:
                results[name] = contender(Path(home), devices, seconds)
                show(results[name])
        except (MissingError, subprocess.CalledProcessError) as error:
            print(f"{name}: left out: {error}")
    honest = flood(devices, results["sqlite"].rate, seconds) if "flood" in parts and "sqlite" in results else None
    return judge(results, raw, honest)


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


def ours(
    home: Path, devices: list[Device], seconds: float, database: str = "", name: str = "pi-fleet, SQLite"
) -> Result:
    port = 18_100 + secrets.randbelow(800)
    issuer, data = f"http://127.0.0.1:{port}", home / "data"
    options = ["--database", database] if database else []
    fill(home, data, devices, database)
    serve = [sys.executable, "-c", SERVE, "--data", str(data), "serve"]
    command = [*serve, "--bind", f"127.0.0.1:{port}", "--no-rate-limit", *options]
    with running(command, home, "listening", env=OURS) as server:
        return measure(
            name, server, port, "/oauth/token", home, devices, issuer, oauth.grant_form, "pi-device-grant+jwt", seconds
        )


def fill(home: Path, data: Path, devices: list[Device], database: str) -> None:
    """The registry with these devices in it, by a process of its own: Django can be set up once in one."""
    rows = home / "devices.json"
    rows.write_text(json.dumps([[device.client_id, device.kid, device.jwk] for device in devices]))
    command = [sys.executable, str(PEERS / "fill.py"), str(data), str(rows), database]
    subprocess.run(command, check=True, env=os.environ | OURS)


def on_postgres(home: Path, devices: list[Device], seconds: float) -> Result:
    from issuing.cluster import Cluster, missing

    if why := missing():
        raise MissingError(why)
    cluster = Cluster()
    try:
        return ours(home, devices, seconds, cluster.database(), "pi-fleet, PostgreSQL")
    finally:
        cluster.close()


def oidc(home: Path, devices: list[Device], seconds: float) -> Result:
    folder = npm_folder()
    port = 18_100 + secrets.randbelow(800)
    clients = ((device.client_id, json.dumps(oidc_client(device))) for device in devices)
    fill_clients(home / "oidc.sqlite3", clients)
    node = folder / "node_modules" / "node" / "bin" / "node"
    command = [str(node), "--no-warnings", str(PEERS / "oidc.mjs"), str(port), str(home / "oidc.sqlite3")]
    with running(command, home, "listening", cwd=folder, env={"NODE_ENV": "production"}) as server:
        issuer = f"http://127.0.0.1:{port}"
        return measure("oidc-provider 9", server, port, "/token", home, devices, issuer, client_form, "JWT", seconds)


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


def dot(home: Path, devices: list[Device], seconds: float) -> Result:
    python = dot_python()
    port = 18_100 + secrets.randbelow(800)
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
    with running(command, home, "Booting worker", env=env) as server:
        issuer = f"http://127.0.0.1:{port}"
        return measure(
            "django-oauth-toolkit",
            server,
            port,
            "/oauth/token",
            home,
            devices,
            issuer,
            oauth.grant_form,
            "JWT",
            seconds,
        )


CONTENDERS: dict[str, Callable[[Path, list[Device], float], Result]] = {
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
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def measure(
    name: str,
    server: int,
    port: int,
    path: str,
    home: Path,
    devices: list[Device],
    issuer: str,
    form: Callable[[str], str],
    typ: str,
    seconds: float,
) -> Result:
    """Every device once, to be warm; then as fast as it goes; then at half of that."""
    most = int(seconds * 4000)
    write_bodies(home / "warm", devices, len(devices), issuer, form, typ=typ)
    load(port, path, home / "warm", CONNECTIONS, 60)
    write_bodies(home / "full", devices, most, issuer, form, typ=typ)
    before = cpu_seconds(server)
    full = load(port, path, home / "full", CONNECTIONS, seconds)["all"]
    spent = cpu_seconds(server) - before
    if full["statuses"].keys() != {"200"}:
        raise MissingError(f"{name} answered {full['statuses']}: {full['sample']}")
    rate = min(full["rate"], 1e6 / (spent / full["answers"] * 1e6))
    write_bodies(home / "half", devices, int(rate / 2 * seconds) + 1, issuer, form, typ=typ)
    half = load(port, path, home / "half", CONNECTIONS, seconds, rate / 2)["all"]
    return Result(name, spent / full["answers"] * 1e6, full["rate"], full["p50_ms"], half["p99_ms"], memory_mb(server))


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
    port = 18_100 + secrets.randbelow(800)
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


def show(result: Result) -> None:
    print(
        f"{result.name:<22} {result.cpu_us:7.0f} us CPU  {result.core:6.0f} a second and core  {result.rate:6.0f} seen  "
        f"p50 {result.p50_ms:6.1f} ms  at half load p99 {result.half_p99_ms:6.1f} ms  {result.memory_mb:5.0f} MB",
        flush=True,
    )


def judge(results: dict[str, Result], raw: float, honest: float | None) -> int:
    """Each bar, held or missed; 1 when one was missed."""
    missed = 0
    if raw:
        print(f"{'raw verify and sign':<22} {raw:7.0f} us CPU  {1e6 / raw:6.0f} a second and core")
    for name in ("sqlite", "postgres"):
        if name not in results:
            continue
        mine = results[name]
        if "oidc" in results:
            missed += bar(f"{mine.name} beside oidc-provider", results["oidc"].cpu_us / mine.cpu_us, BARS["oidc"], "x")
        if raw:
            missed += bar(f"{mine.name} beside raw", raw / mine.cpu_us, BARS["raw"], "of raw")
        missed += bar(f"{mine.name}, p99 at half load", mine.half_p99_ms, BARS["p99_ms"], "ms", at_most=True)
        missed += bar(f"{mine.name}, memory", mine.memory_mb, BARS["memory_mb"], "MB", at_most=True)
    if honest is not None:
        missed += bar("honest devices in a flood", honest, BARS["honest"], "served")
    print(f"authority: {'all bars held' if not missed else f'{missed} missed'}")
    return 1 if missed else 0


def bar(what: str, found: float, wanted: float, unit: str, *, at_most: bool = False) -> int:
    held = found <= wanted if at_most else found >= wanted
    print(
        f"{'held  ' if held else 'MISSED'} {what}: {found:.2f} {unit} (bar: {'at most' if at_most else 'at least'} {wanted:g})"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
