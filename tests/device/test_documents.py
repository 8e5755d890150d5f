"""The pages of ``docs/device``: tables as the code has them, examples that run, settings that are taken."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from device.living import Living
from device.servers import reply, serving
from pi_agent.device.presets import PRESETS
from pi_agent.device.toml_file import read_all

DOCS = Path(__file__).parents[2] / "docs" / "device"
PAGE = (DOCS / "use-the-token.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


def test_the_tables_are_those_of_the_code() -> None:
    """docs/device is behind: run python docs/device/tables.py."""
    pages = list(runpy.run_path(str(DOCS / "tables.py"))["pages"]())
    assert len(pages) == 1 + len(PRESETS)
    for path, text in pages:
        assert path.read_text(encoding="utf-8") == text, path.name


@pytest.mark.parametrize("tool", ["node", "go", "cc"])
def test_an_example_gets_a_token(pi: Living, tool: str, tmp_path: Path) -> None:
    """The documented program, unchanged, prints the token."""
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    with pi.running():
        pi.state("ok")
        socket = f"{pi.runtime}/agent.sock"
        command = {"node": node, "go": go, "cc": c}[tool](tmp_path, socket)
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.stdout, done.stderr) == (pi.token(), "")


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
def test_the_script_for_cron_sends_nothing_without_a_token(pi: Living, tmp_path: Path) -> None:
    """With an agent it sends the file; without one it ends with 5, says why, and the service hears nothing."""
    (tmp_path / "bin").mkdir()
    shim = tmp_path / "bin" / "pi-agent"
    shim.write_text(f'#!/bin/sh\nexec {shlex.join(pi.command())} "$@"\n')
    shim.chmod(0o755)
    (tmp_path / "telemetry.json").write_text('{"degrees": 21}')
    here = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    with serving(lambda channel, request: channel.sendall(reply({"thanks": True}))) as service:
        text = block("bash").replace("https://api.example/telemetry", service.url)
        script = ["sh", "-ec", text.replace("/run/telemetry.json", str(tmp_path / "telemetry.json"))]
        alone = subprocess.run(script, env=here, capture_output=True, text=True, check=False)
        assert (alone.returncode, "error: " in alone.stderr, service.requests) == (5, True, [])
        with pi.running():
            pi.state("ok")
            done = subprocess.run(script, env=here, capture_output=True, text=True, check=False)
            assert (done.returncode, json.loads(done.stdout)) == (0, {"thanks": True})
            (sent,) = service.requests
            assert (sent.headers["authorization"], sent.body) == (f"Bearer {pi.token()}", b'{"degrees": 21}')


def test_the_go_example_leaves_no_connection_open(pi: Living, tmp_path: Path) -> None:
    """A program that asks for each of its requests, as the page says, does not use up the connections of its user."""
    if not shutil.which("go"):
        pytest.skip("go is not installed")
    count = 'found, _ := os.ReadDir("/proc/self/fd"); fmt.Print(len(found))'
    many = f"func main() {{ for i := 0; i < 50; i++ {{ token(os.Args[1]) }}; {count} }}"
    (tmp_path / "main.go").write_text(re.sub(r"func main.*", many, block("go"), flags=re.DOTALL))
    with pi.running():
        pi.state("ok")
        command = ["go", "run", str(tmp_path / "main.go"), f"{pi.runtime}/agent.sock"]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert int(done.stdout) < 25


def node(folder: Path, socket: str) -> list[str]:
    (folder / "token.mjs").write_text(block("javascript"))
    program = f"import {{ token }} from './token.mjs'; process.stdout.write(await token({socket!r}))"
    (folder / "main.mjs").write_text(program)
    return ["node", str(folder / "main.mjs")]


def go(folder: Path, socket: str) -> list[str]:
    (folder / "main.go").write_text(block("go"))
    return ["go", "run", str(folder / "main.go"), socket]


def c(folder: Path, socket: str) -> list[str]:
    (folder / "main.c").write_text(block("c"))
    strict = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2"]
    subprocess.run(["cc", *strict, "-o", str(folder / "main"), str(folder / "main.c")], check=True)
    return [str(folder / "main"), socket]


def test_the_rules_on_the_page_are_taken(tmp_path: Path) -> None:
    """The [[local.allow]] example is read as two rules."""
    found = re.search(r"```toml\n(.*?)```", (DOCS / "config.md").read_text(), re.DOTALL)
    assert found
    assert tomllib.loads(found[1])
    (tmp_path / "config.toml").write_text(found[1])
    _, rules = read_all(tmp_path / "config.toml", (), required=True)
    assert [sorted(rule.value) for rule in rules] == [["audiences", "scopes", "user"], ["group", "scopes"]]
