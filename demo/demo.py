"""A fleet on one machine: a real server, real agents on boards replayed from ``fixtures/cpuinfo``, real tokens.

``./dev demo`` stays up until Ctrl-C, ``./dev demo --once`` ends by itself. Everything lives in one temporary folder and
is gone afterwards; every process is ended by its id. What is printed is what happened: a part that fails ends the demo
with exit code 1 and says which part.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pi_agent import assertion, client, jws, oauth
from pi_agent.device import identity
from pi_agent.device.keys import file
from pi_agent.device.transport import Transport
from pi_agent.device.worker import boot_claim
from pi_agent.errors import OAuthError, PiAgentError, TransportError
from resource_server import ResourceServer

PROJECT = Path(__file__).resolve().parent.parent
FIXTURES = PROJECT / "fixtures" / "cpuinfo"
BIN = Path(sys.executable).parent
BOARDS = 24
REFUSED = 2
PATIENCE = 120.0
QUESTION = "model:2b memory:1gb auth:1d"
NAMES = """
kitchen porch attic cellar garage garden greenhouse weather-station doorbell aquarium workshop printer library hall
studio balcony shed beehive pond lighthouse observatory mill boathouse barn
""".split()


Found = TypeVar("Found")


class PartError(Exception):
    """A part of the demo did not do what it should."""


@dataclass(frozen=True)
class SimulatedBoard:
    """One board: its recording, and the folders its agent lives in."""

    name: str
    type: str
    home: Path
    root: Path

    def agent(self, *command: str) -> list[str]:
        options = [
            "--config",
            self.home / "config.toml",
            "--state",
            self.home / "state",
            "--runtime",
            self.home / "runtime",
        ]
        return [str(BIN / "pi-agent"), *map(str, options), "--root", str(self.root), *command]

    def ask(self, target: str) -> dict[str, object]:
        return client.ask(target, runtime=str(self.home / "runtime"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="./dev demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--once", action="store_true", help="do it all, say what was done, and end")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also when started in the background, where it is ignored
    part = "start"
    try:
        with ExitStack() as stack:
            for part, step in parts(stack, once=args.once):  # noqa: B007 - the errors below name it
                step()
    except KeyboardInterrupt:
        say("\nended; nothing is left behind")
        return 0 if part == "wait" else 130
    except (PartError, PiAgentError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"error: the part {part!r} of the demo failed: {error}\n")
        return 1
    return 0


def parts(stack: ExitStack, *, once: bool) -> Iterator[tuple[str, Callable[[], object]]]:
    """The demo, part by part: its name, and what it does."""
    home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pi-agent-demo-")))
    fleet = Fleet(home / "fleet")
    boards: list[SimulatedBoard] = []
    yield "fleet server", lambda: stack.enter_context(fleet.running())
    yield "boards", lambda: boards.extend([*own_board(home), *make_boards(home / "boards")])
    yield "enrollment", lambda: enroll(boards, fleet)
    yield "approval", lambda: approve(boards, fleet)
    yield "agents", lambda: stack.enter_context(agents_running(boards))
    yield "tokens", lambda: wait_for_tokens(boards)
    yield "refresh", lambda: refresh(boards)
    yield "assertion", lambda: show_assertion(boards[0])
    yield "protected resource", lambda: call_resource(stack, boards[0], fleet)
    yield "question", lambda: ask(fleet, boards)
    yield "sign-in link", lambda: say(f"\nthe devices page: {fleet.sign_in_link()}   (works once)")
    if not once:
        yield "wait", wait


class Fleet:
    """A ``pi-fleet serve`` process with its data in ``home``."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[None]:
        log = self._home.parent / "fleet.log"
        with log.open("wb") as output:
            command = [
                str(BIN / "pi-fleet"),
                "--data",
                str(self._home),
                "serve",
                "--bind",
                "127.0.0.1:0",
                "--no-rate-limit",
            ]
            server = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        try:
            self.url = wait_for(lambda: self._address(log, server), lambda: "no server: " + log.read_text())
            say(f"a fleet server at {self.url}, its data in a temporary folder")
            yield
        finally:
            end([server])

    def command(self, *arguments: str, words: bool = False) -> str:
        """What ``pi-fleet`` prints: its data, and before it what it says in words, if that is wanted."""
        return run([str(BIN / "pi-fleet"), "--data", str(self._home), *arguments], words=words)

    def sign_in_link(self) -> str:
        return self.command("sign-in-link").strip()

    def _address(self, log: Path, server: subprocess.Popen[bytes]) -> str | None:
        if server.poll() is not None:
            raise PartError(f"it ended with {server.returncode}: {log.read_text()}")
        found = re.search(r"listening\D*(http://127\.0\.0\.1:\d+)", log.read_text())
        return found[1] if found else None


