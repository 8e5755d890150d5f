"""Settings: where they come from, what they may be, and which URLs may be sent an assertion."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device.conftest import needs_root
from pi_agent.device import config, toml_file
from pi_agent.device.urls import check_url
from pi_agent.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def load(file: Path, text: str | None = None, environ: dict[str, str] | None = None, **flags: Any) -> config.Settings:
    if text is not None:
        file.write_text(text, encoding="utf-8")
    return config.load({"config": str(file)} | flags, environ or {})


def flat(text: str) -> dict[str, Any]:
    """The settings in a file without tables in tables, by their whole names."""
    tables = tomllib.loads(text).items()
    return {
        f"{name}.{key}".removesuffix("."): inner
        for name, value in tables
        for key, inner in (value.items() if isinstance(value, dict) else [("", value)])
    }


def refused(file: Path, text: str | None = None, environ: dict[str, str] | None = None, **flags: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(file, text, environ, **flags)
    return caught.value


# Where settings come from


def test_drop_ins_that_cannot_be_read_are_an_error(file: Path) -> None:
    """The allow rules may be in there: without them more would be allowed, so the agent does not go on without them."""
    (file.parent / "config.d").write_text("")
    error = refused(file, 'name = "kitchen"')
    assert str(error) == f"cannot read {file.parent}/config.d: Not a directory"
    assert error.hint == f"ls -ld {file.parent}/config.d"


@needs_root
def test_drop_ins_of_root_alone_are_an_error_to_the_agent() -> None:
    """A folder that only root can open: who may not look is told so, and takes no settings from the rest."""
    with tempfile.TemporaryDirectory() as folder:  # below pytest's own folders nobody else can even look
        Path(folder).chmod(0o755)
        (Path(folder) / "config.d").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            assert "config.d: Permission denied" in str(refused(Path(folder) / "config.toml"))
        finally:
            os.seteuid(0)


def test_a_flag_wins_over_the_environment_over_the_file_over_what_is_built_in(file: Path) -> None:
    """Each layer hides the next one."""
    text, environ = 'name = "file"\n[token]\nspread = 3', {"PI_AGENT_NAME": "environment"}
    assert load(file, text, environ, name="flag").name == "flag"
    assert load(file, text, environ).name == "environment"
    assert load(file, text).name == "file"
    assert load(file, "").name == ""
    assert load(file, text, {"PI_AGENT_TOKEN_SPREAD": "7"}).token_spread == 7
    assert load(file, text).token_spread == 3


def test_without_a_file_everything_is_as_built_in(file: Path) -> None:
    """A file that is not there yet is no error: setup will write it."""
    settings = load(file)
    assert (settings.state, settings.server_issuer, settings.token_assertion_lifetime) == (
        Path("/var/lib/pi-agent"),
        "",
        60,
    )
    assert settings.config == file


def test_the_table_names_every_setting_of_the_dataclass() -> None:
    """One table, one dataclass, one set of variables; every setting says what it is for."""
    attributes = {setting.attribute for setting in config.SETTINGS}
    assert attributes <= set(config.Settings.__slots__)
    assert all(
        setting.help and setting.variable == "PI_AGENT_" + setting.attribute.upper() for setting in config.SETTINGS
    )


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("YES", True), ("1", True), ("false", False), ("No", False), ("0", False)]
)
def test_a_variable_may_say_yes_in_several_ways(file: Path, text: str, value: bool) -> None:
    """The environment knows only text."""
    assert load(file, "", {"PI_AGENT_SERVER_LOOPBACK_HTTP": text}).server_loopback_http is value


# RA-24: what is wrong is named


def test_ra24_an_unknown_setting_is_named_with_line_and_nearest_name(file: Path) -> None:
    """A slip of the pen is an error with a suggestion, never silence."""
    error = refused(file, '# my settings\n[server]\nisuer = "https://fleet.example"\n')
    assert str(error) == f"{file}:3: there is no setting 'server.isuer'"
    assert (error.hint, error.key, error.path) == ("did you mean server.issuer?", "server.isuer", str(file))
    assert "there are: state, " in (refused(file, "zzz = 1").hint or "")


WRONG_VALUES = {
    "a number for a text": ("name = 5", "name", "text"),
    "a text for a truth": ('[server]\nloopback_http = "maybe"', "server.loopback_http", "true or false"),
    "a number for a truth": ("[server]\nloopback_http = 1", "server.loopback_http", "true or false"),
    "a fraction for a number": ("[token]\nspread = 1.5", "token.spread", "a whole number"),
    "a truth for a number": ("[token]\nspread = true", "token.spread", "a whole number"),
    "words for a number": ('[token]\nspread = "soon"', "token.spread", "a whole number"),
    "other digits for a number": ('[token]\nspread = "\u0663"', "token.spread", "a whole number"),
    "an endless number": (f'[token]\nspread = "{"9" * 5000}"', "token.spread", "a whole number"),
    "a list for a text": ('[token]\nscope = ["read"]', "token.scope", "text"),
    "a date for a text": ("name = 2026-11-01", "name", "text"),
    "too short a life": ("[token]\nassertion_lifetime = 9", "token.assertion_lifetime", "10 to 300"),
    "too long a life": ("[token]\nassertion_lifetime = 301", "token.assertion_lifetime", "10 to 300"),
    "a negative spread": ("[token]\nspread = -1", "token.spread", "0 to 3600"),
    "a control character": ('name = "a\\u001b[2J"', "name", "printed"),
    "a line break": ('name = "a\\nb"', "name", "printed"),
    "a NUL in a path": ('state = "/var\\u0000"', "state", "printed"),
}


@pytest.mark.parametrize(("text", "key", "expected"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_ra24_a_wrong_value_is_named_with_what_was_expected(file: Path, text: str, key: str, expected: str) -> None:
    """The message names the setting and what it should be."""
    error = refused(file, text)
    assert error.key == key
    assert key in str(error)
    assert expected in str(error)
    assert error.exit_code == 2


@pytest.mark.parametrize("word", ["x\\n", "\\tx", "a b", "a\\u001b[2J", ""])
@pytest.mark.parametrize("name", ["audiences", "scopes"])
def test_ra24_a_word_of_a_rule_is_one_word_that_can_be_printed(file: Path, name: str, word: str) -> None:
    """White space at an end is no part of a name, and would end the resident's line of rules in the middle."""
    error = refused(file, f'[[local.allow]]\n{name} = ["{word}"]')
    assert (error.key, f"{name} must be a list of names without spaces" in str(error)) == (f"local.allow.{name}", True)


