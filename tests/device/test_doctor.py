"""``pi-agent doctor``: for every fault, its first cross names the true cause; and ``config`` says where values come from."""

from __future__ import annotations

import grp
import json
import os
import socket
import tempfile
import time
from pathlib import Path

import pytest

from device.conftest import needs_root
from device.living import Living, living
from device.servers import Authority, Request, Script, reply, token
from pi_agent.device import config, preparation
from pi_agent.errors import ConfigError

QUICK = "from pi_agent.device import transport; transport.DEADLINE = 1.0"
ORDER = "config board identity key clock dns tcp tls metadata token socket sandbox flash".split()  # noqa: SIM905


def first_cross(pi: Living, first: str = "") -> tuple[str, str, str]:
    """Name, text and hint of the first finding that is bad; empty when none is."""
    done = pi.run("doctor", "--json", first=first)
    findings = json.loads(done.stdout)["findings"]
    assert [each["name"] for each in findings] == ORDER
    bad = [each for each in findings if each["verdict"] == "bad"]
    assert done.returncode == int(bool(bad))
    return (bad[0]["name"], bad[0]["text"], bad[0]["hint"]) if bad else ("", "", "")


def test_a_healthy_board(pi: Living) -> None:
    """Every check passes, a real token was had, and the running agent is asked."""
    with pi.running():
        pi.state("ok")
        done = pi.run("doctor")
        assert done.returncode == 0, done.stdout
        assert "✗" not in done.stdout
        assert "✓ token     the server gives one for 1800 s" in done.stdout
        assert "✓ socket    the agent says: token ok" in done.stdout


@needs_root
def test_root_looks_with_the_rights_of_the_agent(pi: Living) -> None:
    """As it is installed: the folder is the agent's own, and whoever asks is root."""
    for path in (pi.home / "state", *(pi.home / "state").iterdir()):
        os.chown(path, 4242, 4242)
    pi.home.chmod(0o755)
    for folder in pi.home.parents:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)  # pytest's own, so that another user gets there
    # Python itself may lie in root's home here, so what it would load later is loaded first.
    assert (
        first_cross(pi, "import encodings.ascii, encodings.idna, encodings.latin_1, pi_agent.device.keys.stores")[0]
        == "socket"
    )


@needs_root
def test_a_group_that_the_agent_is_not_in(pi: Living) -> None:
    """It could not give its socket to it, and would not start: told before, with the command."""
    os.chown(pi.home / "state", 65534, 65534)
    pi.configure((pi.home / "config.toml").read_text() + '\n[local]\ngroup = "daemon"\n')
    name, text, hint = first_cross(pi)
    assert (name, "nobody is not in the group daemon" in text) == ("config", True)
    assert hint.startswith("sudo usermod -aG daemon nobody; ")
    assert pi.run("config", "check").returncode == 2


@needs_root
def test_only_root_and_the_agent_can_tell_whether_it_is_in_the_group() -> None:
    """Somebody else, who checks the settings, is not told to join; a user without a name is told by number."""
    with tempfile.TemporaryDirectory() as folder:  # below pytest's own folders nobody else can even look
        Path(folder).chmod(0o755)
        os.chown(folder, 54321, 54321)
        flags = {"config": "/dev/null", "state": folder}
        settings = config.load(flags, {"PI_AGENT_LOCAL_GROUP": "daemon"})
        with pytest.raises(ConfigError, match="uid 54321 is not in the group daemon") as caught:
            preparation.socket_gid(settings)
        assert "--group-add" in str(caught.value.hint)
        os.seteuid(65534)
        try:
            assert preparation.socket_gid(settings) == str(grp.getgrnam("daemon").gr_gid)
        finally:
            os.seteuid(0)