def make_boards(home: Path) -> Iterator[SimulatedBoard]:
    """Boards from the fixtures, as many families as there are, the Pi 2 B first."""
    with (FIXTURES / "index.csv").open(newline="") as index:
        rows = [row for row in csv.DictReader(index) if row["outcome"] == "board" and row["serial"]]
    rows.sort(key=lambda row: (row["expected_type"] != "2B", row["file"]))
    twos = [row for row in rows if row["expected_type"] == "2B"][:3]
    others = [row for row in rows if row["expected_type"] != "2B"]
    step = len(others) / (BOARDS - len(twos))
    chosen = twos + [others[int(number * step)] for number in range(BOARDS - len(twos))]
    for name, row in zip(NAMES, chosen, strict=True):
        folder = home / name
        (folder / "root/proc/sys/kernel/random").mkdir(parents=True)
        shutil.copy(FIXTURES / row["file"], folder / "root/proc/cpuinfo")
        boot_id = secrets.token_hex(16)
        (folder / "root/proc/sys/kernel/random/boot_id").write_text(boot_id)
        yield SimulatedBoard(name, row["expected_type"], folder, folder / "root")


def own_board(home: Path) -> Iterator[SimulatedBoard]:
    """The machine itself, when it is a Raspberry Pi."""
    done = subprocess.run(
        [BIN / "pi-agent", "board", "--json"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if done.returncode == 0:
        (home / "this-board").mkdir()
        yield SimulatedBoard("this-board", json.loads(done.stdout)["type"], home / "this-board", Path("/"))


def enroll(boards: list[SimulatedBoard], fleet: Fleet) -> None:
    def setup(board: SimulatedBoard) -> None:
        # 4: enrolled, and waiting for approval
        run(board.agent("setup", fleet.url, "--loopback-http", "--name", board.name, "--json"), codes=(4,))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(setup, boards))
    families = Counter(board.type for board in boards)
    say(f"{len(boards)} boards of {len(families)} kinds read what they are, made a key, and enrolled")


def approve(boards: list[SimulatedBoard], fleet: Fleet) -> None:
    for board in boards[-REFUSED:]:
        client_id = identity.load(board.home / "state").client_id
        fleet.command("reject", client_id, "--yes", "--max", "1", "--reason", "not ours")
    fleet.command("approve", "status:pending", "--yes", "--max", str(len(boards)), "--reason", "demo")
    say(f"an operator approved {len(boards) - REFUSED} of them and rejected {REFUSED}")


@contextmanager
def agents_running(boards: list[SimulatedBoard]) -> Iterator[None]:
    environment = os.environ | {"PI_AGENT_TOKEN_SPREAD": "2"}
    agents = []
    try:
        for board in boards:
            with (board.home / "agent.log").open("wb") as log:
                command = board.agent("run")
                agents.append(
                    subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment)
                )
        (boards[0].home / "pids").write_text(" ".join(str(agent.pid) for agent in agents))
        yield
    finally:
        end(agents)


def wait_for_tokens(boards: list[SimulatedBoard]) -> None:
    def settled(board: SimulatedBoard) -> str | None:
        state = str(state_of(board).get("state"))
        return state if state in ("ok", "refused") else None

    def state(board: SimulatedBoard) -> str:
        return wait_for(lambda: settled(board), lambda: f"{board.name} got no answer: {state_of(board)}")

    states = Counter(map(state, boards))
    if states != {"ok": len(boards) - REFUSED, "refused": REFUSED}:
        raise PartError(f"the agents are in the states {dict(states)}")
    say(f"{len(boards)} agents: {states['ok']} fetched a token, {states['refused']} were refused")


