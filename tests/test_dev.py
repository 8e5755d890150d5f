"""The entrance: what ./dev decides, on values, and what it does, run for real in a small tree.

No test here installs anything. Where ./dev would call an installer it finds a shell script named uv, which makes a
``.venv`` around the Python that runs the tests and writes down what it was asked.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

PYPROJECT = """
[build-system]
requires = ["hatchling"]
[project]
name = "small"
dependencies = ["idna"]
[project.scripts]
small = "small:main"
[tool.ruff]
line-length = 120
"""

UV = """#!/bin/sh
echo "$*" >> "$UV_CALLS"
case "$*" in
  venv*) for place; do :; done; mkdir -p "$place/bin"; ln -s "$REAL_PYTHON" "$place/bin/python"
     echo "uv: at work"; sleep 0.1 ;;
esac
"""


def load(path: Path) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("dev", str(path))
    spec = importlib.util.spec_from_loader("dev", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dev() -> ModuleType:
    return load(ROOT / "dev")


class Tree:
    """A small project with its own copy of ./dev, on a machine whose uv is the script above."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.venv = root / ".venv"
        for folder in ("bin", "empty", "requirements", "demo", "benchmarks"):
            (root / folder).mkdir()
        shutil.copy(ROOT / "dev", root / "dev")
        (root / "pyproject.toml").write_text(PYPROJECT)
        (root / "requirements" / "dev.txt").write_text("idna==3.20\n")
        (root / "demo" / "demo.py").write_text("import os, sys; print(os.getcwd(), sys.argv[1:]); sys.exit(7)")
        (root / "benchmarks" / "small.py").write_text("import sys; print('1.0 ms', sys.argv[1:]); sys.exit(1)")
        (root / "benchmarks" / "_shared.py").write_text("")
        (root / "bin" / "uv").write_text(UV)
        (root / "bin" / "uv").chmod(0o755)

    def start(self, *arguments: str, uv: bool = True) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.root / 'bin'}:/usr/bin:/bin" if uv else str(self.root / "empty"),
            "UV_CALLS": str(self.root / "calls"),
            "REAL_PYTHON": sys.executable,
        }
        command = [sys.executable, str(self.root / "dev"), *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd="/")

    def run(self, *arguments: str, uv: bool = True) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        process = self.start(*arguments, uv=uv)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err

    def calls(self) -> list[str]:
        """What uv was asked since the last look, as the first words of each call."""
        log = self.root / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line.partition(" --")[0] for line in lines]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


MAKES_IT_ALL = ["venv", "pip install", "pip install"]


class TestPythonVersion:
    def test_an_old_python_is_refused_in_one_line(self, dev: ModuleType) -> None:
        """The line holds what was found, what is needed and what to type."""
        line = dev.too_old((3, 9, 2), "/usr/bin/python3")
        assert line == "error: pi-agent needs Python 3.11 or newer and /usr/bin/python3 is 3.9.2: try python3.11 ./dev"

    @pytest.mark.parametrize("version", [(3, 11, 0), (3, 13, 5), (4, 0, 0)])
    def test_a_new_python_is_taken(self, dev: ModuleType, version: tuple[int, ...]) -> None:
        """From 3.11.0 on there is nothing to say."""
        assert dev.too_old(version, "python3") == ""

    def test_an_old_python_can_read_the_file(self) -> None:
        """The whole file keeps to the grammar of 3.6, so that the refusal comes out and not a SyntaxError."""
        ast.parse((ROOT / "dev").read_text(), feature_version=(3, 6))


