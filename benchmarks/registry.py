"""Questions to a registry of a million devices: how long an operator waits, from the command line to the page.

A fleet is simulated (``pi-fleet simulate``), served by ``pi-fleet serve``, and asked as operators ask: over the local
socket by REST, by the command as it is installed, and by a browser when there is one. Every figure is seen from outside.
``--data DIR`` keeps the fleet for the next run; ``--postgresql [URL]`` uses that database instead of SQLite, or without
a URL a PostgreSQL of its own, with Debian's settings and programs, which goes when it is done.
"""

from __future__ import annotations

import argparse
import compileall
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pi_agent
from pi_agent.errors import TransportError
from pi_agent.fleet import client
from pi_agent.fleet.settings import Settings

BIN = Path(sys.executable).parent
HEADLINE = "model:2b memory:1gb auth:1d"
LIKE_IT = (
    "model:2b memory:1gb auth:1d", "model:3b memory:1gb auth:1d", "model:4b memory:4gb auth:6h",
    "model:zero2w memory:512mb auth:7d", "model:5 memory:8gb auth:1d",
)  # fmt: skip
ROUNDS = 200
OWN = "own"
PAGES = 1000


@dataclass(frozen=True)
class Figure:
    """What was measured, against its bar; ``bar`` None is for information."""

    what: str
    value: float
    bar: float | None
    unit: str = "ms"

    @property
    def held(self) -> bool:
        return self.bar is None or self.value <= self.bar

    def __str__(self) -> str:
        bar = "" if self.bar is None else f"   bar {self.bar:g} {self.unit}   {'held' if self.held else 'MISSED'}"
        return f"  {self.what:<58} {self.value:>9,.1f} {self.unit}{bar}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--postgresql", metavar="URL", nargs="?", const=OWN)
    arguments = parser.parse_args()
    if arguments.postgresql == OWN:
        arguments.data = None  # what is kept belongs to a database that will be gone
    folder = arguments.data or Path(tempfile.mkdtemp(prefix="pi-fleet-bench-"))
    compileall.compile_dir(Path(pi_agent.__file__).parent, quiet=2)  # as pip does when it installs
    cluster = own_cluster() if arguments.postgresql == OWN else None
    if arguments.postgresql:
        os.environ["PI_FLEET_DATABASE_URL"] = cluster.database() if cluster else arguments.postgresql
    try:
        made = prepare(folder, arguments.devices)
        with served(folder) as process:
            figures = [*made, *measure(connect(folder), folder, process)]
    finally:
        if cluster:
            cluster.close()
        if arguments.data is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print(*figures, sep="\n")
    missed = [figure.what for figure in figures if not figure.held]
    store = "PostgreSQL" if arguments.postgresql else "SQLite"
    headline = next(figure for figure in figures if figure.what.startswith("the headline question"))
    print(f"registry, {arguments.devices:,} devices, {store}: headline p99 {headline.value:.1f} ms; "
          + (f"missed: {', '.join(missed)}" if missed else "every bar held"))  # fmt: skip
    return 1 if missed else 0


def own_cluster() -> Any:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "issuing"))
    import cluster  # type: ignore[import-not-found]  # found by the path above

    if why := cluster.missing():
        sys.exit(f"error: {why}")
    return cluster.Cluster()


