"""The file on the boot partition: taken over once, its token erased where it stood."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.registrar import registering
from pi_agent.device import cli, first_boot
from pi_agent.errors import ConfigError

TOKEN = "canary-7f3a-enrollment-token"
TEXT = f'name = "kitchen"\r\n\r\n[server]\r\nissuer = "https://fleet.test"\r\n[enrollment]\r\ntoken = "{TOKEN}"\r\n'


def test_a_file_written_on_windows_is_read() -> None:
    """A byte-order mark and CR LF are what other computers write."""
    wishes = first_boot.parse(b"\xef\xbb\xbf" + TEXT.encode(), Path("pi-agent.toml"))
    assert wishes.settings == {"name": "kitchen", "server.issuer": "https://fleet.test"}
    assert wishes.token == TOKEN


def test_the_token_is_overwritten_where_it_stood(tmp_path: Path) -> None:
    """The same bytes of the same file hold stars now, and the file has another name (design: secrets are erased after use)."""
    path = tmp_path / "pi-agent.toml"
    path.write_bytes(TEXT.encode() + f"# {TOKEN}\r\n".encode())
    inode = path.stat().st_ino
    first_boot.erase(path, TOKEN)
    taken = tmp_path / "pi-agent.toml.taken"
    assert not path.exists()
    assert taken.stat().st_ino == inode
    assert TOKEN not in taken.read_text()
    assert taken.read_text().count("*" * len(TOKEN)) == 2


def test_a_token_written_with_escapes_is_erased_with_its_file(tmp_path: Path) -> None:
    """TOML has more than one way to write a token: one that stands nowhere as it is takes the whole file along."""
    path = tmp_path / "pi-agent.toml"
    path.write_text(TEXT.replace(TOKEN, TOKEN[:-1] + "\\u006e"))
    assert first_boot.read(path).token == TOKEN
    first_boot.erase(path, TOKEN)
    left = (tmp_path / "pi-agent.toml.taken").read_text()
    assert "canary" not in left
    assert first_boot.parse(left.encode(), path) == first_boot.Wishes({}, "")


def test_ra18_an_erased_token_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RA-18: the power is cut after erasing and before renaming: the stars are no token, and do not replace the one that waits."""
    path = tmp_path / "pi-agent.toml"
    path.write_text(TEXT)
    with monkeypatch.context() as cut, pytest.raises(ConfigError):
        cut.setattr(Path, "replace", failing)
        first_boot.erase(path, TOKEN)
    assert first_boot.read(path) == first_boot.Wishes({"name": "kitchen", "server.issuer": "https://fleet.test"}, "")


def failing(*_: object) -> None:
    raise OSError(5, "Input/output error")


def test_e08_a_link_in_the_place_of_the_waiting_token_is_not_followed(
    state: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """E-08: the agent's user leads root's first-boot to a file of root's: it is not read, and not sent as a token."""
    (tmp_path / "secret").write_text("canary-of-root")
    (tmp_path / "secret").chmod(0o600)
    (state / first_boot.WAITING).symlink_to(tmp_path / "secret")
    with registering(0) as registrar:
        config = tmp_path / "config.toml"
        config.write_text(f'[server]\nissuer = "{registrar.issuer}"\nloopback_http = true\n')
        folders = ["--config", str(config), "--state", str(state), "--root", str(tmp_path)]
        assert cli.main([*folders, "first-boot", str(tmp_path / "none")]) == 2
        assert registrar.server.requests == []
    assert "cannot open" in capfd.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "state = '/tmp'",
        "sinks.hooks = '/tmp'",
        "runtime = '/tmp'",
        "root = '/tmp'",
        "serve.issuer = 'x'",
        "token = 'x'",
    ],
)
def test_what_may_not_be_set_from_there_is_named(line: str) -> None:
    """A card reader must not be enough to move the agent's folders or to have it run hooks."""
    with pytest.raises(ConfigError, match="cannot be set here"):
        first_boot.parse(line.encode(), Path("pi-agent.toml"))


@pytest.mark.parametrize(
    "content", [f'token = "{TOKEN}', f'[enrollment]\ntoken = "{TOKEN}"\n["', '[enrollment]\ntoken = "é"']
)
def test_g01_no_error_repeats_the_token(content: str) -> None:
    """G-01: the parser would quote the line; we do not."""
    with pytest.raises(ConfigError) as caught:
        first_boot.parse(content.encode(), Path("pi-agent.toml"))
    assert "canary" not in f"{caught.value} {caught.value.hint} {caught.value.__context__ and ''}"


@given(st.binary(max_size=300))
def test_any_bytes_are_wishes_or_our_error(data: bytes) -> None:
    """Whatever lies there, it is read or refused."""
    try:
        first_boot.parse(data, Path("pi-agent.toml"))
    except ConfigError:
        return