def test_ra24_rules_in_a_file_whose_name_cannot_be_printed_are_refused(file: Path) -> None:
    """A rule is called by where it stands, in one line."""
    (file.parent / "config.d").mkdir()
    (file.parent / "config.d" / "a\nb.toml").write_text('[[local.allow]]\nuser = "root"\n')
    assert "the file's name holds characters that cannot be printed" in str(refused(file, ""))


def test_ra24_a_wrong_variable_is_named_as_the_variable(file: Path) -> None:
    """Whoever set it must find it."""
    error = refused(file, "", {"PI_AGENT_TOKEN_SPREAD": "soon"})
    assert str(error) == "token.spread in PI_AGENT_TOKEN_SPREAD must be a whole number"


UNREADABLE = {
    "half a line": b"name = ",
    "twice": b'name = "a"\nname = "b"',
    "not UTF-8": b'name = "\xe9"',
    "endless brackets": b"name = " + b"[" * 5000,
    "endless digits": b"name = " + b"9" * 5000,
    "endless tables": b"[" + b"a." * 3000 + b"a]\nb = 1",
    "NUL": b"\0",
}


@pytest.mark.parametrize("data", UNREADABLE.values(), ids=UNREADABLE.keys())
def test_ra24_a_file_that_is_no_toml_is_named(file: Path, data: bytes) -> None:
    """The error names the file, and the place where the reader gave up."""
    file.write_bytes(data)
    assert str(file) in str(refused(file))


def test_ra24_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """--config with a typing mistake in the folder is not taken for "no settings"."""
    assert "there is no folder" in str(refused(tmp_path / "none" / "config.toml"))


def test_ra24_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    """What cannot be read is not taken for "no settings" either."""
    assert "cannot read" in str(refused(tmp_path))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text()
    | st.lists(st.sampled_from(["[server]", "name", "=", '"a"', "1", "\n", "[[a]]", "state", "{", "}", "'", "#"])).map(
        "".join
    )
)
def test_any_file_gives_settings_or_our_error(file: Path, text: str) -> None:
    """load raises nothing but ConfigError, whatever the file holds."""
    file.write_text(text, encoding="utf-8", errors="replace")
    try:
        assert isinstance(config.load({"config": str(file)}, {}), config.Settings)
    except ConfigError as error:
        assert str(error)


# where an assertion may go

