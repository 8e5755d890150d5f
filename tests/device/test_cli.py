"""The command line as a person meets it: what it prints where, how it ends, and the next step after an error."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device.registrar import Registrar, registering
from device.resident import Agent, Authority, Home, a_home, an_authority, refusal, until
from device.servers import reply
from pi_agent import __version__, client
from pi_agent.device import cli, files, identity
from pi_agent.device.cli import main
from pi_agent.device.commands import COMMANDS, setup
from pi_agent.errors import ConfigError, KeyFileError


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """An enrolled board whose server is not there, and an environment that points to it."""
    with a_home("http://127.0.0.1:1/token") as home:
        for name, value in home.variables.items():
            monkeypatch.setenv(name, value)
        yield home


@pytest.fixture
def bare(home: Home) -> Home:
    """A board that nobody has set up yet: no state folder at all."""
    for path in home.state.iterdir():
        path.unlink()
    home.state.rmdir()
    return home


Said = tuple[int, str, str]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Any:
    """``say("status", "--json")`` gives exit code, stdout and stderr."""

    def run(*arguments: str) -> Said:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


# Help


def test_help_ends_with_exit_codes_and_an_example_that_works(say: Any) -> None:
    """The first screen names every command, every exit code and two commands to begin with."""
    code, out, err = say("--help")
    assert (code, err) == (0, "")
    assert all(f"\n    {name}" in out for name in COMMANDS)
    assert out.endswith(
        "exit codes: 0 done; 1 failed; 2 usage; 3 not found; 4 not approved; 5 unreachable; 6 conflict; 130 interrupted\n"
        "\n"
        "example:\n"
        "  sudo pi-agent setup https://fleet.example\n"
        "  pi-agent token --header | curl -H @- https://api.example/telemetry\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(say: Any, command: str) -> None:
    """On stdout, with its usage line, and nothing is done."""
    code, out, err = say(command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: pi-agent {command}")


def test_version(say: Any) -> None:
    """One line."""
    assert say("--version") == (0, f"pi-agent {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [(), ("token", "--nonsense"), ("setup",), ("token", "--min-valid", "soon"), ("key", "move", "a b")]
)
def test_a_wrong_command_line_is_2_and_leaves_stdout_alone(say: Any, arguments: tuple[str, ...]) -> None:
    """Usage of the command that was asked for, the reason and where to look go to stderr."""
    code, out, err = say(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"usage: {' '.join(['pi-agent', *itertools.takewhile(str.isalpha, arguments)])} [-h]")
    assert "\nerror: " in err and "--help" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("stauts",), "did you mean status? pi-agent --help lists the commands"),
        (("key", "rotat"), "did you mean rotate? pi-agent key --help lists the commands"),
        (("zzz",), "pi-agent --help lists the commands"),
        (("token", "--jsn"), "did you mean --json? pi-agent token --help lists the options"),
        (("token", "--runtime", "/x"), "--runtime stands before the command: pi-agent --runtime ..."),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(say: Any, arguments: tuple[str, ...], hint: str) -> None:
    """A command or an option that is nearly one, or that stands in the wrong place."""
    code, out, err = say(*arguments)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"hint: {hint}"


def test_help_is_a_command_too(say: Any) -> None:
    """``help key move`` is ``key move --help``, and ``help`` alone is the page of all."""
    assert say("help", "key", "move") == say("key", "move", "--help")
    assert say("help") == say("--help")


def test_a_hint_is_about_the_agent_of_the_line(home: Home, say: Any, tmp_path: Path) -> None:
    """What it says to type reaches the same settings and folders, also in what the doctor says."""
    nowhere = str(tmp_path / "no such.toml")
    for command in ("token", "doctor"):
        code, out, err = say("--config", nowhere, "--runtime", str(tmp_path), command)
        assert code != 0
        assert f"pi-agent --config '{nowhere}' " in out + err and f" --runtime {tmp_path} " in out + err


# Before anything is set up


def test_run_on_a_board_that_is_not_set_up(bare: Home, say: Any) -> None:
    """2, and the command that sets it up."""
    assert say("run") == (
        2,
        "",
        "error: this board is not set up yet\nhint: sudo pi-agent setup https://fleet.example\n",
    )


@pytest.mark.parametrize(("command", "expected"), [("token", 5), ("status", 3), ("refresh", 5), ("sign-out", 5)])
def test_without_an_agent(home: Home, say: Any, command: str, expected: int) -> None:
    """status is 3 (not found), the others 5 (unreachable); all say how to start one."""
    (home.folder / "config.toml").touch()
    code, out, err = say(command)
    assert (code, out) == (expected, "")
    assert err == (
        f"error: no agent answers at {home.runtime}/agent.sock: No such file or directory\n"
        "hint: systemctl status pi-agent; or start it by hand: pi-agent run\n"
    )


@pytest.mark.parametrize("line", ["token", "status", "wait --timeout 0.1"])
def test_before_set_up_the_command_is_setup(bare: Home, say: Any, line: str) -> None:
    """Where there are no settings, no agent can be running: what is missing is named, and what makes it."""
    _, out, err = say(*line.split())
    assert out == ""
    assert err == (
        f"error: no agent is running: there is no {bare.folder}/config.toml\n"
        "hint: sudo pi-agent setup https://fleet.example\n"
    )


def test_what_takes_root_says_so(bare: Home, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """To somebody who is not root, a folder of the agent's that does not open is no riddle."""

    def denied(*_: object, **__: object) -> None:
        raise KeyFileError("cannot open /x: Permission denied", path="/x", hint="ls -ld /") from PermissionError()

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(files, "make_directory", denied)
    code, _, err = say("setup", "https://fleet.example")
    assert (code, err) == (
        2,
        "error: cannot open /x: Permission denied\nhint: it takes root: sudo pi-agent setup https://fleet.example\n",
    )


