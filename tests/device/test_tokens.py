"""Several tokens at once, who may have which, and how a caller hears of it: a real agent at a scripted server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from device.living import SOURCE, Living, eventually, numbered
from device.servers import Request, reply, token
from pi_agent import oauth
from pi_agent.device import allow
from pi_agent.device.allow import Peer, Rule, refusal
from pi_agent.device.tokens import MAX_SLOTS, Slot, Tokens
from pi_agent.errors import AgentError


@pytest.mark.parametrize(
    ("default", "scopes", "asked", "is_granted"),
    [
        (("", ""), ["read"], "", False),
        (("", ""), ["*"], "", True),
        (("", ""), [], "", True),
        (("", ""), [], "read", False),
        (("", "read write"), ["read"], "", False),
        (("", "read write"), [], "read", True),
        (("", "read write"), [], "", False),
    ],
)
def test_e02_no_scope_is_not_less_than_the_rule_grants(
    default: tuple[str, str], scopes: list[str], asked: str, is_granted: bool
) -> None:
    """Who asks for no scope gets all that the server gives, so a rule does not grant it where scopes are named or configured."""
    rules = [Rule("[[local.allow]] 1", None, None, [], scopes)]
    why = refusal(rules, Peer(1000), "", asked, default=default, own_uid=7)
    assert (why == "") is is_granted
    assert is_granted or "does not grant uid 1000 a token with" in why


def test_a_token_for_another_audience_comes_on_first_demand(pi: Living) -> None:
    """A caller who names an audience waits for its token, is then served from memory, and the first one stays."""
    pi.answers.now = numbered()
    with pi.running():
        pi.state("ok")
        first = pi.token()
        other = pi.token(audience="https://api.example", scope="read")
        assert other != first
        assert pi.token(audience="https://api.example", scope="read") == other
        assert pi.token() == first
        asked = pi.posts()[-1].form
        assert (asked["resource"], asked["scope"]) == ("https://api.example", "read")
        assert [each["audience"] for each in pi.status()["tokens"]] == ["", "https://api.example"]


def test_without_rules_another_user_may_have_the_configured_token_only() -> None:
    """No [[local.allow]]: who reaches the socket gets the configured token; root and the agent's user get any."""
    default = ("https://a", "read")
    assert refusal([], Peer(1000), *default, default=default, own_uid=7) == ""
    assert "no [[local.allow]] rule" in refusal([], Peer(1000), "https://b", "read", default=default, own_uid=7)
    assert refusal([], Peer(0), "https://b", "x", default=default, own_uid=7) == ""
    assert refusal([], Peer(7), "https://b", "x", default=default, own_uid=7) == ""


RULES = [
    Rule("rule a.toml:1", 1000, None, ["https://b"], ["read", "write"]),
    Rule("rule a.toml:5", None, 50, [], []),
    Rule("rule a.toml:9", 1001, 51, ["*"], ["*"]),
]


@pytest.mark.parametrize(
    ("peer", "audience", "scope", "why"),
    [
        (Peer(1000), "https://b", "read", ""),
        (Peer(1000), "https://b", "write read", ""),
        (Peer(1000), "https://b", "read admin", "rule a.toml:1 does not grant uid 1000"),
        (Peer(1000), "https://a", "read", "rule a.toml:1 does not grant uid 1000"),
        (Peer(1000, [50]), "https://a", "read", ""),
        (Peer(1000, [50]), "https://c", "read", "rule a.toml:1, rule a.toml:5 does not grant"),
        (Peer(1001), "https://a", "read", "no [[local.allow]] rule speaks of uid 1001"),
        (Peer(1001, [51]), "https://z", "anything", ""),
        (Peer(1002), "https://a", "read", "no [[local.allow]] rule speaks of uid 1002"),
    ],
)
def test_a_rule_grants_what_it_names_and_a_refusal_names_the_rule(
    peer: Peer, audience: str, scope: str, why: str
) -> None:
    """E-02: user and group must both fit, scopes must all be granted, and the refusal says which rule it was."""
    said = refusal(RULES, peer, audience, scope, default=("https://a", "read"), own_uid=7)
    assert said.startswith(why) if why else said == ""


def test_rules_survive_the_pipe() -> None:
    """Packing and unpacking rules gives the same rules."""
    packed = allow.pack(RULES)
    assert allow.pack(allow.unpack(packed)) == packed
    assert allow.unpack("") == []