def test_a_ca_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Named with its reason, at the check of TLS and by the agent; not a fault of ours."""
    with living(tmp_path) as pi:
        pi.configure(
            (pi.home / "config.toml").read_text().replace("[server]", f'[server]\nca_file = "{tmp_path}/none.pem"', 1)
        )
        done = pi.run("doctor", "--json")
        crosses = [each for each in json.loads(done.stdout)["findings"] if each["verdict"] == "bad"]
        assert crosses and all(
            "none.pem" in each["text"] and each["hint"] for each in crosses if each["name"] != "socket"
        )


def test_no_agent_is_the_sockets_fault(pi: Living) -> None:
    """All is well but nobody runs: the socket is the first cross."""
    name, text, hint = first_cross(pi)
    assert name == "socket"
    assert "no agent answers" in text
    assert "pi-agent" in hint


def test_settings_with_a_typing_error(pi: Living) -> None:
    """RA-24: the file, the line, and the name that was meant."""
    pi.configure('[server]\nisuer = "x"\n')
    name, text, hint = first_cross(pi)
    assert (name, hint) == ("config", "did you mean server.issuer?")
    assert "config.toml:2" in text


def test_a_board_that_is_none(pi: Living) -> None:
    """RA-28: another machine's cpuinfo."""
    (pi.home / "root/proc/cpuinfo").write_text("processor\t: 0\nvendor_id\t: GenuineIntel\n")
    assert first_cross(pi)[0] == "board"


def test_not_set_up(pi: Living) -> None:
    """Nothing was enrolled: identity, with the command to run."""
    (pi.home / "state/identity.json").unlink()
    name, _, hint = first_cross(pi)
    assert (name, hint.endswith(" setup https://fleet.example")) == ("identity", True)


@pytest.mark.parametrize("damage", ["missing", "garbled", "open"])
def test_a_key_that_cannot_be_used(pi: Living, damage: str) -> None:
    """RA-23, RA-30: a key that is gone, damaged or open to others is the key's fault, and is left as it is."""
    key = pi.home / "state/key.pem"
    if damage == "missing":
        key.unlink()
    elif damage == "garbled":
        key.write_bytes(b"\0" * 200)
    else:
        key.chmod(0o644)
    name, text, hint = first_cross(pi)
    assert name == "key", text
    assert hint


def test_a_card_in_another_board(pi: Living) -> None:
    """RA-25: the identity belongs to another serial."""
    cpuinfo = pi.home / "root/proc/cpuinfo"
    text = cpuinfo.read_text()
    serial = next(row for row in text.splitlines() if row.startswith("Serial"))
    cpuinfo.write_text(text.replace(serial, serial[:-4] + "beef"))
    assert first_cross(pi)[0] == "identity"


def test_a_name_that_nobody_knows(pi: Living) -> None:
    """RA-03: DNS."""
    rename(pi, "https://no-such-host.invalid")
    name, text, _ = first_cross(pi)
    assert (name, "no-such-host.invalid" in text) == ("dns", True)