@pytest.mark.parametrize("command", ["token", "status"])
def test_with_json_an_error_is_json_too(home: Home, say: Any, command: str) -> None:
    """The document begins with its schema; the words are on stderr as well."""
    code, out, err = say(command, "--json")
    assert code in (3, 5)
    assert out.startswith('{"schema": "pi-agent.error/1"')
    assert json.loads(out)["hint"]
    assert err.startswith("error: ")


def test_a_broken_key_stops_before_it_starts(home: Home, say: Any) -> None:
    """RA-23: a damaged identity is named, with the file, and systemd is told that trying again is of no use."""
    (home.state / "identity.json").write_text("{")
    code, _, err = say("run")
    assert code == 2
    assert err.startswith(f"error: {home.state}/identity.json is damaged; it was left as it is\nhint: ")


def test_ra24_settings_that_are_wrong_are_2(home: Home, say: Any) -> None:
    """With file, line and the nearest name."""
    (home.folder / "config.toml").write_text('[server]\nisuer = "https://x.example"\n')
    assert say("run") == (
        2,
        "",
        f"error: {home.folder}/config.toml:2: there is no setting 'server.isuer'\nhint: did you mean server.issuer?\n",
    )


def test_a_machine_that_is_no_pi_is_3(home: Home, say: Any) -> None:
    """What is not found is not a failure of ours."""
    (home.root / "proc" / "cpuinfo").write_text("vendor_id\t: AuthenticAMD\n")
    code, _, err = say("run")
    assert code == 3
    assert err.startswith("error: not a Raspberry Pi")


def test_debug_shows_the_traceback(home: Home) -> None:
    """And only then."""
    done = home.run("--debug", "token")
    assert "Traceback" in done.stderr
    assert "Traceback" not in home.run("token").stderr


# Setup


@pytest.fixture
def registrar() -> Iterator[Registrar]:
    with registering(int(time.time())) as registrar:
        yield registrar


def test_setup_enrolls_and_says_what_comes_next(bare: Home, registrar: Registrar, say: Any) -> None:
    """4 while an operator has to approve; key, identity and settings are kept; a second time changes nothing."""
    code, out, err = say("setup", registrar.issuer, "--name", "kitchen")
    assert code == 4
    known = identity.load(bare.state)
    assert re.search(rf"^device id +{re.escape(known.client_id)}$", out, re.M)
    assert f"pi-fleet approve {known.client_id}" in out
    assert err.startswith("next: ")
    assert (known.issuer, known.token_endpoint) == (registrar.issuer, registrar.issuer + "/oauth/token")
    settings = (bare.folder / "config.toml").read_text()
    assert f'issuer = "{registrar.issuer}"' in settings
    assert 'name = "kitchen"' in settings
    registrar.status = "approved"
    assert say("setup", registrar.issuer)[0] == 0
    assert identity.load(bare.state) == known