def as_daemon(pi: Living, *requests: tuple[str, str]) -> list[str]:
    """What the agent answers to these methods and targets when the user daemon asks, whom its socket lets in."""
    (pi.home / "run").chmod(0o755)
    (pi.home / "run" / "agent.sock").chmod(0o666)
    script = f"""
import os, sys
os.chdir({pi.runtime!r}); sys.path.insert(0, {str(SOURCE)!r})
from pi_agent import client
os.setgroups([]); os.setgid(1); os.setuid(1)
for method, target in {requests!r}:
    print(client.get(target, method=method, runtime="."))
"""
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_is_told_which_rule_refused(pi: Living) -> None:
    """E-02: the kernel says who calls; the answer is 403 with the rule's place, and the next step as a hint."""
    config = pi.home / "config.toml"
    pi.configure(config.read_text() + '[[local.allow]]\nuser = "daemon"\naudiences = ["https://b"]\n')
    with pi.running():
        pi.state("ok")
        first, second, third = as_daemon(
            pi, ("GET", "/v1/token"), ("GET", "/v1/token?audience=https://b&wait=5"), ("POST", "/v1/sign-out")
        )
        assert first.startswith("(403")
        assert "config.toml:4 does not grant uid 1" in first
        assert second.startswith("(200")
        assert third.startswith("(403")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_e02_another_user_does_not_get_more_than_the_configured_scope_by_naming_none(pi: Living) -> None:
    """A rule that names no scopes grants the configured ones, and ``scope=`` asks the server for all that it has."""
    config = pi.home / "config.toml"
    pi.configure(config.read_text() + '[token]\nscope = "read"\n[[local.allow]]\nuser = "daemon"\n')
    with pi.running():
        pi.state("ok")
        queries = "", "?scope=read", "?scope=&wait=5"
        answers = as_daemon(pi, *(("GET", f"/v1/token{query}") for query in queries))
        assert [answer[:4] for answer in answers] == ["(200", "(200", "(403"]


def test_a_caller_who_needs_it_longer_gets_an_early_refresh(pi: Living) -> None:
    """``min_valid`` beyond what is left brings a refresh forward; beyond what the server gives, a sentence."""
    pi.answers.now = reply(token(access_token="short", expires_in=30))
    with pi.running():
        pi.state("ok")
        pi.answers.now = numbered()
        assert pi.get("/v1/token?min_valid=60")[0] == 400  # the server's tokens live 30 s
        _, problem = pi.get("/v1/token?min_valid=60")
        assert "live 30 s" in problem["detail"]


def test_a_user_who_takes_all_slots_crowds_nobody_out() -> None:
    """E-04: who has fewer gets the least wanted one of whoever has most, up to an even share; the configured one stays."""
    tokens = Tokens("", "", 0.0)
    for number in range(MAX_SLOTS - 1):
        assert tokens.find(f"https://{number}.example", "", float(number), 1000)
    tokens.find("https://0.example", "", 50.0, 1000)
    assert tokens.find("https://more.example", "", 51.0, 1000) is None
    assert tokens.find("https://a.example", "", 51.0, 1001)
    named = [slot.audience for slot in tokens]
    assert len(named) == MAX_SLOTS
    assert {"", "https://0.example", "https://a.example"} < set(named)
    assert "https://1.example" not in named  # nobody has asked for it for longest
    assert tokens.find("https://1.example", "", 52.0, 1000) is None
    more = [tokens.find(f"https://{number}.b.example", "", 53.0, 1001) for number in range(MAX_SLOTS)]
    shares = [sum(slot.uid == uid for slot in tokens if slot is not tokens.default) for uid in (1000, 1001)]
    assert (shares, more[-1]) == ([8, 7], None)


def test_another_configured_token_takes_the_first_place() -> None:
    """Whether somebody has asked for it before or not: ``status`` and ``refresh`` find it there."""
    tokens = Tokens("", "", 0.0)
    asked = tokens.find("https://asked.example", "", 1.0)
    tokens.change("https://new.example", "", 2.0)
    assert [slot.audience for slot in tokens] == ["https://new.example", "", "https://asked.example"]
    tokens.change("https://asked.example", "", 3.0)
    assert tokens.default is asked
    assert [slot.audience for slot in tokens] == ["https://asked.example", "https://new.example", ""]


