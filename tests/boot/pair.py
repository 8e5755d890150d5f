"""Runs inside: a token by ``pi-agent token``, by curl and by an ordinary console script, in turns, on a running agent."""

import statistics
import subprocess
import sys
import time

TURNS = 40
CONSOLE_SCRIPT = "import sys; from pi_agent.device.cli import main; sys.exit(main(['token', '--min-valid', '60']))"
WAYS = {
    "pi-agent token": ["/usr/bin/pi-agent", "token"],
    "curl": ["curl", "-s", "--unix-socket", "/run/pi-agent/agent.sock", "http://pi/v1/token"],
    "console script": ["/usr/bin/python3", "-c", CONSOLE_SCRIPT],
}


def main() -> None:
    wall: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way, command in WAYS.items():
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            wall[way].append(time.perf_counter() - begun)
    parts = [f"{way} {statistics.median(times) * 1000:.1f} ms" for way, times in wall.items()]
    ours, *others = (statistics.median(times) for times in wall.values())
    ratios = [f"{ours / other:.2f} x {way}" for way, other in zip(list(WAYS)[1:], others, strict=True)]
    sys.stdout.write(", ".join(parts + ratios) + f" (medians of {TURNS} turns)\n")


if __name__ == "__main__":
    main()