def test_setup_as_json(bare: Home, registrar: Registrar, say: Any) -> None:
    """One document on stdout, its schema first."""
    registrar.status = "approved"
    code, out, _ = say("setup", registrar.issuer, "--json")
    document = json.loads(out)
    assert (code, next(iter(document)), document["status"]) == (0, "schema", "approved")


@pytest.mark.parametrize(
    ("status", "step"),
    [
        ("rejected", "pi-fleet approve {id}"),
        ("quarantined", "pi-fleet release {id}"),
        ("revoked", "sudo pi-agent wipe-identity --yes && sudo pi-agent setup {server}"),
    ],
)
def test_setup_of_a_board_that_was_turned_away_says_what_comes_next(
    bare: Home, registrar: Registrar, say: Any, status: str, step: str
) -> None:
    """4, with the command that leads back; a restart would not."""
    registrar.status = status
    code, _, err = say("setup", registrar.issuer)
    wanted = step.format(id=identity.load(bare.state).client_id, server=registrar.issuer)
    assert (code, wanted in err, "restart" in err) == (4, True, False)


@pytest.mark.parametrize(
    ("host", "given", "simulated", "name"),
    [
        ("attic.example.org", (), False, "attic"),
        ("attic", ("--name", "kitchen"), False, "kitchen"),
        ("raspberrypi", (), False, ""),
        ("attic", (), True, ""),
    ],
)
def test_a_board_without_a_name_is_called_like_its_host(
    bare: Home,
    registrar: Registrar,
    say: Any,
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    given: tuple[str, ...],
    simulated: bool,
    name: str,
) -> None:
    """Unless that is the image's name, or the board is simulated here."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    if not simulated:
        monkeypatch.setattr(setup, "is_simulated", lambda settings: False)
    say("setup", registrar.issuer, *given)
    assert registrar.names == [name]


def test_setup_leaves_a_link_to_the_authorities_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service follows it anew after they were renewed; neither it nor its target may be where the service sees nothing."""
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(setup, "HIDDEN", (str(tmp_path / "home"),))
    monkeypatch.chdir(tmp_path)
    for path in ("ca-1.pem", "home/ca.pem"):
        Path(path).touch()
    for link, target in (("ca.pem", "ca-1.pem"), ("in", "home/ca.pem"), ("home/out", "../ca-1.pem")):
        Path(link).symlink_to(target)
    assert setup._ca_file("ca.pem", None) == setup._ca_file("home/../ca.pem", None) == str(tmp_path / "ca.pem")
    for link, hidden in (("in", "ca.pem"), ("home/out", "out")):
        with pytest.raises(
            ConfigError, match=f"the service cannot read {tmp_path}/home/{hidden}: it sees nothing below"
        ):
            setup._ca_file(link, None)
        assert setup._ca_file(link, "another.toml") == str(tmp_path / link)


