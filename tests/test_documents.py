"""What the documents tell people to type is something that the programs take, and what they point to is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pi_agent.device import cli as agent
from pi_agent.fleet import cli as fleet

PROJECT = Path(__file__).resolve().parent.parent
PAGES = sorted([*PROJECT.glob("*.md"), *PROJECT.glob("docs/**/*.md")])
BLOCK = re.compile(r"^```(?:sh|console|bash)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(?:\$ )?(?:sudo )?(pi-agent|pi-fleet)\b(.*)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)\s#]+)|(?:src|srcset)=\"([^\"]+)\"")


def commands() -> list[tuple[str, str, str]]:
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text()):
            joined = block.replace("\\\n", " ")
            found += [(str(page.relative_to(PROJECT)), *command) for command in COMMAND.findall(joined)]
    return found


@pytest.mark.parametrize(("page", "program", "arguments"), commands())
def test_a_documented_command_is_understood(page: str, program: str, arguments: str) -> None:
    """Every pi-agent and pi-fleet line in a document is one that the program's own parser takes."""
    words = shlex.split(re.split(r"\s(?:\||>|&&|;|2>)", arguments)[0].rstrip(";"), comments=True)
    if {"--help", "--version", "-h"} & set(words):
        return
    parse = agent.parse if program == "pi-agent" else fleet.parse
    try:
        parse(words)
    except SystemExit as ended:
        pytest.fail(f"{page}: {program}{arguments} ends with {ended.code}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_link_leads_somewhere(page: Path) -> None:
    """Every relative link and picture of a document names a file or folder of the project."""
    targets = [first or second for first, second in LINK.findall(page.read_text())]
    assert [target for target in targets if not (page.parent / target).exists()] == []