class TestRecipes:
    @pytest.mark.parametrize(
        ("uv", "ensurepip", "pip", "names"),
        [
            ("/usr/bin/uv", True, True, ["uv", "venv and pip"]),
            ("/usr/bin/uv", False, False, ["uv"]),
            ("/usr/bin/uv", False, True, ["uv", "the system's pip"]),
            (None, True, True, ["venv and pip"]),
            (None, True, False, ["venv and pip"]),
            (None, False, True, ["the system's pip"]),
            (None, False, False, []),
        ],
    )
    def test_the_order(self, dev: ModuleType, uv: str | None, ensurepip: bool, pip: bool, names: list[str]) -> None:
        """uv comes first, then venv with its own pip, or else the system's pip: only what is there, and one pip."""
        found = dev.recipes("python3", uv=uv, ensurepip=ensurepip, pip=pip)
        assert [recipe.name for recipe in found] == names

    def test_every_way_checks_hashes_and_byte_compiles(self, dev: ModuleType) -> None:
        """Whatever installs: packages only with hashes, the project without fetching anything, the packages byte-compiled."""
        found = [
            *dev.recipes("python3", uv="uv", ensurepip=True, pip=True),
            *dev.recipes("python3", uv=None, ensurepip=False, pip=True),
        ]
        assert len(found) == 3
        for _, (_, packages, *compiling, project) in found:
            assert "--require-hashes" in packages
            assert {"--no-deps", "--no-build-isolation"} <= set(project)
            assert "--compile-bytecode" in packages or "compileall" in compiling[0]

    @pytest.mark.parametrize(
        ("has_apt", "is_root", "end"),
        [
            (True, False, "run: sudo apt install python3-venv"),
            (True, True, "run: apt install python3-venv"),
            (False, False, "install uv, or pip for this Python"),
        ],
    )
    def test_with_nothing_there_is_one_line(self, dev: ModuleType, has_apt: bool, is_root: bool, end: str) -> None:
        """A machine that can install nothing gets one line, which ends in the exact thing to do."""
        line = dev.nothing_to_install_with(has_apt=has_apt, is_root=is_root)
        assert line.endswith(end)
        assert "\n" not in line

    def test_a_way_that_fails_gives_the_next_its_turn(self, tree: Tree) -> None:
        """uv may know no index where pip does; the next way starts in a clean place."""
        dev = load(tree.root / "dev")
        left_over = dev.VENV / "half-installed"
        first = dev.Recipe("first", (("mkdir", "-p", str(left_over)), ("false",), ("touch", str(tree.root / "no"))))
        second = dev.Recipe("second", (("mkdir", str(dev.VENV)),))
        assert dev.make_environment([first, second]) == second
        assert not left_over.exists()
        assert not (tree.root / "no").exists()

    def test_when_every_way_fails(self, tree: Tree, capfd: pytest.CaptureFixture[str]) -> None:
        """The error is ours, and stderr names each way that was tried."""
        dev = load(tree.root / "dev")
        with pytest.raises(dev.DevError):
            dev.make_environment([dev.Recipe("first", (("false",),)), dev.Recipe("second", (("false",),))])
        assert re.findall("dev: (.*) did not", capfd.readouterr().err) == ["first", "second"]


class TestFingerprint:
    def fingerprint(self, dev: ModuleType, **changed: str) -> str:
        given = {"lock": "idna==3.20", "pyproject": PYPROJECT, "python": "cpython-311 x86_64", "place": "/p", **changed}
        value = dev.fingerprint(given["lock"].encode(), given["pyproject"].encode(), given["python"], given["place"])
        assert isinstance(value, str)
        return value

    @pytest.mark.parametrize(
        "changed",
        [
            {"lock": "idna==3.21"},
            {"python": "cpython-313 x86_64"},
            {"python": "cpython-311 aarch64"},
            {"place": "/elsewhere"},
            {"pyproject": PYPROJECT.replace('["idna"]', '["idna", "certifi"]')},
            {"pyproject": PYPROJECT.replace("small:main", "small:run")},
        ],
    )
    def test_what_changes_it(self, dev: ModuleType, changed: dict[str, str]) -> None:
        """A new lock, Python, machine, place, dependency or script is a reason to make .venv anew."""
        assert self.fingerprint(dev, **changed) != self.fingerprint(dev)

    def test_what_does_not(self, dev: ModuleType) -> None:
        """A setting of the linter is not."""
        assert self.fingerprint(dev, pyproject=PYPROJECT.replace("120", "100")) == self.fingerprint(dev)

    def test_a_broken_pyproject(self, dev: ModuleType) -> None:
        """A typing mistake in pyproject.toml is our error with the place of the mistake, not a traceback."""
        with pytest.raises(dev.DevError, match=r"^pyproject\.toml cannot be read: .*line 2"):
            self.fingerprint(dev, pyproject="[project]\nname = small\n")


