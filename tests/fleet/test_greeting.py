"""What ``serve`` says when it starts, and what the folder remembers of it for the commands that come later."""

from __future__ import annotations

import ipaddress
import os
import pwd
import shlex
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fleet.live import LiveFleet, run
from pi_agent.errors import ConfigError
from pi_agent.fleet import client, doctor, greeting, served
from pi_agent.fleet.place import typed
from pi_agent.fleet.settings import Settings

TLS = {"tls_cert": Path("/x.pem")}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (
            {"bind": "0.0.0.0:8443", "issuer": "https://fleet.example", **TLS},
            "else --issuer https://fleet.example:8443",
        ),
        ({"bind": "0.0.0.0:8443", "issuer": "https://[::2]:1", **TLS}, "says port 1, .*--issuer https://[::2]:8443"),
        ({"bind": "0.0.0.0:8080", "issuer": "https://fleet.example"}, "plain HTTP on 0.0.0.0, .*--trusted-proxy"),
        ({"bind": "0.0.0.0:443", "issuer": "https://fleet.example", **TLS}, ""),
        ({"bind": "0.0.0.0:8443", "issuer": "https://fleet.example:8443", **TLS}, ""),
        ({"bind": "0.0.0.0:80", "issuer": "https://fleet.example", "trusted_proxy": ("10.0.0.1/32",)}, ""),
        ({"bind": "127.0.0.1:8080", "issuer": "https://fleet.example"}, ""),
        ({"bind": "[::1]:8080", "issuer": "http://[::1]:8080"}, ""),
        ({"issuer": "http://localhost:8080", "token_lifetime": 3600}, ""),
        ({"issuer": "http://localhost:8080", "token_lifetime": 86400}, "live 1440 minutes, .*--token-lifetime 3600"),
    ],
)
def test_what_is_seldom_meant_is_said(wanted: dict[str, Any], said: str) -> None:
    """A port that nobody is sent to, plain HTTP where others can read it, tokens that live for long: one line each, and
    none where all is well."""
    doubts = list(greeting.doubts(Settings(data=Path("/d"), **wanted)))
    assert len(doubts) == bool(said)
    assert all(part in "".join(doubts) for part in said.split(".*"))


@pytest.mark.parametrize("issuer", ["https://x:0", "https://x:99999", "https://x:port", "https://x:"])
def test_an_issuer_has_a_port_that_can_be(tmp_path: Path, issuer: str) -> None:
    """Or none; anything else is named before the start."""
    done = run("--data", str(tmp_path / "data"), "serve", "--bind", "127.0.0.1:0", "--issuer", issuer)
    assert (done.returncode, "issuer must be https://HOST" in done.stderr) == (2, True), done.stderr


BOARDS = "sudo pi-agent wipe-identity and sudo pi-agent setup https://new.example"


@pytest.mark.parametrize(
    ("now", "boards", "said"),
    [
        ({"issuer": "https://new.example"}, True, ("the issuer was https://old.example", BOARDS)),
        ({"issuer": "https://new.example"}, False, ()),
        (
            {"database_url": "postgresql://me:secret@db/fleet"},
            True,
            ("the database was", "is postgresql://me@db/fleet"),
        ),
        ({}, True, ()),
    ],
)
def test_what_is_not_as_it_was_is_said(now: dict[str, str], boards: bool, said: tuple[str, ...]) -> None:
    """Another name, where boards know the old one, and another database; each with what follows from it."""
    before = served.Served("https://old.example", "/d/fleet.sqlite3", "")
    settings = replace(Settings(data=Path("/d"), issuer="https://old.example"), **now)  # type: ignore[arg-type]
    found = list(greeting.changes(settings, before, boards=boards))
    assert len(found) == bool(said)
    assert all(part in "".join(found) for part in said)


ELSEWHERE = '{"issuer": "https://fleet.example", "database": "postgresql://pi@db/fleet", "tls_cert": "/c.pem"}'