def test_the_same_scopes_are_the_same_token(pi: Living) -> None:
    """In whatever order, and however often each is named (RFC 6749 section 3.3)."""
    pi.configure('[token]\nscope = "write read"\n', "config.d/10-scope.toml")
    pi.answers.now = numbered()
    with pi.running():
        pi.state("ok")
        assert {pi.token(scope=scope) for scope in ("write read", "read write", "read write read")} == {"token-1"}
        assert {pi.token(scope=scope) for scope in ("c a", "a c", "a a  c")} == {"token-2"}
        assert [each["scope"] for each in pi.status()["tokens"]] == ["write read", "a c"]


@pytest.mark.parametrize("name", ["resource", "aud", "Audience", ""])
def test_a_parameter_that_there_is_not_gets_no_token(pi: Living, name: str) -> None:
    """A slip in its name is a 400 that names the right ones: the configured token would go to the wrong service."""
    with pi.running():
        pi.state("ok")
        status, problem = pi.get(f"/v1/token?{name}=https://api.example&min_valid=1")
        expected = f"there is no parameter {name!r}; there are audience, scope, min_valid, wait"
        assert (status, problem["detail"]) == (400, expected)


def test_the_socket_says_who_may_use_it_and_its_folder_does_not(pi: Living) -> None:
    """Started by hand the agent makes the folder as its unit does: the group of the settings gets as far as the socket."""
    old = os.umask(0o022)
    Path(pi.runtime).rmdir()
    try:
        with pi.running():
            assert Path(pi.runtime).stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(old)


def test_a_refusal_says_which_token_it_is_about(pi: Living) -> None:
    """To the caller and in the journal, where the configured token is meant when none is named."""
    with pi.running():
        pi.state("ok")
        pi.answers.now = reply({"error": "invalid_target"}, status=400)
        with pytest.raises(
            AgentError, match=r"^no token for https://api.example with scope a b; refused \(invalid_target"
        ):
            pi.token(audience="https://api.example", scope="b a")
        assert "no token for https://api.example with scope a b; refused" in pi.log()
        assert pi.status()["sentence"].startswith("token ok")


def test_a_refresh_token_that_the_server_refused_is_not_used_again() -> None:
    """The worker says so; the token that is still good stays."""
    slot = Slot("", "", 0.0)
    token = {"outcome": "token", "head": "h", "tail": "t", "expires_in": "60", "refresh_token": "again"}
    slot.keep(token, 0.5)
    slot.fail({"outcome": "failed", "reason": "answer"}, 10.0, 0.5)
    assert slot.refresh_token == "again"
    slot.fail({"outcome": "failed", "reason": "answer", "forget_refresh_token": "1"}, 20.0, 0.5)
    assert (slot.refresh_token, slot.head) == ("", "h")


def test_ra13_a_tokens_life_counts_from_before_it_was_asked_for() -> None:
    """An answer that took 20 s on its way has 20 s less to live, whatever any clock says."""
    slot = Slot("", "", 0.0)
    slot.asked = 100.0
    slot.keep({"outcome": "token", "head": "", "tail": "", "expires_in": "60"}, 0.5)
    assert (slot.left(120.0), slot.left(160.0), slot.left(161.0)) == (40, 0, -1)
    assert slot.next == 130.0


def test_refresh_waits_for_another_token(pi: Living) -> None:
    """``POST /v1/refresh`` answers with the token that the server gives now."""
    pi.answers.now = numbered()
    with pi.running():
        pi.state("ok")
        first = pi.token()
        eventually(lambda: pi.get("/v1/refresh?wait=5", "POST")[1].get("access_token") != first, "another token")


def test_a_refresh_that_fails_leaves_the_good_token(pi: Living) -> None:
    """RA-01: the server is gone, the refresh fails, and the token that is still good is served."""
    with pi.running():
        pi.state("ok")
        good = pi.token()
        pi.answers.now = reply(b"broken", status=500)
        eventually(
            lambda: pi.get("/v1/refresh?wait=3", "POST")[0] == 200 and pi.status()["state"] == "failed", "a failure"
        )
        assert pi.token(min_valid=60) == good
        assert "last attempt failed" in pi.status()["sentence"]