def state_of(board: SimulatedBoard) -> dict[str, object]:
    try:
        return board.ask("/v1/status")
    except TransportError:
        return {}  # not listening yet


def refresh(boards: list[SimulatedBoard]) -> None:
    approved = boards[:-REFUSED]
    before = {board.name: board.ask("/v1/token")["access_token"] for board in approved}
    for pid in (boards[0].home / "pids").read_text().split()[: len(approved)]:
        os.kill(int(pid), signal.SIGUSR1)

    def changed(board: SimulatedBoard) -> bool:
        return board.ask("/v1/token")["access_token"] != before[board.name]

    def wait_for_change(board: SimulatedBoard) -> None:
        wait_for(lambda: changed(board), lambda: f"{board.name} did not refresh: {state_of(board)}")

    for board in approved:
        wait_for_change(board)
    say(f"{len(approved)} of them refreshed it")


def show_assertion(board: SimulatedBoard) -> None:
    """Sign one assertion with the board's key, as its worker does, and use it twice."""
    known, key = identity.load(board.home / "state"), file.load(board.home / "state")
    claims = assertion.claims(
        issuer=known.client_id,
        audience=known.issuer,
        now=int(time.time()),
        jti=secrets.token_urlsafe(16),
        board={name: board.ask("/v1/status")["board"][name] for name in assertion.BOARD_CLAIMS},  # type: ignore[index]
        boot=boot_claim(board.root, known.issuer),
    )
    signed = assertion.sign(claims, kind=assertion.GRANT, alg=key.alg, kid=key.public_key().kid, sign=key.sign)
    form, transport = oauth.grant_form(signed), Transport(loopback_http=True)
    token = transport.buy(known.token_endpoint, lambda: form)
    say(f"\n{board.name} signs this assertion:\n{indented(jws.parse(signed).claims)}")
    say(f"and gets an access token for it:\n{indented(jws.parse(token.access_token).claims)}")
    try:
        transport.buy(known.token_endpoint, lambda: form)
    except OAuthError as error:
        say(f"the same assertion a second time: {error}")
        return
    raise PartError("a used assertion bought a second token")


def call_resource(stack: ExitStack, board: SimulatedBoard, fleet: Fleet) -> None:
    """A program on the board calls an API that trusts the fleet server's tokens, and nothing else."""
    resource = stack.enter_context(ResourceServer(issuer=fleet.url, audience=fleet.url).running())
    header = run(board.agent("token", "--header")).strip()
    say(f"\n$ pi-agent token --header | curl -H @- {resource}")
    name, _, value = header.partition(": ")
    request = urllib.request.Request(resource, headers={name: value})
    with urllib.request.urlopen(request, timeout=10) as answer:
        say(answer.read().decode().strip())


def ask(fleet: Fleet, boards: list[SimulatedBoard]) -> None:
    say(f"\n$ pi-fleet devices {shlex.quote(QUESTION)}")
    say(fleet.command("devices", QUESTION, words=True).rstrip())
    expected = sum(board.type == "2B" for board in boards[:-REFUSED])
    found = len(json.loads(fleet.command("devices", QUESTION, "-o", "json"))["items"])
    if found != expected:
        raise PartError(f"the question found {found} boards instead of {expected}")


def wait() -> None:
    say("it stays up until you press Ctrl-C")
    while True:
        time.sleep(3600)


def indented(members: dict[str, object]) -> str:
    """One member a line; what does not fit goes on below itself."""
    margin = " " * 13
    rows = (f"  {name:<10} {json.dumps(value)}" for name, value in members.items())
    return "\n".join(line for row in rows for line in textwrap.wrap(row, 92, subsequent_indent=margin))


def wait_for(probe: Callable[[], Found | None], complaint: Callable[[], str]) -> Found:
    """What ``probe`` finds, as soon as it finds anything. Raises PartError with the complaint when it never does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := probe():
            return found
        time.sleep(0.1)
    raise PartError(complaint())


def run(command: list[str], *, codes: tuple[int, ...] = (0,), words: bool = False) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode not in codes:
        raise PartError(f"{shlex.join(command[:1] + command[-6:])} ended with {done.returncode}: {done.stderr.strip()}")
    return done.stderr + done.stdout if words else done.stdout


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Ask each process to end, and end it if it does not."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