def test_no_command_takes_another_database_for_the_fleet(tmp_path: Path) -> None:
    """The server was on PostgreSQL by settings that a shell has not: nothing is done to a file in the folder."""
    data = tmp_path / "data"
    assert run("--data", str(data), "migrate").returncode == 0
    (data / "serving.json").write_text(ELSEWHERE)
    before = (data / "fleet.sqlite3").read_bytes()
    for words in ("migrate", f"backup {tmp_path}/x", f"restore {tmp_path}/x", "doctor", "devices", "simulate 1"):
        done = run("--data", str(data), *words.split())
        assert done.returncode == 2, words
        assert f"the last server of {data} used postgresql://pi@db/fleet, and no database is named" in done.stderr
        assert f"hint: DATABASE_URL=postgresql://pi@db/fleet pi-fleet --data {data} {words};" in done.stderr
        assert f"rm {data}/serving.json" in done.stderr
    assert (data / "fleet.sqlite3").read_bytes() == before and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:secret@db/fleet?sslmode=require", ""),
        ("postgresql://other/fleet", "used postgresql://pi@db/fleet"),
    ],
)
def test_a_database_that_is_named_is_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str, said: str
) -> None:
    """Another than the server's is said; another user of the same is not. Name and certificate are the server's."""
    (tmp_path / "serving.json").write_text(ELSEWHERE)
    found = served.adopted(Settings(data=tmp_path, database_url=url))
    assert (found.issuer, found.tls_cert, found.database_url) == ("https://fleet.example", Path("/c.pem"), url)
    told = capsys.readouterr().err
    assert said in told and bool(said) == bool(told)


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ("postgresql:///fleet?host=/run/b", False),
        ("postgresql:///fleet?host=/run/a&port=5433", False),
        ("postgresql://you@/fleet?sslmode=require&host=/run/a", True),
    ],
)
def test_a_database_is_known_by_where_it_is(other: str, same: bool) -> None:
    """Which may stand in the query, beside what makes no difference."""
    assert served.same_database("postgresql://me@/fleet?host=/run/a&connect_timeout=3", other) == same


def test_what_leads_to_the_database_can_be_typed(tmp_path: Path) -> None:
    """A shell takes the whole address, although an & stands in it."""
    url = "postgresql:///fleet?host=/run/a&port=5433"
    served.note(Settings(data=tmp_path, database_url=url))
    with pytest.raises(ConfigError) as caught:
        served.adopted(Settings(data=tmp_path))
    assert shlex.split(str(caught.value.hint))[0] == f"DATABASE_URL={url}"
    assert f"DATABASE_URL='{url}' " in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"issuer": 1, "database": "", "tls_cert": ""}'])
def test_a_note_of_no_use_is_none(tmp_path: Path, text: str) -> None:
    """It helps where it can, and stops nobody where it cannot."""
    (tmp_path / "serving.json").write_text(text)
    assert served.adopted(Settings(data=tmp_path)) == Settings(data=tmp_path)


def test_the_folder_remembers_its_server(tmp_path: Path) -> None:
    """For its owner alone and without the password; a command after it has its name, and the next server says what changed."""
    data = tmp_path / "data"
    first = LiveFleet(data)
    first.enroll()
    assert "warning" not in first.greeting
    first.stop()
    assert (data / "serving.json").stat().st_mode & 0o777 == 0o600
    assert f"{first.issuer}/sign-in/" in run("--data", str(data), "sign-in-link").stdout
    second = LiveFleet(data)
    second.stop()
    assert f"the issuer was {first.issuer}" in second.greeting
    served.note(Settings(data=data, database_url="postgresql://me:secret@db/fleet"))
    assert "secret" not in (data / "serving.json").read_text()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://me:se%cret@127.0.0.1:1/x", "in a password, % is written %25"),
        ("postgresql://me:se/cret@127.0.0.1:1/x", "in the password, / is written %2F"),
        ("postgresql://me:se/cret?cret@127.0.0.1:1/x", "in the password, / is written %2F"),
        ("postgresql://me:cret@127.0.0.1:1/x?a%00=cret", "database_url cannot be read"),
        ("postgresql://me:cret@[::1/x", "database_url must be postgresql://USER@HOST/NAME"),
    ],
)
def test_a_password_that_is_not_written_as_in_a_url_is_not_shown(tmp_path: Path, url: str, said: str) -> None:
    """A percent or a slash in it makes another URL of it: how to write it is said, and nothing of it, nor a traceback."""
    pytest.importorskip("psycopg_pool")
    done = run("--data", str(tmp_path / "data"), "serve", "--bind", "127.0.0.1:0", "--database", url)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "cret" not in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["pi-fleet", "doctor"], "pi-fleet --data /d doctor"),
        (["/opt/pi-fleet/bin/pi-fleet", "--data=/d", "tag", "a b"], "/opt/pi-fleet/bin/pi-fleet --data=/d tag 'a b'"),
        (["-c", "serve", "--database=postgresql://me:secret@db/x"], "pi-fleet --data /d serve --database=postgresql://me@db/x"),
        (["pi-fleet", "--database", "postgres://me:sec@ret@db/x"], "pi-fleet --data /d --database postgres://me@db/x"),
        (["pi-fleet", "postgresql://me@db/x?a=1&password=secret&b=2"], "pi-fleet --data /d 'postgresql://me@db/x?a=1&password=...&b=2'"),
        (["pi-fleet", "host=db password=secret"], "pi-fleet --data /d 'host=db password=...'"),
    ],
)  # fmt: skip
def test_a_command_line_is_shown_as_somebody_else_may_type_it(
    monkeypatch: pytest.MonkeyPatch, words: list[str], shown: str
) -> None:
    """With the folder, since another user's default is another; with the path of the program; without a password."""
    monkeypatch.setattr("sys.argv", words)
    assert typed(Path("/d")) == shown