def test_nobody_listens(pi: Living) -> None:
    """RA-02: TCP."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    rename(pi, f"http://127.0.0.1:{port}")
    name, text, _ = first_cross(pi)
    assert (name, "refused" in text) == ("tcp", True)


@pytest.mark.parametrize(
    ("days", "server", "words"), [(-1, "127.0.0.1", "expired"), (1, "elsewhere.example", "127.0.0.1")]
)
def test_a_certificate_that_does_not_fit(tmp_path: Path, days: int, server: str, words: str) -> None:
    """RA-08: TLS, with what is wrong about the certificate."""
    authority = Authority(tmp_path)
    with living(tmp_path / "pi", tls=authority.context(name=server, days=days)) as pi:
        pi.environment["PI_AGENT_SERVER_CA_FILE"] = str(authority.ca_file)
        name, text, _ = first_cross(pi)
        assert (name, words in text) == ("tls", True), text


def test_a_clock_that_is_a_year_off_is_named_before_tls(tmp_path: Path) -> None:
    """A-07: the certificate does not fit because of the clock; the clock is the first cross, and what the hints of both mend."""
    from email.utils import formatdate
    from time import time

    authority = Authority(tmp_path)
    with living(tmp_path / "pi", tls=authority.context(days=-1)) as pi:
        pi.environment["PI_AGENT_SERVER_CA_FILE"] = str(authority.ca_file)
        date = formatdate(time() - 400 * 86400, usegmt=True)
        pi.answers.now = reply(Date=date)
        pi.answers.metadata_date = date
        findings = {each["name"]: each for each in json.loads(pi.run("doctor", "--json").stdout)["findings"]}
        assert findings["clock"]["verdict"] == findings["tls"]["verdict"] == "bad"
        assert "400 days ahead of what the server says" in findings["clock"]["text"]
        assert findings["tls"]["hint"] == findings["clock"]["hint"]
        assert "timedatectl" in findings["clock"]["hint"]


@pytest.mark.parametrize(
    ("metadata", "words"),
    [({"issuer": "https://other.example"}, "does not call itself that"), ({}, "does not call itself that")],
)
def test_a_server_that_is_another(pi: Living, metadata: dict[str, str], words: str) -> None:
    """A-18: the server calls itself something else."""
    pi.answers.metadata = metadata
    name, text, _ = first_cross(pi)
    assert (name, words in text) == ("metadata", True)


def drips(channel: socket.socket, _: Request) -> None:
    channel.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        channel.sendall(b"x")
        time.sleep(0.1)


BROKEN: dict[str, tuple[bytes | Script, str]] = {
    "RA-04 busy": (reply({"error": "slow_down"}, status=429, Retry_After="60"), "slow_down"),
    "RA-05 500": (reply({"error": "server_error"}, status=500), "answered 500"),
    "RA-06 drips": (drips, "no answer within"),
    "RA-07 too long": (reply(b" " * 70000), "longer than 64 KiB"),
    "RA-07 compressed": (reply(b"\x1f\x8b", Content_Encoding="gzip"), "compressed"),
    "RA-09 no JSON": (reply(b"{", media="application/json"), "without a JSON object"),
    "RA-10 login page": (reply(b"<html>sign in</html>", media="text/html"), "without a JSON object"),
    "RA-11 redirect": (reply(b"", status=302, Location="http://127.0.0.1:1/"), "redirects (302)"),
}


@pytest.mark.parametrize(("fault", "words"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("place", ["metadata", "token"])
def test_a_server_that_misbehaves(pi: Living, fault: bytes | Script, words: str, place: str) -> None:
    """RA-04 to RA-11: the layer that is broken is the first cross, in the words of what is wrong with it."""
    if place == "metadata":
        pi.answers.instead_of_metadata = fault
        words = "answered 429" if words == "slow_down" else words
    else:
        pi.answers.now = fault
    name, text, _ = first_cross(pi, QUICK)
    assert (name, words in text) == (place, True), text


@pytest.mark.parametrize("answer", [{"expires_in": 0}, {"expires_in": -5}, {"expires_in": "60"}, {"access_token": ""}])
def test_a_token_that_is_none(pi: Living, answer: dict[str, object]) -> None:
    """RA-12: the server answers, and what it gives is no token."""
    pi.answers.now = reply(token(**answer))
    name, text, _ = first_cross(pi)
    assert (name, "its " in text) == ("token", True), text


def test_a_proxy_that_is_not_there(pi: Living, tmp_path: Path) -> None:
    """RA-02: it is the proxy that cannot be reached, and no word about the server; plain http does not go through it."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    pi.environment["PI_AGENT_SERVER_PROXY"] = f"http://127.0.0.1:{port}"
    assert first_cross(pi)[0] == "socket"  # all is well but that no agent runs
    authority = Authority(tmp_path)
    with living(tmp_path / "https", tls=authority.context()) as pi:
        pi.environment["PI_AGENT_SERVER_CA_FILE"] = str(authority.ca_file)
        pi.environment["PI_AGENT_SERVER_PROXY"] = f"http://127.0.0.1:{port}"
        name, text, _ = first_cross(pi)
    assert (name, f"127.0.0.1 port {port}: Connection refused" in text) == ("tcp", True), text


def test_a_clock_in_1970(pi: Living) -> None:
    """RA-15: the clock is the first cross; a server that tells its time gives a token all the same."""
    name, text, hint = first_cross(pi, "import time; time.time = lambda: 1000.0")
    assert (name, "1970-01-01" in text, "timedatectl" in hint) == ("clock", True, True)


def test_a_board_whose_facts_hang(pi: Living) -> None:
    """RA-27: a pipe in the place of /proc/cpuinfo is no board, and holds up nobody."""
    cpuinfo = pi.home / "root/proc/cpuinfo"
    cpuinfo.unlink()
    os.mkfifo(cpuinfo)
    name, text, _ = first_cross(pi)
    assert (name, "cpuinfo" in text) == ("board", True), text