class TestSetUp:
    def test_the_first_use_makes_it_and_the_second_does_nothing(self, tree: Tree) -> None:
        """The first use says how long it took, all on stderr; the second calls no installer and says nothing."""
        _, out, err = tree.run("demo")
        assert tree.calls() == MAKES_IT_ALL
        begin, uv, end = err.splitlines()
        assert (begin, uv) == ("dev: making .venv with uv (once)", "uv: at work")
        assert re.fullmatch(r"dev: made .venv with uv in \d+\.\d s", end)
        assert tree.run("demo") == (7, out, "")
        assert tree.calls() == []

    @pytest.mark.parametrize("spoilt", ["stamp", "lock", "python"])
    def test_what_is_not_right_is_made_anew(self, tree: Tree, spoilt: str) -> None:
        """After a set-up that was cut short, with a new lock, or without the Python it was made with, nothing of it stays."""
        tree.run("demo")
        tree.calls()
        (tree.venv / "half-installed").write_text("")
        if spoilt == "stamp":
            (tree.venv / "made-from.sha256").unlink()
        elif spoilt == "lock":
            (tree.root / "requirements" / "dev.txt").write_text("idna==3.21\n")
        else:
            (tree.venv / "bin" / "python").unlink()
        assert tree.run("demo")[0] == 7
        assert tree.calls() == MAKES_IT_ALL
        assert not (tree.venv / "half-installed").exists()

    def test_a_link_is_replaced_and_not_followed(self, tree: Tree) -> None:
        """Where .venv is a link, the link goes and what it led to is left alone."""
        elsewhere = tree.root / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "file").write_text("")
        tree.venv.symlink_to(elsewhere)
        assert tree.run("demo")[0] == 7
        assert not tree.venv.is_symlink()
        assert (elsewhere / "file").exists()

    def test_two_at_once_make_it_once(self, tree: Tree) -> None:
        """Of two first uses one makes .venv, the other waits for it, and both go on."""
        both = [tree.start("demo"), tree.start("demo")]
        for process in both:
            process.communicate(timeout=30)
        assert [process.returncode for process in both] == [7, 7]
        assert tree.calls() == MAKES_IT_ALL


