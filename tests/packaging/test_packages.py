"""What is shipped, built as it is shipped: the Debian package, the wheel and the sdist."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pi_agent import __version__

ROOT = Path(__file__).resolve().parents[2]
PACKAGING = ROOT / "packaging"
TOOLS = ("dpkg-buildpackage", "dh", "dh_python3", "go-md2man", "po2debconf", "lintian")
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]
builds = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def build(script: str, out: Path, *options: str) -> Path:
    done = subprocess.run([PACKAGING / script, *options, out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def deb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package; building it fails when lintian has an error or a warning."""
    return next(build("build-deb", tmp_path_factory.mktemp("deb")).glob("*.deb"))


@pytest.fixture(scope="module")
def contents(deb: Path) -> dict[str, str]:
    """The mode and owner of each file in the package, by its path."""
    shown = subprocess.run(["dpkg", "--contents", deb], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=5) for line in shown.splitlines()]
    return {row[5].removeprefix("."): f"{row[0]} {row[1]}" for row in rows}


@builds
def test_same_bytes_again(deb: Path, tmp_path: Path) -> None:
    """The package is the same bytes when it is built again."""
    again = next(build("build-deb", tmp_path).glob("*.deb"))
    assert digest(again) == digest(deb)


@builds
def test_depends_on_debian_alone(deb: Path) -> None:
    """It is for every architecture, and needs what Debian 12 and 13 have."""

    def field(name: str) -> str:
        return subprocess.run(["dpkg", "--field", deb, name], capture_output=True, text=True, check=True).stdout.strip()

    assert (field("Version"), field("Architecture")) == (__version__, "all")
    needed = {re.split(r"[ :]", alternative)[0] for alternative in field("Depends").split(", ")}
    assert needed == {
        *("python3", "python3-cryptography", "python3-jwt", "python3-requests-oauthlib"),
        *("debconf", "systemd"),  # asked at purge; what makes the user, the socket's folder and the sandbox
    }


@builds
def test_contents(contents: dict[str, str]) -> None:
    """Units, user, pages, completion and the example are in it; settings, fleet and anything writable are not."""
    for path in (
        "/usr/bin/pi-agent",
        "/usr/lib/systemd/system/pi-agent.service",
        "/usr/lib/systemd/system/pi-agent.socket",
        "/usr/lib/systemd/system/pi-agent-first-boot.service",
        "/usr/lib/systemd/system/pi-agent-online.target",
        "/usr/lib/systemd/system/pi-agent-wait-online.service",
        "/usr/lib/sysusers.d/pi-agent.conf",
        "/usr/share/man/man1/pi-agent.1.gz",
        "/usr/share/man/man5/pi-agent.toml.5.gz",
        "/usr/share/man/man7/pi-agent-protocol.7.gz",
        "/usr/share/bash-completion/completions/pi-agent",
        "/usr/share/zsh/vendor-completions/_pi-agent",
        "/usr/share/fish/vendor_completions.d/pi-agent.fish",
        "/usr/share/doc/pi-agent/examples/config.toml",
    ):
        assert contents[path] in ("-rw-r--r-- root/root", "-rwxr-xr-x root/root"), path
    assert not [path for path in contents if "fleet" in path or path.startswith(("/lib/", "/etc/pi-agent/c", "/var"))]
    assert {line for line in contents.values() if line[5] == "w" or line[8] == "w" or "root/root" not in line} == set()


@builds
def test_modules(contents: dict[str, str]) -> None:
    """Every module outside of the fleet is in it, where Debian's Python looks for it."""
    home = "/usr/lib/python3/dist-packages/"
    wanted = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src/pi_agent").rglob("*.py")}
    packed = {path.removeprefix(home) for path in contents if path.startswith(home) and path.endswith(".py")}
    assert packed == {path for path in wanted if "/fleet/" not in path}


def test_version_is_one() -> None:
    """The changelog of the package and the module agree."""
    first = (PACKAGING / "debian" / "changelog").read_text().partition("\n")[0]
    assert first.startswith(f"pi-agent ({__version__}) ")


@pytest.mark.skipif(not (ROOT / ".venv/bin/python").exists(), reason="the wheel is built by the environment of ./dev")
def test_wheel_and_sdist(tmp_path: Path) -> None:
    """The wheel and the sdist build, twice with the same bytes (the script compares them)."""
    out = build("build-wheel", tmp_path)
    assert sorted(file.name for file in out.iterdir()) == [
        f"pi_identity_agent-{__version__}-py3-none-any.whl",
        f"pi_identity_agent-{__version__}.tar.gz",
    ]


@pytest.mark.parametrize("script", ["build-deb", "build-wheel"])
def test_usage(script: str) -> None:
    """Without a folder the script says how it is used, and ends with 2."""
    done = subprocess.run([PACKAGING / script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(script)


def test_generate_usage() -> None:
    """Without a folder ``generate`` says how it is used."""
    done = subprocess.run([sys.executable, PACKAGING / "generate"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("generate FOLDER")
