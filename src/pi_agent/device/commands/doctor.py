"""``pi-agent doctor``: check everything from the board up to a token, and name the cause of what is wrong."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace

from pi_agent.device.commands import in_place

HELP = "find out what is wrong, and what to do about it"
MARKS = {"ok": "✓", "warning": "!", "bad": "✗", "skipped": "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.epilog = (
        "run it as root: the key is readable by the agent alone. Exit code: 0 nothing is wrong, 1 something is"
    )


def run(args: argparse.Namespace) -> int:
    from pi_agent.device.doctor import BAD, Doctor

    findings = []
    for found in Doctor(vars(args)).findings():
        finding = replace(found, hint=in_place(found.hint, args))
        findings.append(finding)
        if not args.json:
            print(f"{MARKS[finding.verdict]} {finding.name:<9} {finding.text}", flush=True)
            if finding.hint and finding.verdict != "ok":
                print(f"{'':<12}{finding.hint}", flush=True)
    if args.json:
        print(json.dumps({"schema": "pi-agent.doctor/1", "findings": [asdict(finding) for finding in findings]}))
    return int(any(finding.verdict == BAD for finding in findings))