def test_setup_waits_for_approval(bare: Home, registrar: Registrar, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --wait it asks again until somebody has approved the board."""
    monkeypatch.setattr(setup, "POLL", 0.05)
    threading.Timer(0.2, lambda: setattr(registrar, "status", "approved")).start()
    assert say("setup", registrar.issuer, "--wait", "20")[0] == 0


def test_setup_at_another_server_is_a_conflict(home: Home, registrar: Registrar, say: Any) -> None:
    """6, and what leaving the first one would take."""
    code, _, err = say("setup", registrar.issuer)
    assert code == 6
    assert "https://fleet.example" in err
    assert "wipe-identity" in err


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("fleet.example", 2, "not a usable https URL"),
        ("http://fleet.example", 2, "plain http"),
        ("https://[::1", 2, "not a usable https URL"),
        ("http://127.0.0.1:1", 5, "connection refused"),
        ("https://fleet.invalid", 5, "not known to DNS"),
    ],
)
def test_setup_with_an_address_that_does_not_work(bare: Home, say: Any, url: str, code: int, words: str) -> None:
    """2 for an address that cannot be used, 5 for a server that cannot be reached."""
    found, out, err = say("setup", url)
    assert (found, out) == (code, "")
    assert words in err


def test_g01_an_enrollment_token_comes_from_a_file_and_is_never_shown(
    bare: Home, registrar: Registrar, say: Any
) -> None:
    """Not on the command line, not in an answer, not in an error."""
    path = bare.folder / "token"
    path.write_text("once-canary-4711\n")
    registrar.status = "approved"
    code, out, err = say("setup", registrar.issuer, "--enrollment-token-file", str(path))
    assert code == 0
    assert "canary" not in out + err
    sent = [request.headers.get("authorization") for request in registrar.server.requests if "register" in request.line]
    assert sent == ["Bearer once-canary-4711"]


@pytest.mark.parametrize("content", ["once-canary-4711\n# from the office\n", "once canary", "once-canary\x00"])
def test_g01_an_enrollment_token_that_is_none_is_2_and_not_shown(bare: Home, say: Any, content: str) -> None:
    """A file with more in it is told apart before anything is sent."""
    path = bare.folder / "token"
    path.write_text(content)
    code, _, err = say("setup", "http://127.0.0.1:1", "--enrollment-token-file", str(path))
    assert code == 2
    assert "one word" in err
    assert "canary" not in err
    assert say("setup", "http://127.0.0.1:1", "--enrollment-token-file", str(bare.folder / "none"))[0] == 2


def test_d07_a_server_cannot_speak_to_the_terminal(bare: Home, registrar: Registrar, say: Any) -> None:
    """What it says is printed without escape sequences."""
    registrar.registration = reply({"error": "no\x1b[2J", "error_description": "\x1b]0;owned\x07go away"}, status=403)
    code, out, err = say("setup", registrar.issuer)
    assert code == 4
    assert "go away" in err
    assert "\x1b" not in out + err
    assert "\x07" not in out + err


# With an agent


@pytest.fixture
def authority() -> Iterator[Authority]:
    with an_authority() as authority:
        yield authority


@pytest.fixture
def agent(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    with a_home(authority.server.url + "/token") as home:
        for name, value in home.variables.items():
            monkeypatch.setenv(name, value)
        with home.start() as agent:
            yield agent


def test_a_token_alone_on_stdout(agent: Agent, say: Any) -> None:
    """No line end for a pipe, as a header on a line, or as JSON with its expiry."""
    until(agent.token)
    assert say("token") == (0, "canary-token-0001", "")
    assert say("token", "--header") == (0, "Authorization: Bearer canary-token-0001\n", "")
    code, out, err = say("token", "--json")
    document = json.loads(out)
    assert (code, err, out.startswith('{"schema": "pi-agent.token/1"')) == (0, "", True)
    assert (document["access_token"], document["token_type"]) == ("canary-token-0001", "Bearer")
    assert 0 < document["expires_in"] <= 1800


def test_a_wish_that_makes_no_sense_is_2(agent: Agent, say: Any) -> None:
    """The agent's sentence, and no token."""
    until(agent.token)
    for wish in ("-5", "1234567"):
        code, out, err = say("token", "--min-valid", wish)
        assert (code, out) == (2, "")
        assert "whole number" in err


def test_status_in_a_dozen_lines(agent: Agent, say: Any) -> None:
    """State, board, server and id; as JSON the agent's own document, schema first."""
    until(agent.token)
    code, out, err = say("status")
    assert (code, err) == (0, "")
    assert "token ok" in out
    assert "2B, 1 GB, revision a01041" in out
    assert "https://fleet.example" in out
    assert len(out.splitlines()) <= 12
    code, out, _ = say("status", "--json")
    assert (code, next(iter(json.loads(out)))) == (0, "schema")
    assert "canary" not in out


def test_a_refused_board_is_4_with_the_reason(agent: Agent, authority: Authority, say: Any) -> None:
    """token and status both say so, in the server's words."""
    authority.answer = lambda number: refusal("invalid_grant", error_description="this device was revoked")
    until(lambda: (agent.status() or {}).get("failure"))
    for command in ("token", "status"):
        code, out, err = say(command)
        assert code == 4
        assert "this device was revoked" in out + err
        assert "canary" not in out + err


def test_a_refresh_that_is_refused_is_4_though_the_token_is_good(agent: Agent, authority: Authority, say: Any) -> None:
    """0 when there is a new token; the one from before goes on, and a script still learns that no other one came."""
    until(agent.token)
    assert say("refresh")[0] == 0
    authority.answer = lambda number: refusal("invalid_grant", error_description="this device was revoked")
    code, _, err = say("refresh")
    assert (code, say("token")[0]) == (4, 0) and "token ok" in err and "this device was revoked" in err


def test_refresh_tells_of_the_token_that_was_asked_for(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scopes are the same in any order, what is not named is as configured, and a token that came and went is one."""

    def slot(audience: str, scope: str, outcome: str) -> dict[str, str]:
        return {"audience": audience, "scope": scope, "outcome": outcome, "message": outcome}

    tokens = [
        slot("", "b a", "token"),
        slot("x", "admin", "refused"),
        slot("x", "b a", "failed"),
        slot("", "c d", "failed"),
    ]
    monkeypatch.setattr(client, "renew", lambda **_: "t")
    monkeypatch.setattr(client, "ask", lambda *_, **__: {"sentence": "as configured", "tokens": tokens})
    assert say("refresh") == say("refresh", "--scope", "a b") == (0, "", "as configured\n")
    assert say("refresh", "--audience", "x")[0] == say("refresh", "--scope", "d c")[0] == 5
    assert say("refresh", "--audience", "x", "--scope", "admin")[0] == 4
    assert say("refresh", "--audience", "gone") == (0, "", "token ok\n")


def test_d07_what_a_server_says_is_harmless_in_every_command(agent: Agent, authority: Authority, say: Any) -> None:
    """Escape sequences do not come out of status, token or the log."""
    authority.answer = lambda number: refusal("invalid_grant", error_description="no\x1b]0;owned\x07 \u202e")
    until(lambda: (agent.status() or {}).get("failure"))
    text = "".join("".join(say(*words)[1:]) for words in (("token",), ("status",), ("status", "--json"))) + agent.said()
    assert not set(text) & set("\x1b\x07\u202e")


def test_a_reader_that_leaves_is_no_crash(agent: Agent) -> None:
    """pi-agent status | true."""
    until(agent.token)
    command = " ".join(f"'{word}'" for word in agent.home.command("status", "--json")) + " | true"
    done = subprocess.run(
        ["sh", "-c", command], env=agent.home.environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert "Traceback" not in done.stderr


OTHERS = [
    b"",
    b"220 smtp\r\n",
    *(b"HTTP/1.1 200 OK\r\n\r\n" + body for body in (b"", b"[]", b"{}")),
    b"HTTP/1.1 503 No\r\n\r\n{}",
]


@pytest.mark.parametrize("answer", OTHERS)
def test_something_else_on_the_socket_is_no_agent(home: Home, say: Any, answer: bytes) -> None:
    """5, and no token out of nothing."""
    home.runtime.mkdir()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(home.runtime / "agent.sock"))
        door.listen(5)

        def serve() -> None:
            channel, _ = door.accept()
            with channel:
                channel.recv(4096)
                channel.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        code, out, err = say("token")
        thread.join()
    assert (code, out) == (5, "")
    assert err.startswith("error: what answers on the socket is not the agent")


# Forgetting


def test_wipe_identity_asks_first(home: Home, say: Any) -> None:
    """Without a terminal it wants --yes; with it key and identity are gone, and the rest stays."""
    (home.folder / "config.toml").write_text('name = "kitchen"\n')
    code, _, err = say("wipe-identity")
    assert (code, err) == (2, "error: this forgets the key for good\nhint: pi-agent wipe-identity --yes\n")
    assert (home.state / "key.pem").exists()
    code, _, err = say("wipe-identity", "--yes")
    assert (code, "still runs" in err) == (0, False)
    assert not list(home.state.glob("*.*"))
    assert (home.folder / "config.toml").exists()
    assert say("run")[0] == 2


def test_every_command_can_be_imported() -> None:
    """The table of commands and the files behind it agree."""
    files = {path.stem.replace("_", "-") for path in (Path(cli.__file__).parent / "commands").glob("*.py")}
    assert set(COMMANDS) <= files
    assert all(cli._command(name).HELP for name in COMMANDS)


def test_wiping_under_a_running_agent_says_so(agent: Agent, say: Any) -> None:
    """It goes on with the token that it has, until it is stopped."""
    until(agent.token)
    code, _, err = say("wipe-identity", "--yes")
    assert (code, say("token")[0]) == (0, 0) and "pi-agent still runs" in err and "systemctl stop pi-agent" in err


def test_the_root_of_the_environment_is_read_by_board_too(
    home: Home, say: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by every other command; an argument goes before it."""
    monkeypatch.setenv("PI_AGENT_ROOT", str(home.folder / "none"))
    assert say("board")[0] != 0
    monkeypatch.setenv("PI_AGENT_ROOT", home.variables["PI_AGENT_ROOT"])
    assert say("board", "--json")[0] == 0
