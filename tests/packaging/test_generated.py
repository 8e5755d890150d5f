"""Manual pages, completion files and the settings file, made as a build makes them and held against the programs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

from pi_agent.device import config

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"pi-agent": "pi_agent.device.cli", "pi-fleet": "pi_agent.fleet.cli"}
SHELLS = {"bash": "bash-completion/completions/{}", "zsh": "zsh/vendor-completions/_{}"}
ENVIRONMENT = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
SHELLS["fish"] = "fish/vendor_completions.d/{}.fish"

converter = pytest.mark.skipif(shutil.which("go-md2man") is None, reason="go-md2man is not installed")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not installed")


def run(*command: str, text: str | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, input=text, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def help_of(program: str, *words: str) -> str:
    code = f"import sys; from {PROGRAMS[program]} import main; sys.argv[0] = {program!r}; main({[*words, '--help']!r})"
    return run(sys.executable, "-c", code)


def commands_of(program: str, *words: str) -> list[str]:
    """The commands that the help of ``words`` lists."""
    text = help_of(program, *words).partition("\npositional arguments:\n")[2].partition("\n\n")[0]
    return re.findall(r"(?m)^    ([a-z][a-z-]+)\b", text) if "COMMAND" in text or "..." in text else []


def long_options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.partition("\noptions:\n")[2].partition("\n\n")[0]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    run(sys.executable, "packaging/generate", str(folder))
    return folder


def page(made: Path, name: str) -> str:
    """The words of a page: roff's own marks taken out."""
    found = next((made / "man").glob(name + "*"))
    return re.sub(r"\\f[A-Z]|\\&|\\", "", found.read_text())


@pytest.mark.parametrize("program", PROGRAMS)
def test_page_has_every_command_and_option(made: Path, program: str) -> None:
    """Every command of --help, and every option of each, stands in the program's manual page."""
    text = page(made, program + ".1")
    commands = commands_of(program)
    assert len(commands) >= 6
    for command in commands:
        assert re.search(rf"(?m)^(?:\.SS|###) \**{command}\b", text), command
        missing = {name for name in long_options(help_of(program, command)) - {"--help"} if name not in text}
        assert not missing, f"{command}: {missing}"


def test_page_has_every_setting(made: Path) -> None:
    """Every setting stands in pi-agent.toml(5) with its default and its variable."""
    text = page(made, "pi-agent.toml.5")
    for setting in config.SETTINGS:
        assert setting.name in text
        assert setting.variable in text
        assert all(choice in text for choice in setting.choices), setting.name


def test_protocol_page_has_every_resource(made: Path) -> None:
    """Every path that the agent answers stands in pi-agent-protocol(7), with its method."""
    from pi_agent.device.api import METHODS

    text = page(made, "pi-agent-protocol.7")
    assert [path for path, method in METHODS.items() if f"{method} {path}" not in text] == []


@converter
@needs("man")
@pytest.mark.parametrize("name", ["pi-agent.1", "pi-agent.toml.5", "pi-fleet.1", "pi-agent-protocol.7"])
def test_page_formats(made: Path, name: str) -> None:
    """The page is formatted without a warning, and begins with a name that whatis(1) can find."""
    source = str(made / "man" / name)
    done = subprocess.run(
        ["man", "--warnings", "-l", "-Tutf8", source], capture_output=True, check=False, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert re.search(rf"(?m)^{name.rpartition('.')[0].replace('-', '.')} .?- \w", page(made, name))


def test_example_has_every_setting(made: Path) -> None:
    """The settings file to copy from says nothing, and with its comment signs off it is the built-in settings."""
    text = (made / "config.toml").read_text()
    assert not any(tomllib.loads(text).values())
    settings = re.sub(r"(?m)^#(?=[a-z_]+ = )", "", text.partition("#[[local.allow]]")[0])
    flat = {setting.name: setting.default for setting in config.SETTINGS}
    given = tomllib.loads(settings)
    tables = {f"{table}.{key}": value for table in given for key, value in _items(given[table])}
    assert tables | {key: value for key, value in given.items() if not isinstance(value, dict)} == flat


def _items(table: object) -> list[tuple[str, object]]:
    return list(table.items()) if isinstance(table, dict) else []


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("shell", SHELLS)
def test_completion_has_every_option(made: Path, shell: str, program: str) -> None:
    """Every command, and every option of each, stands in the completion file of each shell."""
    text = (made / "completion" / SHELLS[shell].format(program)).read_text()
    words = set(re.findall(r"[\w-]+", text.replace(" -l ", " --")))
    for command in commands_of(program):
        assert command in words
        assert long_options(help_of(program, command)) <= words, command


COMPLETIONS = [
    ("pi-agent to", {"token"}),
    ("pi-agent --state /var token --hea", {"--header"}),
    ("pi-agent config sh", {"show"}),
    ("pi-agent token --min-valid ", set()),
    ("pi-fleet devices -o js", {"json", "jsonl"}),
]


@needs("bash")
@pytest.mark.parametrize(("line", "expected"), COMPLETIONS)
def test_bash_completes(made: Path, line: str, expected: set[str]) -> None:
    """bash offers these words, and no others, for what was typed."""
    program, *_ = words = line.split(" ")
    file = made / "completion" / SHELLS["bash"].format(program)
    array = " ".join(f'"{word}"' for word in words)
    script = f"source '{file}'; COMP_WORDS=({array}); COMP_CWORD={len(words) - 1}; _{program.replace('-', '_')}"
    assert set(run("bash", "-c", script + '; printf "%s\\n" "${COMPREPLY[@]}"').split()) == expected


@needs("fish")
@pytest.mark.parametrize(("line", "expected"), COMPLETIONS)
def test_fish_completes(made: Path, tmp_path: Path, line: str, expected: set[str]) -> None:
    """fish offers these words, and no others, for what was typed."""
    file = made / "completion" / SHELLS["fish"].format(line.split(" ", maxsplit=1)[0])
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"source '{file}'; complete -C '{line}'"],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT | {"HOME": str(tmp_path)},
    )
    assert {offer.partition("\t")[0] for offer in done.stdout.splitlines()} == expected


@needs("zsh")
@pytest.mark.parametrize("program", PROGRAMS)
def test_zsh_reads_it(made: Path, program: str) -> None:
    """zsh reads the file, and finds a function for every command in it."""
    file = made / "completion" / SHELLS["zsh"].format(program)
    run("zsh", "-f", "-n", str(file))
    names = set(run("zsh", "-f", "-c", f"_arguments() {{ : }}; source '{file}'; print -l ${{(k)functions}}").split())
    function = "_" + program.replace("-", "_")
    assert {f"{function}_{command.replace('-', '_')}" for command in commands_of(program)} <= names