def test_settings_that_are_damaged(pi: Living) -> None:
    """RA-24: no TOML at all."""
    pi.configure("[server\n")
    assert first_cross(pi)[0] == "config"


def test_an_identity_that_is_damaged_or_newer(pi: Living) -> None:
    """RA-37, RA-23: state of a newer version, and half a file, are the identity's fault, and are left as they are."""
    path = pi.home / "state/identity.json"
    for text, words in (('{"version": 99}', "newer"), ("{", "damaged")):
        path.write_text(text)
        name, said, _ = first_cross(pi)
        assert (name, words in said, path.read_text()) == ("identity", True, text)


@pytest.mark.parametrize(
    ("error", "words"),
    [("authorization_pending", "pi-fleet approve"), ("invalid_grant", ""), ("temporarily_unavailable", "")],
)
def test_a_server_that_refuses(pi: Living, error: str, words: str) -> None:
    """RA-14: the trial token is refused, in the server's own word."""
    pi.answers.now = reply({"error": error}, status=400)
    name, text, hint = first_cross(pi)
    assert (name, error in text, words in hint) == ("token", True, True)


def test_what_hangs_on_a_cross_is_not_tried(pi: Living) -> None:
    """Nothing above the cause is shown as wrong."""
    rename(pi, "https://no-such-host.invalid")
    shown = pi.run("doctor").stdout
    assert "- token     not tried: dns comes first" in shown
    assert pi.posts() == []


def rename(pi: Living, url: str) -> None:
    """Make the identity name another server."""
    path = pi.home / "state/identity.json"
    path.write_text(path.read_text().replace(pi.server.url, url))
    path.chmod(0o600)
    pi.configure((pi.home / "config.toml").read_text().replace(pi.server.url, url))


def test_show_says_where_every_value_comes_from(pi: Living) -> None:
    """flags > variables > drop-ins > file > preset > built in."""
    pi.configure('[token]\nscope = "a"\nspread = 7\n[server]\npreset = "okta"\n')
    pi.configure('[token]\nscope = "b"\n[[local.allow]]\ngroup = "daemon"\nscopes = ["b"]\n', "config.d/5-b.toml")
    pi.environment["PI_AGENT_NAME"] = "kitchen"
    done = pi.run("config", "show", "--json")
    found = {name: (each["value"], each["origin"]) for name, each in json.loads(done.stdout)["settings"].items()}
    assert found["name"] == ("kitchen", "PI_AGENT_NAME")
    assert found["token.scope"] == ("b", f"{pi.home}/config.d/5-b.toml:2")
    assert found["server.preset"] == ("okta", f"{pi.home}/config.toml:5")
    assert found["server.grant"] == ("client_credentials", "preset okta")
    assert found["token.assertion_lifetime"] == (60, "built in")
    assert found["state"] == (str(pi.home / "state"), "the command line")
    text = pi.run("config", "show", "--origin").stdout
    assert f'scope = "b"{" " * 33}# {pi.home}/config.d/5-b.toml:2' in text
    assert 'group = "daemon"\nscopes = ["b"]' in text


def test_what_show_prints_is_a_settings_file(pi: Living, tmp_path: Path) -> None:
    """The output of ``config show`` read back gives the same output."""
    text = pi.run("config", "show").stdout
    pi.configure(text)
    assert pi.run("config", "show").stdout == text


def test_check_names_what_is_wrong(pi: Living) -> None:
    """A user who does not exist, a key that a rule does not have, a value out of range: file, line, and the name meant."""
    assert pi.run("config", "check").returncode == 0
    for text, words in (
        ('[[local.allow]]\nuser = "nobody-by-that-name"\n', "config.toml:1: there is no user 'nobody-by-that-name'"),
        ('[[local.allow]]\nusr = "x"\n', "did you mean user?"),
        ("[token]\nspread = 9999\n", "token.spread in"),
        ('[server]\ngrant = "password"\n', "must be one of jwt-bearer, client_credentials"),
        ('[server]\ngrant = "client_credentials"\n', "client_credentials needs a client that authenticates"),
    ):
        pi.configure(text)
        done = pi.run("config", "check")
        assert done.returncode == 2
        assert words in done.stderr