def test_the_refresh_token_is_used_and_given_up_on_invalid_grant(pi: Living) -> None:
    """A refresh token from the server buys the next token; ``invalid_grant`` goes back to the assertion at once."""
    used: list[str] = []

    def script(channel: object, request: Request) -> None:
        used.append(request.form["grant_type"].rpartition(":")[2])
        if request.form["grant_type"] == "refresh_token" and request.form["refresh_token"] == "rt-2":
            channel.sendall(reply({"error": "invalid_grant"}, status=400))  # type: ignore[attr-defined]
            return
        channel.sendall(reply(token(refresh_token=f"rt-{len(used)}")))  # type: ignore[attr-defined]

    pi.answers.now = script
    with pi.running() as agent:
        eventually(lambda: pi.status()["refreshes"] == 1)
        agent.send_signal(signal.SIGUSR1)
        eventually(lambda: pi.status()["refreshes"] == 2)
        agent.send_signal(signal.SIGUSR1)
        eventually(lambda: pi.status()["refreshes"] == 3)
        assert used[:4] == ["jwt-bearer", "refresh_token", "refresh_token", "jwt-bearer"]
        assert "rt-" not in pi.log() + str(pi.status())


def test_sign_out_revokes_at_the_server_and_asks_for_nothing_more(pi: Living) -> None:
    """RFC 7009: the token goes to the revocation endpoint; afterwards none is handed out until ``pi-agent refresh``."""
    pi.answers.metadata["revocation_endpoint"] = pi.server.url + "/revoke"
    with pi.running():
        pi.state("ok")
        held = pi.token()
        done = pi.run("sign-out")
        assert (done.returncode, done.stdout) == (0, "")
        assert "signed out (revoked at the server)" in done.stderr
        assert pi.posts()[-1].line.startswith("POST /revoke ")
        assert pi.posts()[-1].form["token"] == held
        assert pi.posts()[-1].form["client_assertion_type"] == oauth.CLIENT_ASSERTION_TYPE
        assert pi.get("/v1/token?wait=1")[0] == 503
        assert pi.run("status").returncode == 1
        assert pi.run("refresh").returncode == 0
        assert pi.status()["state"] == "ok"


def test_a_token_that_was_not_revoked_is_told(pi: Living) -> None:
    """The server refuses: it says so, and ends with 1, since whoever has that token may go on."""
    pi.answers.metadata["revocation_endpoint"] = pi.server.url + "/revoke"
    with pi.running():
        pi.state("ok")
        pi.answers.now = reply({"error": "invalid_client"}, status=401)
        done = pi.run("sign-out")
        assert (done.returncode, "not revoked: the server answered 401" in done.stderr) == (1, True)


NAMES = {
    "pi_agent_up",
    "pi_agent_token_expires_in_seconds",
    "pi_agent_tokens",
    "pi_agent_attempts_total",
    "pi_agent_refreshes_total",
    "pi_agent_seconds_since_token",
    "pi_agent_clock_wrong",
    "pi_agent_clock_offset_seconds",
    "pi_agent_clock_steps_total",
    "pi_agent_connections",
    "pi_agent_connections_refused_total",
    "pi_agent_failures_total",
}


def test_metrics_hold_no_identity(pi: Living) -> None:
    """G-06, G-08: Prometheus text with the agreed names, and no device id, issuer or token in it."""
    from pi_agent import client

    with pi.running():
        pi.state("ok")
        status, body = client.get("/metrics", runtime=pi.runtime)
        text = body.decode()
        assert status == 200
        assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == NAMES
        assert not any(secret in text for secret in ("pi-0123456789abcdef", pi.server.url, pi.token()))


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/token", 405),
        ("GET", "/v1/refresh", 405),
        ("GET", "/v1/token?min_valid=-1", 400),
        ("GET", "/v1/token?wait=x", 400),
        ("GET", "/v1/token?audience=a%20b", 400),
        ("GET", "/v1/token?min_valid=1&min_valid=2", 400),
    ],
)
def test_a_request_that_makes_no_sense_is_told_why(pi: Living, method: str, target: str, status: int) -> None:
    """Each is a problem document with a sentence, not a token."""
    with pi.running():
        found, problem = pi.get(target, method)
        assert (found, problem["status"]) == (status, status)
        assert problem["detail"]
