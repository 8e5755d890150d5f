"""Decode recordings of boards beside gpiozero and Adafruit-PlatformDetect: who gets how many right, and how fast.

Run ``python benchmarks/board.py``. It makes a virtual environment with the pinned peers in the user's cache folder
and runs itself in it. All three get the same texts from memory, in one process and in turns, through the path that
they document. There is a /proc/cpuinfo and no device tree, as in a container; the texts are ``fixtures/cpuinfo``,
written by this project, so the counts say how well the peers meet our collection and no more than that:

* gpiozero: ``get_pi_revision`` and ``PiBoardInfo.from_revision``. It does not ask whether the machine is a Pi.
* PlatformDetect: what its own ``rpi_info.py`` does, the chip check and then ``PiDecoder``. Its decoder alone, without
  the check, is timed too, for information.

Ends with 1 when a bar is missed: every recording right, a text in under 100 microseconds, no slower than either peer.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

REPO = Path(__file__).resolve().parents[1]
FIXTURES = REPO / "fixtures" / "cpuinfo"
PEERS = ("gpiozero==2.0.1.post3", "Adafruit-PlatformDetect==3.89.1")
IN_VENV = "PI_AGENT_BENCH_BOARD"
ROUNDS = 60
LIMIT_US = 100.0
MIB = {"256MB": 256, "512MB": 512, "1GB": 1024, "2GB": 2048, "4GB": 4096, "8GB": 8192, "256MB/512MB": None}
OTHER_NAMES = {"CM": "CM1", "Zero2W": "Zero 2 W", "5B": "5", "CM5Lite": "CM5 Lite", "???": "unknown"}

Answer = tuple[str, int | None] | None  # (type, MiB), or None for "no board"
Decoder = Callable[[str], Answer]


def main(argv: list[str]) -> int:
    """Run the benchmark; inside the environment with the peers, or make that and start again there."""
    if argv:
        print(__doc__)
        return 2
    if os.environ.get(IN_VENV):
        return compare()
    try:
        python = environment() / "bin" / "python"
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"board: MISSED: the peers could not be installed: {error}")
        return 1
    return subprocess.run(
        [str(python), str(Path(__file__).resolve())],
        env=os.environ | {IN_VENV: "1", "PYTHONPATH": str(REPO / "src")},
        check=False,
    ).returncode


def environment() -> Path:
    """A virtual environment with exactly these peers, made once per Python version."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pi-agent"
    name = "-".join(["bench-board", f"{sys.version_info[0]}.{sys.version_info[1]}", *(p.split("==")[1] for p in PEERS)])
    target = cache / name
    if not (target / "complete").exists():
        print(f"installing {', '.join(PEERS)} into {target}", file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        venv.create(target, with_pip=True, clear=True)
        pip = [str(target / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *PEERS]
        subprocess.run(pip, check=True, cwd=tempfile.gettempdir())
        (target / "complete").touch()
    return target


def compare() -> int:
    rows = list(csv.DictReader((FIXTURES / "index.csv").open(newline="")))
    texts = [(FIXTURES / row["file"]).read_bytes().decode() for row in rows]
    decoders = {"pi-agent": ours(), "gpiozero": gpiozero(), "PlatformDetect": platform_detect()}
    print(f"{len(rows)} recordings: {outcomes(rows)}\n")
    print(f"{'':<16}{'right':>7}{'wrong':>7}{'crashed':>9}   the first that went wrong")
    scores = {name: score(name, decoder, rows, texts) for name, decoder in decoders.items()}
    boards = [text for text, row in zip(texts, rows, strict=True) if row["outcome"] == "board"]
    timed = {**decoders, "  decoder alone": platform_detect(check=False)}
    medians, worst = times(timed, [text for text in boards if all(works(decoder, text) for decoder in timed.values())])
    print(f"\n{'':<16}{'microseconds per text':>23}{'slowest text':>15}{'pi-agent is':>14}")
    for name in timed:
        factor = medians[name] / medians["pi-agent"]
        print(f"{name:<16}{medians[name]:>23.1f}{worst[name]:>15.1f}{factor:>10.1f} x")
    return verdict(len(rows), scores, medians, worst)


def verdict(count: int, scores: dict[str, Counter[str]], medians: dict[str, float], worst: dict[str, float]) -> int:
    peers = ("gpiozero", "PlatformDetect")
    missed = []
    if scores["pi-agent"]["right"] != count:
        missed.append("not every recording is right")
    if worst["pi-agent"] >= LIMIT_US:
        missed.append(f"a text took {worst['pi-agent']:.0f} microseconds, the bar is {LIMIT_US:.0f}")
    missed += [f"slower than {peer}" for peer in peers if medians[peer] < medians["pi-agent"]]
    right = ", ".join(f"{name} {score['right']}/{count}" for name, score in scores.items())
    ratios = ", ".join(f"{medians[peer] / medians['pi-agent']:.1f} times as fast as {peer}" for peer in peers)
    print(
        f"\nboard: {'MISSED: ' + '; '.join(missed) if missed else 'ok'}: right {right}; "
        f"{medians['pi-agent']:.1f} us per text, {ratios}"
    )
    return 1 if missed else 0


def outcomes(rows: list[dict[str, str]]) -> str:
    counted = Counter(row["outcome"] for row in rows)
    return ", ".join(f"{number} {outcome}" for outcome, number in counted.items())


def score(name: str, decoder: Decoder, rows: list[dict[str, str]], texts: list[str]) -> Counter[str]:
    """Count right, wrong, crashed; print the line."""
    result: Counter[str] = Counter(right=0, wrong=0, crashed=0)
    first = ""
    for row, text in zip(rows, texts, strict=True):
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # one of the peers prints what it cannot read
                answer = decoder(text)
        except Exception as error:  # noqa: BLE001 - a crash of any kind is what is counted
            verdict_, said = "crashed", type(error).__name__
        else:
            verdict_, said = ("right" if same(answer, row) else "wrong"), str(answer)
        result[verdict_] += 1
        if verdict_ != "right" and not first:
            first = f"{row['file']}: {said}"
    print(f"{name:<16}{result['right']:>7}{result['wrong']:>7}{result['crashed']:>9}   {first}")
    return result


def same(answer: Answer, row: dict[str, str]) -> bool:
    """Generous to all: names are matched as each writes them, a 500 may be a 500+, 0015 may have either size."""
    if answer is None or row["outcome"] != "board":
        return answer is None and row["outcome"] != "board"
    type_, memory = answer
    type_ = OTHER_NAMES.get(type_, type_)
    wanted = {row["expected_type"], row["expected_type"].removesuffix("+") if row["expected_type"] == "500+" else ""}
    return type_ in wanted and (not row["memory_mib"] or memory == int(row["memory_mib"]))


def works(decoder: Decoder, text: str) -> bool:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return decoder(text) is not None
    except Exception:  # noqa: BLE001 - only texts that nobody fails on are timed
        return False


def times(decoders: dict[str, Decoder], texts: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Median microseconds per text over all rounds, and the median of the slowest text. The decoders take turns."""
    samples: dict[str, list[list[float]]] = {name: [[] for _ in texts] for name in decoders}
    for _ in range(ROUNDS):
        for number, text in enumerate(texts):
            for name, decoder in decoders.items():
                start = perf_counter()
                decoder(text)
                samples[name][number].append((perf_counter() - start) * 1e6)
    per_text = {name: [statistics.median(rounds) for rounds in lists] for name, lists in samples.items()}
    return {name: statistics.median(values) for name, values in per_text.items()}, {
        name: max(values) for name, values in per_text.items()
    }


def ours() -> Decoder:
    from pi_agent import BoardError, parse_cpuinfo

    def decode(text: str) -> Answer:
        try:
            board = parse_cpuinfo(text)
        except BoardError:
            return None
        return board.type, board.memory_mib

    return decode


class Machine:
    """Gives the peers the text as /proc/cpuinfo, and no other file."""

    text = ""

    def open(self, path: str, *_: Any, **__: Any) -> io.StringIO:
        if path == "/proc/cpuinfo":
            return io.StringIO(self.text)
        raise FileNotFoundError(2, "no such file", path)


def gpiozero() -> Decoder:
    machine = Machine()
    local = importlib.import_module("gpiozero.pins.local")
    info = importlib.import_module("gpiozero.pins.pi").PiBoardInfo
    unknown = importlib.import_module("gpiozero").PinUnknownPi
    vars(local)["io"] = machine

    def decode(text: str) -> Answer:
        machine.text = text
        try:
            board = info.from_revision(local.get_pi_revision())
        except unknown:
            return None
        return board.model, board.memory

    return decode


def platform_detect(*, check: bool = True) -> Decoder:
    machine = Machine()
    package = importlib.import_module("adafruit_platformdetect")
    modules = [importlib.import_module(f"adafruit_platformdetect.{name}") for name in ("chip", "board", "revcodes")]
    decoder = modules[2].PiDecoder

    def decode(text: str) -> Answer:
        machine.text = text
        for module in (package, *modules):
            vars(module)["open"] = machine.open
        detector = package.Detector()
        code = detector.board._pi_rev_code() if check else detector.get_cpuinfo_field("Revision")
        if code is None:
            return None
        decoded = decoder(code)
        return decoded.type, MIB[decoded.memory_size]

    return decode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