def prepare(folder: Path, devices: int) -> list[Figure]:
    """The fleet, unless one is there already."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if (folder / "simulated").exists():
        return []
    started = time.perf_counter()
    subprocess.run([BIN / "pi-fleet", "--data", folder, "simulate", str(devices)], check=True)
    (folder / "simulated").write_text(f"{devices}\n")
    return [Figure(f"simulate {devices:,} devices and 30 days of events", time.perf_counter() - started, None, "s")]


def connect(folder: Path) -> client.Fleet:
    """The fleet of a server that runs. Raises TransportError."""
    return client.connect(folder, lambda: Settings(data=folder), served=True)


@contextmanager
def served(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [str(BIN / "pi-fleet"), "--data", str(folder), "serve", "--bind", "127.0.0.1:0"]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stderr=words)
        try:
            for _ in range(300):
                with suppress(TransportError):
                    connect(folder)
                    break
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            process.wait(20)


def measure(fleet: client.Fleet, folder: Path, process: subprocess.Popen[bytes]) -> Iterator[Figure]:
    def ask(query: str, **more: object) -> Callable[[], object]:
        return lambda: fleet.get("/devices", query=query, **more)

    yield from headline(ask)
    yield Figure("--count-by model, median of 20", median(lambda: fleet.get("/counts", by="model"), 20), 200)
    yield Figure("all devices by name, median of 20", median(ask("", sort="name"), 20), None)
    yield Figure("status:pending, oldest first, median of 20", median(ask("status:pending", sort="created"), 20), None)
    yield Figure("a word anywhere (kitchen), median of 5", median(ask("kitchen"), 5), None)
    yield Figure(
        "late:true by model, median of 5", median(lambda: fleet.get("/counts", by="model", query="late:true"), 5), None
    )
    yield from pages(fleet)
    yield from export(fleet, process.pid)
    yield Figure("CLI devices, start to first row, median of 10", first_row(folder), 150)
    yield from page_load(folder)


def headline(ask: Callable[..., Callable[[], object]]) -> Iterator[Figure]:
    for sort in ("name", "-auth"):
        times = [timed(ask(LIKE_IT[n % len(LIKE_IT)], sort=sort)) for n in range(ROUNDS)]
        yield Figure(f"the headline question and its like, by {sort}, p99 of {ROUNDS}", p99(times), 50)
        yield Figure("  of those that were asked before", p99(times[len(LIKE_IT) :]), None)
        yield Figure("  median", statistics.median(times), None)


def pages(fleet: client.Fleet) -> Iterator[Figure]:
    """The second page and the last of a thousand in turns, so that both see the same machine."""
    cursors = [""]
    for _ in range(PAGES - 1):
        cursor = fleet.get("/devices", sort="name", limit=100, cursor=cursors[-1])["next"]
        if not cursor:
            return
        cursors.append(cursor)
    first, last = [], []
    for _ in range(40):
        first.append(timed(lambda: fleet.get("/devices", sort="name", limit=100, cursor=cursors[1])))
        last.append(timed(lambda: fleet.get("/devices", sort="name", limit=100, cursor=cursors[-1])))
    yield Figure("page 2 of 100 devices, median of 40", statistics.median(first), None)
    yield Figure(
        f"page {PAGES}, median of 40, at most 1.25 x that", statistics.median(last), statistics.median(first) * 1.25
    )


def export(fleet: client.Fleet, server: int) -> Iterator[Figure]:
    before, started, rows = resident(server), time.perf_counter(), -1
    most = before
    for number, chunk in enumerate(fleet.stream("/devices.csv")):
        rows += chunk.count(b"\n")
        most = max(most, resident(server)) if number % 50 == 0 else most
    yield Figure(f"CSV of {rows:,} rows", time.perf_counter() - started, None, "s")
    yield Figure("  more memory in the server while it is sent", most - before, 64, "MB")


def first_row(folder: Path) -> float:
    return statistics.median(until_first_row(folder) for _ in range(10))


def until_first_row(folder: Path) -> float:
    command = [str(BIN / "pi-fleet"), "--data", str(folder), "devices", *HEADLINE.split()]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        heading, row = process.stdout.readline(), process.stdout.readline()
        waited = (time.perf_counter() - started) * 1000
        assert heading.startswith(b"ID") and row.startswith(b"pi-"), (heading, row)
        process.stdout.read()
    return waited


def page_load(folder: Path) -> Iterator[Figure]:
    """From the click to the load event of the devices page, as the browser's own clock has it."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        chromium = None
    if chromium is None:
        print("  the page is not measured: it needs chromium and the package playwright")
        return
    made = subprocess.run(
        [BIN / "pi-fleet", "--data", folder, "sign-in-link"], capture_output=True, text=True, check=True
    )
    address = made.stdout.strip()
    base = address.partition("/sign-in/")[0]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_load_state("load")
        for path, bar in ((f"/devices?query={HEADLINE.replace(' ', '+')}", 300), ("/devices", 300)):
            times = []
            for _ in range(10):
                page.goto(base + path)
                page.wait_for_load_state("load")
                page.wait_for_load_state("networkidle")  # the charts come after the page, and are not part of its bar
                times.append(float(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")))
            yield Figure(
                f"page {path.partition('?')[0]}{' of the headline question' if '?' in path else ''}, median of 10",
                statistics.median(times),
                bar,
            )
        browser.close()


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1000


def p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99) - 1]


def median(call: Callable[[], object], rounds: int) -> float:
    call()
    return statistics.median(timed(call) for _ in range(rounds))


def resident(pid: int) -> float:
    """Megabytes."""
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    sys.exit(main())