class TestCommands:
    def test_demo_runs_in_the_projects_folder(self, tree: Tree) -> None:
        """Arguments, output and exit status pass through, wherever it was called from."""
        status, out, _ = tree.run("demo", "--once", "--port", "0")
        assert (status, out) == (7, f"{tree.root} ['--once', '--port', '0']\n")

    @pytest.mark.parametrize(
        ("given", "passed"),
        [
            ([], ["-n", "8", "--dist", "worksteal"]),
            (["-x", "--lf"], ["-n", "8", "--dist", "worksteal", "-x", "--lf"]),
            (["tests/test_dev.py"], ["tests/test_dev.py"]),
            (["-k", "lock"], ["-k", "lock"]),
            (["-n", "4"], ["-n", "4"]),
        ],
    )
    def test_pytest_arguments(self, dev: ModuleType, given: list[str], passed: list[str]) -> None:
        """All tests run in parallel; as soon as something is named, the arguments are passed as they are."""
        assert dev.pytest_arguments(given, 8) == passed

    def test_two_cores_have_more_than_two_workers(self, dev: ModuleType) -> None:
        """Most tests wait for programs: with one worker a core, the cores would wait, too."""
        assert dev.pytest_arguments([], 2)[:2] == ["-n", "4"]

    def test_bench_lists_and_runs(self, tree: Tree) -> None:
        """Without a name it lists the benchmarks, with one it runs it; the status is the benchmark's own."""
        assert tree.run("bench") == (0, "small\n", "")
        status, out, _ = tree.run("bench", "small", "--rounds", "3")
        assert (status, out) == (1, "1.0 ms ['--rounds', '3']\n")

    def test_check_runs_every_tool_before_it_fails(self, tree: Tree) -> None:
        """One failing tool does not hide what the others find (this Python has none of them)."""
        status, _, err = tree.run("check")
        assert status == 1
        assert err.count("No module named") == 4
        files = ". dev packaging/generate packaging/pi-agent"
        failed = f"ruff check {files}, ruff format --check {files}, mypy --strict, mypy --strict dev"
        assert f"error: failed: {failed}" in err

    def test_lock_asks_uv(self, tree: Tree) -> None:
        """The lock is uv's work alone: it needs no .venv, and its further arguments go to uv."""
        status, out, err = tree.run("lock", "--upgrade")
        assert (status, out, err) == (0, "", "dev: made requirements/dev.txt\n")
        assert tree.calls() == ["pip compile"]
        assert not tree.venv.exists()

    @pytest.mark.parametrize(
        ("arguments", "status", "error"),
        [
            (["lock"], 2, "error: only uv can make the lock"),
            (["frob"], 2, "error: no command is named 'frob'\nhint: ./dev --help"),
            (["bench", "frob"], 3, "error: no benchmark is named 'frob'\nhint: ./dev bench"),
            (["check", "src"], 2, "error: check takes no arguments, not 'src'\nhint: ./dev check"),
            ([], 2, "Work on pi-agent"),
        ],
    )
    def test_what_cannot_be_done(self, tree: Tree, arguments: list[str], status: int, error: str) -> None:
        """stdout stays empty, stderr has the error and the next step, and nothing was set up."""
        found, out, err = tree.run(*arguments, uv=False)
        assert (found, out) == (status, "")
        assert err.startswith(error)
        assert not tree.venv.exists()

    def test_help_names_every_command(self, dev: ModuleType, tree: Tree) -> None:
        """The help is data (stdout, status 0) and has a line for each command there is."""
        status, out, err = tree.run("--help")
        assert (status, err) == (0, "")
        assert set(re.findall(r"^  \./dev (\w+)", out, re.M)) == set(dev.COMMANDS)


class TestLock:
    """requirements/dev.txt, as it is committed."""

    TEXT = (ROOT / "requirements" / "dev.txt").read_text()
    ENTRIES = tuple(re.findall(r"^(\S+==.+?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", TEXT, re.M))

    def test_it_names_no_place(self) -> None:
        """No index, no address and no path: it means the same on every machine."""
        assert not re.search(r"://|^-|(^|[\s=])[/~.](?!/dev lock)", self.TEXT, re.M)

    def test_every_requirement_has_hashes(self) -> None:
        """Each line that is not a comment or a hash is a pinned requirement with its hashes."""
        starts = re.findall(r"^[^#\s].*$", self.TEXT, re.M)
        assert starts == [f"{requirement} \\" for requirement, _ in self.ENTRIES]

    @pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
    @pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
    def test_it_serves(self, python: str, machine: str) -> None:
        """On each Python and machine every direct dependency has exactly one version, and one that pyproject allows."""
        here = {
            "python_version": python,
            "python_full_version": f"{python}.0",
            "platform_machine": machine,
            "sys_platform": "linux",
            "implementation_name": "cpython",
            "platform_python_implementation": "CPython",
        }
        pins = [Requirement(text) for text, _ in self.ENTRIES]
        active = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(here)]
        version = {pin.name: str(pin.specifier).removeprefix("==") for pin in active}
        assert len(version) == len(active)
        assert "pi-identity-agent" not in version
        for wish in direct_dependencies():
            assert wish.specifier.contains(version[wish.name]), wish


def test_uv_is_one_release() -> None:
    """requirements/uv.txt, which .ci/run gets uv from: one version, and nothing that is not checked against its hash."""
    lines = [line for line in (ROOT / "requirements" / "uv.txt").read_text().splitlines() if line[0] != "#"]
    assert re.fullmatch(r"uv==\d+\.\d+\.\d+ \\", lines.pop(0))
    assert lines and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in lines)


def direct_dependencies() -> list[Requirement]:
    """What pyproject.toml asks for, in the extras that ``dev`` stands for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for extra in ("dev", "fleet", "postgres", "pkcs11") for line in extras[extra]),
    ]
    return [wish for wish in map(Requirement, lines) if wish.name != "pi-identity-agent"]