HTTPS = [
    "https://fleet.example", "https://fleet.example:8443/oauth/token", "HTTPS://fleet.example", "https://[2001:db8::1]/",
    "https://10.0.0.1", "https://xn--bcher-kva.example", "https://fleet.example/?tenant=1", "https://localhost",
]  # fmt: skip
LOOPBACK = ["http://127.0.0.1:8000", "http://127.255.255.254/", "http://[::1]:8000/token", "HTTP://127.0.0.1"]
PLAIN = [
    "http://fleet.example", "http://localhost", "http://localhost:80", "http://127.0.0.1.evil.example", "http://127.1", "http://2130706433",
    "http://0x7f.0.0.1", "http://0177.0.0.1", "http://127.0.0.256", "http://0.0.0.0", "http://[::]", "http://[::ffff:127.0.0.1]",
    "http://128.0.0.1", "http://ip6-localhost", "http://127.0.0.1%2eevil.example", "http://127.0.0.1.",
]  # fmt: skip
NO_URL = [
    "", "fleet.example", "//fleet.example", "https://", "https:///token", "https:fleet.example", "ftp://fleet.example", "file:///etc/passwd",
    "javascript:alert(1)", "http://localhost:80@evil.example", "https://fleet.example@evil.example", "https://u:p@fleet.example",
    "https://@fleet.example", "https://fleet.example#a", "https://fleet.example/#", "https://fleet.example:0", "https://fleet.example:99999",
    "https://fleet.example:x", "https://[::1", "https://[abc]/", "https://::1]", "https:\\\\fleet.example",
    "https://fleet.example\\@evil.example",
    "https://fleet.example/a b", " https://fleet.example", "https://fleet.example\n", "https://fleet.example\r\nHost: evil", "https://fleet.example\0",
    "https://fleet\u3002example", "https://127\uff0e0.0.1", "https://fl\u0435et.example", "https://fleet.example/\u00e9", "http://\u0661\u0662\u0667.0.0.1",
]  # fmt: skip


@pytest.mark.parametrize("url", HTTPS)
def test_a13_https_is_allowed_anywhere(url: str) -> None:
    """To any host, port and path, with or without the setting for loopback."""
    check_url(url, loopback_http=False, what="server.issuer")
    check_url(url, loopback_http=True, what="server.issuer")


@pytest.mark.parametrize("url", LOOPBACK)
def test_a13_http_is_allowed_to_a_literal_loopback_address_if_so_set(url: str) -> None:
    """127.0.0.0/8 and ::1, written as such, and only with server.loopback_http."""
    check_url(url, loopback_http=True, what="server.issuer")
    with pytest.raises(ConfigError) as caught:
        check_url(url, loopback_http=False, what="server.issuer")
    assert "--loopback-http" in (caught.value.hint or "")


@pytest.mark.parametrize("url", PLAIN)
def test_a13_v17_http_is_refused_everywhere_else(url: str) -> None:
    """Names, other spellings of 127.0.0.1 and addresses that only look like it are not loopback."""
    with pytest.raises(ConfigError, match="plain http"):
        check_url(url, loopback_http=True, what="server.issuer")


@pytest.mark.parametrize("url", NO_URL)
def test_a13_v17_what_parsers_disagree_about_is_refused(url: str) -> None:
    """User information, fragments, backslashes, white space, other alphabets, other schemes, and no host at all."""
    with pytest.raises(ConfigError) as caught:
        check_url(url, loopback_http=True, what="server.issuer")
    assert str(caught.value) == "server.issuer is not a usable https URL"


@given(st.text() | st.from_regex(r"https?://[\[\]:@/\\#?.%0-9a-z]*", fullmatch=True))
def test_a13_any_text_is_a_url_or_our_error(url: str) -> None:
    """check_url raises nothing but ConfigError, and never repeats a password that stood in the URL."""
    try:
        check_url(url, loopback_http=True, what="server.issuer")
    except ConfigError as error:
        assert len(url) < 8 or url not in str(error)


def test_a13_the_setting_itself_is_checked(file: Path) -> None:
    """server.issuer from the file goes through the same gate."""
    assert refused(file, '[server]\nissuer = "http://fleet.example"').key == "server.issuer"


# write


CHANGES: dict[str, str | int | bool] = {
    "name": "kitchen",
    "server.issuer": "https://fleet.example",
    "server.loopback_http": True,
}
FILES = {
    "none": None,
    "empty": "",
    "comments only": "# nothing yet\n",
    "another table": "[token]\nspread = 5\n",
    "the table is there": "[server]\nca_file = '/ca.pem'\n\n[token]\nspread = 5\n",
    "the values are there": 'name = "old"\n[server]\nissuer = "https://old.example"  # was here\nloopback_http = false\n',
    "a comment behind the table's name": "[server] # where we belong\nca_file = '/ca.pem'\n",
    "spaces around the table's name": "[ server ]\nca_file = '/ca.pem'\n",
    "a commented setting": '# name = "old"\n[server]\n# issuer = "x"\n',
    "no newline at the end": "[server]\nca_file = '/ca.pem'",
    "windows": "[server]\r\nca_file = '/ca.pem'\r\n",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES.keys())