def test_the_program_is_named_so_that_it_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By its path when the PATH has none or another, as for the service in /opt."""
    path = tmp_path / "pi-fleet"
    path.write_text("")
    path.chmod(0o755)
    monkeypatch.setattr("sys.argv", [str(path)])
    assert client.command(Settings(data=tmp_path)) == f"{path} --data {tmp_path}"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert client.command(Settings(data=tmp_path)) == f"pi-fleet --data {tmp_path}"


def test_doctor_asks_the_server_when_only_that_has_the_secret(tmp_path: Path) -> None:
    """A systemd credential is the server's alone; sealed keys are a problem only where nobody can open them."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    (data / "fleet.toml").write_text(f"key_secret = '{'x' * 20}'\n")
    live = LiveFleet(data)
    (data / "fleet.toml").unlink()
    sound, _ = live.cli("doctor"), live.stop()
    assert (sound.returncode, "sealed, and the server that runs has the secret" in sound.stdout) == (0, True)
    alone = live.cli("doctor")
    assert (alone.returncode, "the secret is not there" in alone.stdout) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_is_told_the_command(tmp_path: Path) -> None:
    """Where no server runs, what works on the folder is done by its owner: sudo -u, and all that was typed."""
    data = tmp_path / "data"
    assert run("--data", str(data), "migrate").returncode == 0
    os.chown(data, pwd.getpwnam("nobody").pw_uid, -1)
    for words in ("migrate", "doctor", "devices"):
        done = run("--data", str(data), words)
        assert done.returncode == 2
        assert f"hint: sudo -u nobody pi-fleet --data {data} {words}\n" in done.stderr


NOW = 1_700_000_000
DAY = 86400


@pytest.mark.parametrize(
    ("begins", "ends", "names", "state", "said"),
    [
        (-1, 90, "DNS:fleet.example", "ok", "good for 90 days"),
        (-1, 90, "DNS:*.example", "ok", "good for 90 days"),
        (-1, 90, "IP:127.0.0.1", "warning", "it is for 127.0.0.1, and boards ask for fleet.example"),
        (-1, 90, "", "warning", "it is for no host"),
        (-1, 3, "DNS:fleet.example", "warning", "it ends in 3 days"),
        (-9, -1, "DNS:fleet.example", "problem", "it ended on 2023-11-13 22:13 UTC"),
        (1, 90, "DNS:fleet.example", "problem", "it is good only from 2023-11-15 22:13 UTC on"),
    ],
)
def test_doctor_looks_at_the_certificate(
    tmp_path: Path, begins: int, ends: int, names: str, state: str, said: str
) -> None:
    """Its time, and whether it is for the name that boards use; the server that starts with a bad one says so."""
    path = made(tmp_path, NOW + begins * DAY, NOW + ends * DAY, names)
    settings = Settings(data=tmp_path, issuer="https://FLEET.example:8443", bind="127.0.0.1:8443", tls_cert=path)
    finding = next(found for found in doctor.examine(settings, now=NOW) if found.name == "certificate")
    assert (finding.state, finding.what) == (state, said) or finding.what.startswith(said)
    warned = "".join(greeting.warnings(settings, None, boards=True, now=NOW))
    assert (said in warned) == (state == "problem") == bool(warned)


def made(folder: Path, begins: int, ends: int, names: str) -> Path:
    """A certificate with these names, ``DNS:`` or ``IP:`` before each."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fleet.example")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1)
    builder = builder.not_valid_before(at(begins)).not_valid_after(at(ends))
    kinds: dict[str, Any] = {"DNS": x509.DNSName, "IP": lambda text: x509.IPAddress(ipaddress.ip_address(text))}
    listed = [kinds[kind](text) for kind, _, text in (each.partition(":") for each in names.split())]
    if listed:
        builder = builder.add_extension(x509.SubjectAlternativeName(listed), critical=False)
    (folder / "c.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return folder / "c.pem"


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def test_doctor_says_when_the_server_was_told_another_name(tmp_path: Path) -> None:
    """One in fleet.toml, and another on the command line of the server."""
    served.note(Settings(data=tmp_path, issuer="https://old.example"))
    settings = Settings(data=tmp_path, issuer="https://new.example")
    finding = next(found for found in doctor.examine(settings, now=NOW) if found.name == "issuer")
    assert finding.state == "warning" and "https://old.example" in finding.what and "fleet.toml" in finding.hint
