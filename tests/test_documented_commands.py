"""Every command in the documents is run as it stands there, by a shell on a terminal, in a town of its own.

A document makes up addresses and names; ``NAMES`` says what they are in the town. ``NOT_HERE`` lists the commands that
need what a test has not, and says where they are run instead, or why nowhere.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from town import PROJECT, Town, copied

PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
FENCED = re.compile(r"^```(sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MANUAL = re.compile(r"(?:^    (?:sudo |pi-|curl ).*\n)+", re.MULTILINE)
TOOLS = ("curl", "jq", "openssl")
PATIENCE = 60.0

NAMES: list[tuple[str, Callable[[Town], str]]] = [
    (r"https://fleet\.example(?:\.org)?(?::8443)?", lambda town: town.issuer),
    (r"https://api\.example|http://127\.0\.0\.1:36361", lambda town: town.api),
    (r"/run/pi-agent/agent\.sock", lambda town: f"{town.home}/kitchen/runtime/agent.sock"),
    (r"/(?:var/lib|etc)/pi-agent(?=/(?:key|board))", lambda town: f"{town.home}/kitchen/state"),
    (
        r"serve --bind 0\.0\.0\.0:8443( --tls-\w+ \S+)*|serve$",
        lambda town: f"--data {town.home}/another serve --bind 127.0.0.1:0",
    ),
    (r"pi-agent board(?= --record|$)", lambda town: f"pi-agent board --root {town.home}/kitchen/root"),
    (r"\$PWD/fixtures", lambda town: f"{PROJECT}/fixtures"),
    (r"http://127\.0\.0\.1:8080", lambda town: town.issuer),
    (r"--root my-board", lambda town: f"--root {PROJECT}/fixtures/trees/pi-3b-debian-12-emulated"),
    (r"XN1Z-P14Z", Town.code),
    (r"pfo_1a2b3c4d", Town.operator_token_id),
    (r"pfo_\.\.\.", Town.operator_token),
    (r"\bKID\b", Town.signing_key),
    (r"rs-0123456789abcdef:SECRET", Town.resource_server),
    (r"\btoken=eyJ\.\.\.", lambda town: f"token={town.token()}"),
]
NOT_HERE = {
    r"\./dev demo --once": "run, and its output compared, by test_readme.py",
    r"\./dev demo": "the same without --once: it stays until Ctrl-C",
    r"\./dev test": "this is it",
    r"sudo apt install \./pi-agent": "needs Debian's apt as root; ./dev boot installs the package",
    r"sudo (python3 -m venv|install (-D )?-m 644|/opt/pi-fleet)|openssl rand -hex 32 \| sudo": "a service of the system; ./dev boot has it",
    r"python3 -m venv ~/pi-fleet ": "fetches the libraries once more; ./dev itself does the same",
    r"sudo (systemctl|systemd-|mkdir -p /etc/cred|poweroff)|journalctl": "needs systemd as PID 1; ./dev boot has one",
    r"sudo adduser telemetry": "changes this machine; ./dev boot does it, where a user of the group gets the token",
    r"python assertion\.py": "with the program above it, by issuing/test_documented_services.py",
    r"hydra ": "another project's program",
    r"(echo \.\.\. \| )?(sudo (-u|-E|usermod -aG tss|install -d -o) |export TPM2)": "needs a TPM; tests/fleet/test_tpm.py has one",
    r"sudo pi-agent key move --to firmware": "needs a Pi's fuses; tests/device/test_keys_stores.py has a stand-in",
}
# Exit statuses other than 0. Nothing found is an answer, too.
CODES = [
    (r"pi-agent setup http\S+($| --name| --loopback-http)", (0, 4)),
    (r"pi-fleet serve| --watch\b", (130,)),
    (r"pi-fleet (devices|quarantine|audit)", (0, 3)),
]
# What needs neither our fleet nor the agent, so that nobody has to wait for their start.
ALONE = r"(sudo )?(pi-agent (board|config|setup \S+ --preset)|openssl(?! pkey)) |pi-fleet completion "
# Ended by Ctrl-C when they have said this.
ENDLESS = {r"pi-fleet .*\bserve\b": "listening on", r" --watch\b": "porch", r"pi-agent run$": "token ok"}
PROMPTS = [(r"type (\w+) to ", r"\1\n"), (r"type yes: ", "yes\n"), (r"reason: $", "it is what the document says\n")]


class Command(NamedTuple):
    text: str
    shown: list[str]  # what the document shows as its output


class Block(NamedTuple):
    place: str
    commands: list[Command]


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text, name = page.read_text(), str(page.relative_to(PROJECT))
        for found in (MANUAL if page.parent.name == "man" else FENCED).finditer(text):
            kind, body = found.groups() if len(found.groups()) == 2 else ("sh", found[0])
            listed = list(commands(kind, body))
            if listed:
                yield Block(f"{name}:{text.count(chr(10), 0, found.start()) + 1}", listed)


def commands(kind: str, body: str) -> Iterator[Command]:
    """In a console block a command begins with ``$``, and what follows is its output."""
    lines = body.replace("\\\n", " ").splitlines()
    texts = [re.sub(r"\s+# .*", "", line.removeprefix("$ ")).strip() for line in lines]
    starts = [number for number, line in enumerate(lines) if kind == "sh" or line.startswith("$ ")]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        yield Command(texts[start], lines[start + 1 : end])


BLOCKS = list(blocks())


def not_here(text: str) -> bool:
    return any(re.match(pattern, text) for pattern in NOT_HERE)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """What all towns are copies of. The port is one that the kernel gives to nobody who asks for any."""
    town = Town(tmp_path_factory.mktemp("town"), free_port())
    town.furnish()
    return town


def free_port() -> int:
    for port in range(20000 + os.getpid() % 10000, 32000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if not all(not_here(c.text) for c in b.commands)], ids=lambda b: b.place
)
def test_a_documented_command_works(block: Block, town: Town, tmp_path: Path) -> None:
    """Typed in their order on a fresh board, the commands of a block do what they are there for, and print what is shown."""
    listed = [command for command in block.commands if not not_here(command.text)]
    if missing := [tool for tool in TOOLS if not shutil.which(tool) and any(tool in c.text.split() for c in listed)]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    here = copied(town, tmp_path)
    exported = ""
    with here.asleep() if all(re.match(ALONE, command.text) for command in listed) else here.living():
        for command in listed:
            text = here_named(command.text, here)
            if text.startswith("export "):
                exported += text + "; "
                continue
            code, said = typed(exported + text, here)
            allowed = next((codes for pattern, codes in CODES if re.search(pattern, command.text)), (0,))
            assert code in allowed, f"{text}\nended with {code}:\n{said}"
            assert labels(command.shown) - labels(said.splitlines()) == set(), f"{text}\nprinted:\n{said}"


def here_named(text: str, town: Town) -> str:
    """The command with this town's names in place of the document's."""
    if re.search(r"setup \S+ --", text):  # the first words of a page whose board is a new one
        shutil.rmtree(town.home / "kitchen/state")
        (town.home / "kitchen/config.toml").unlink()
    if found := re.search(r"setup (https://\S+) --preset", text):
        town.elsewhere.issuer = found[1].replace("https:/", town.api)
        return text.replace(found[1], town.elsewhere.issuer)
    for pattern, name in NAMES:
        if re.search(pattern, text):
            text = re.sub(pattern, name(town).replace("\\", r"\\"), text)
    return text


def typed(text: str, town: Town) -> tuple[int, str]:
    """Its exit status and what a person sees, who answers what is asked, and presses Ctrl-C where it would go on for ever."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "sh", "-c", f"trap : INT; {text}"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=town.board("kitchen"),
        cwd=town.home,
    )
    os.close(theirs)
    said, answered = "", 0
    enough = next((word for pattern, word in ENDLESS.items() if re.search(pattern, text)), "")
    deadline = time.monotonic() + PATIENCE
    try:
        while select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0]:
            try:
                said += os.read(ours, 65536).decode()
            except OSError:  # nobody is at the other end any more
                break
            if enough and enough in said:
                os.write(ours, b"\x03")
                enough = ""
            for pattern, answer in PROMPTS:
                if found := re.search(pattern, said[answered:]):
                    os.write(ours, found.expand(answer).encode())
                    answered = len(said)
        code = process.wait(max(1.0, deadline - time.monotonic()))
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return code, said


def labels(lines: list[str]) -> set[str]:
    """The words at the beginnings of lines that stand before two spaces, as in a table of two columns."""
    found = (re.match(r"(?:[✓✗] )?([a-z][a-z ]*?)  ", line) for line in lines)
    return {match[1] for match in found if match}


@pytest.mark.parametrize("pattern", NOT_HERE)
def test_a_reason_is_still_needed(pattern: str) -> None:
    """Whatever is not run here is still in a document."""
    assert any(re.match(pattern, command.text) for block in BLOCKS for command in block.commands)