def test_what_is_written_is_read_and_the_rest_stays(file: Path, text: str | None) -> None:
    """However the file was laid out, it then holds the changes, and every setting and comment that was there."""
    if text is not None:
        file.write_text(text, encoding="utf-8")
    before = flat(text or "")
    toml_file.write(file, CHANGES)
    assert flat(file.read_text(encoding="utf-8")) == before | CHANGES
    kept = [line for line in (text or "").splitlines() if line.strip().startswith("#")]
    assert [line for line in file.read_text(encoding="utf-8").splitlines() if line in kept] == kept
    toml_file.write(file, CHANGES)
    assert flat(file.read_text(encoding="utf-8")) == before | CHANGES


@pytest.mark.parametrize(
    "text",
    ["server = { ca_file = '/ca.pem' }\n", "server.ca_file = '/ca.pem'\n", 'name = """\nold\n"""\n', "broken = \n"],
)
def test_a_file_that_cannot_be_edited_is_left_alone(file: Path, text: str) -> None:
    """A layout beyond us, or no TOML at all, is an error that says what to set, and the file stays as it was."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        toml_file.write(file, CHANGES)
    assert 'name = "kitchen"' in str(caught.value)
    assert file.read_text(encoding="utf-8") == text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text().filter(str.isprintable))
def test_any_printable_text_survives_the_file(file: Path, name: str) -> None:
    """Quotes, backslashes and anything else that prints come back as they were."""
    toml_file.write(file, {"name": name})
    assert load(file).name == name


def test_e08_m10_a_planted_name_beside_the_file_is_not_written_through(file: Path, tmp_path: Path) -> None:
    """A link where an editor's temporary file would be does not redirect the write."""
    victim = tmp_path / "victim"
    victim.write_text("# untouched\n")
    for name in ("config.toml.new", "config.toml.tmp", ".config.toml.swp", "config.toml"):
        (tmp_path / name).symlink_to(victim)
    toml_file.write(file, {"name": "kitchen"})
    assert victim.read_text() == "# untouched\n"
    assert not file.is_symlink()


def test_settings_are_no_secret(file: Path) -> None:
    """The service, which is another user than root, reads what setup wrote."""
    toml_file.write(file, {"name": "kitchen"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_the_file_stays_whose_it_is_and_open_to_whom_it_was(file: Path) -> None:
    """A mode that keeps the settings from others survives, and a new file can be read by the service whatever the umask."""
    os.umask(0o077)
    toml_file.write(file, {"name": "kitchen"})
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    file.chmod(0o640)
    os.umask(0o022)
    if os.geteuid() == 0:
        os.chown(file, 65534, 1234)
    before = file.stat()
    toml_file.write(file, {"name": "porch"})
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_what_stands_in_place_of_a_link_opens_to_nobody_else(file: Path, tmp_path: Path) -> None:
    """Its text comes from where the link led, so it is as private as that."""
    target = tmp_path / "target.toml"
    target.write_text('name = "kitchen"\n')
    target.chmod(0o640)
    file.symlink_to(target)
    toml_file.write(file, {"name": "porch"})
    assert (file.is_symlink(), stat.S_IMODE(file.stat().st_mode)) == (False, 0o640)


def test_a_write_that_fails_leaves_nothing_behind(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full card: the settings stay as they were, and no draft lies beside them."""
    toml_file.write(file, {"name": "kitchen"})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(ConfigError, match="No space left"):
        toml_file.write(file, {"name": "porch"})
    assert (load(file).name, list(file.parent.iterdir())) == ("kitchen", [file])


@needs_root
def test_who_may_write_the_folder_needs_not_own_the_file() -> None:
    """Only root can give a file away: anybody else's new one is their own, and opens to the same people."""
    with tempfile.TemporaryDirectory() as folder:  # below pytest's own folders nobody else can even look
        file = Path(folder) / "config.toml"
        file.write_text("")
        file.chmod(0o664)
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            toml_file.write(file, {"name": "porch"})
        finally:
            os.seteuid(0)
        assert (load(file).name, file.stat().st_uid, stat.S_IMODE(file.stat().st_mode)) == ("porch", 65534, 0o664)


@needs_root
def test_somebody_who_may_not_write_is_told_what_to_do(tmp_path: Path) -> None:
    """Without the right to write, the error says so and names both ways out."""
    tmp_path.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError) as caught:
            toml_file.write(tmp_path / "sub" / "config.toml", {"name": "kitchen"})
    finally:
        os.seteuid(0)
    assert "Permission denied" in str(caught.value)
    assert caught.value.hint == "run it as root, or name another --config"
