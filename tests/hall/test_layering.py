"""The house stands on two rules: the hall opens, connects and asks nothing, and no wing reaches into another."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pi_agent

PACKAGE = Path(pi_agent.__file__).parent
HALL = sorted(PACKAGE.glob("*.py"))
WINGS = ("device", "fleet")

# What would let a value open a file, reach the network, start something or ask the time.
DOORS = """
_io _posixsubprocess _socket aiohttp asyncio builtins concurrent ctypes fcntl fileinput ftplib glob http httpx io logging
mmap multiprocessing os pathlib posix requests sched secrets select selectors shutil signal smtplib socket socketserver
sqlite3 ssl subprocess sys tempfile threading time tomllib urllib3 uuid zoneinfo
"""
CLOCK_READERS = frozenset({"now", "today", "utcnow", "time", "time_ns", "monotonic", "clock_gettime"})
ALLOWED = {"client.py": {"_socket", "asyncio", "os", "sys"}}  # the one declared door: it connects to the agent's socket


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in ``tree``, also late and also for types only."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def under(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(parent + ".") for parent in parents)


@pytest.mark.parametrize("path", HALL, ids=lambda path: path.name)
def test_the_hall_imports_neither_wing_and_no_door(path: Path) -> None:
    """A module of the hall imports no wing, and nothing that opens, connects or asks the time."""
    found = set(imports(parsed(path)))
    assert not {name for name in found if under(name, "pi_agent.device", "pi_agent.fleet", "django")}
    assert {name.partition(".")[0] for name in found} & set(DOORS.split()) <= ALLOWED.get(path.name, set())
    assert not {name for name in found if under(name, "urllib.request", "urllib.error")}


@pytest.mark.parametrize("path", HALL, ids=lambda path: path.name)
def test_the_hall_calls_no_builtin_door_and_no_clock(path: Path) -> None:
    """A module of the hall neither calls open, input or exec, nor a method that reads a clock."""
    calls = [node.func for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)]
    assert not {call.id for call in calls if isinstance(call, ast.Name)} & {
        "open",
        "input",
        "exec",
        "eval",
        "__import__",
    }
    assert not {call.attr for call in calls if isinstance(call, ast.Attribute)} & CLOCK_READERS


@pytest.mark.parametrize("wing", WINGS)
def test_no_wing_imports_another(wing: str) -> None:
    """No module of a wing imports a module of the other wing."""
    others = [f"pi_agent.{other}" for other in WINGS if other != wing]
    for path in (PACKAGE / wing).rglob("*.py"):
        assert not [name for name in imports(parsed(path)) if under(name, *others)], path


def loaded(code: str, *flags: str) -> set[str]:
    """The modules in memory after ``code`` ran in an interpreter of its own."""
    script = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); {code}; print(*sys.modules)"
    done = subprocess.run([sys.executable, *flags, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "module", ["pi_agent", "pi_agent.errors", "pi_agent.revision", "pi_agent.board", "pi_agent.oauth"]
)
def test_what_a_small_program_imports_stays_small(module: str) -> None:
    """Decoding a board, or reading an answer, loads neither a network stack nor a crypto library."""
    heavy = {"requests", "urllib3", "oauthlib", "cryptography", "jwt", "ssl", "socket", "asyncio", "django", "logging"}
    assert not loaded(f"import {module}", "-I") & heavy


def test_the_client_loads_the_standard_library_only() -> None:
    """A program that asks for a token loads no third-party module, and not even the socket module."""
    modules = loaded("import pi_agent.client", "-I", "-S")
    assert not modules & {
        "requests",
        "urllib3",
        "oauthlib",
        "cryptography",
        "jwt",
        "ssl",
        "socket",
        "asyncio",
        "selectors",
    }


def test_importing_the_package_loads_none_of_its_modules() -> None:
    """``import pi_agent`` costs one module; the names in it come when they are used."""
    assert {name for name in loaded("import pi_agent", "-I", "-S") if under(name, "pi_agent")} == {"pi_agent"}


def test_every_public_name_is_there() -> None:
    """Each name in ``__all__`` can be had, and is what ``dir`` shows."""
    assert all(getattr(pi_agent, name) for name in pi_agent.__all__)
    assert set(pi_agent.__all__) < set(dir(pi_agent))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pi_agent.nothing


def test_the_resident_imports_nothing_dear() -> None:
    """The process that stays for years holds no TLS, no crypto, no event loop and none of the larger modules."""
    dear = (
        "ssl asyncio requests urllib3 oauthlib cryptography jwt logging argparse dataclasses tomllib json typing pathlib "
        "subprocess socket selectors enum re inspect threading email http hashlib tempfile shutil importlib.util"
    )
    modules = loaded("import pi_agent.device.agent", "-I", "-S")
    assert not modules & set(dear.split())
    ours = {name.removeprefix("pi_agent.") for name in modules if under(name, "pi_agent")}
    assert not ours & {"jws", "jwk", "assertion", "oauth", "board", "client"}
    assert not {
        name for name in ours if under(name, *(f"device.{part}" for part in ("keys", "worker", "transport", "config")))
    }
