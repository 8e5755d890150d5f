"""What a server shows of itself: health, metrics, the log (requirements G-01 to G-10)."""

from __future__ import annotations

import base64
import json
import logging
import re
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, urlencode

from fleet.live import LiveFleet
from fleet.support import BOARD, FORM, Pi, ask, exchange
from issuing.conftest import start
from pi_agent.fleet import counters, logs
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.metrics import lines as show_metrics

FLEET = Path(counters.__file__).parent


# Metrics and health.


def test_g07_metrics_are_for_this_machine_and_for_operators(app: Application) -> None:
    """The issuer is https and this server speaks none, so a proxy is in front: loopback is anybody, and is turned away."""
    assert exchange(app, "GET", "/metrics").status == 401
    assert exchange(app, "GET", "/metrics", client=("127.0.0.1", 5)).status == 401


def test_g07_health_says_no_more_than_it_must(app: Application) -> None:
    """Alive, ready, and neither a version nor a path."""
    assert exchange(app, "GET", "/healthz").json == {"status": "ok"}
    assert exchange(app, "GET", "/readyz").json == {"status": "ok"}


# G-08: what dashboards are built on.
NAMES = {
    "pi_fleet_token_requests_total",
    "pi_fleet_requests_total",
    "pi_fleet_token_batches_total",
    "pi_fleet_token_batched_total",
    "pi_fleet_refused_connections_total",
    "pi_fleet_database_errors_total",
    "pi_fleet_devices",
    "pi_fleet_clone_alarms_total",
    "pi_fleet_token_requests_waiting",
    "pi_fleet_signing_key_age_seconds",
    "pi_fleet_clock_behind_seconds",
}


def metrics(server: LiveFleet) -> dict[str, float]:
    text = server.request("GET", "/metrics").body.decode()
    return {name: float(value) for name, value in re.findall(r"^([^#\s]\S*) (\S+)$", text, re.MULTILINE)}


def test_g08_what_happens_is_counted(server: LiveFleet) -> None:
    """Tokens, replays, forgeries, batches, devices; on loopback with a loopback issuer nobody has to sign in."""
    pi = server.enroll()
    before = metrics(server)
    body = pi.form()
    for each in (body, body, b"nonsense"):
        server.ask(each)
    after = metrics(server)

    def more(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    family = "pi_fleet_token_requests_total"
    assert [more(f'{family}{{outcome="{outcome}"}}') for outcome in ("ok", "replayed", "invalid_request")] == [1, 1, 1]
    assert more("pi_fleet_token_batched_total") == 2
    assert after['pi_fleet_devices{status="approved"}'] >= 1
    assert {name.partition("{")[0] for name in after} <= NAMES


def test_g06_labels_are_words_of_ours(server: LiveFleet) -> None:
    """Paths, ids and texts of strangers add no series."""
    before = len(metrics(server))
    for number in range(20):
        server.request("GET", f"/nothing/{number}")
        server.request("POST", "/oauth/token", urlencode({"grant_type": f"g{number}"}).encode(), {"content-type": FORM})
    assert len(metrics(server)) <= before + 1


def test_g08_the_names_are_frozen() -> None:
    """Nobody's dashboard breaks without this test, ours neither."""
    assert set(counters.FAMILIES) <= NAMES
    assert set(re.findall(r"pi_fleet_\w+", (FLEET / "grafana.json").read_text())) <= NAMES


def test_g08_clone_alarms_are_counted(app: Application, pi: Pi) -> None:
    """By kind, each from zero, and as the audit log has them, so that all servers say the same, also after a restart."""
    family = "pi_fleet_clone_alarms_total"

    def alarms() -> dict[str, str]:
        found = "".join(show_metrics(None, int(time.time())))
        return dict(re.findall(rf'^{family}{{kind="(.+)"}} (\d+)$', found, re.MULTILINE))

    assert alarms() == dict.fromkeys(("clone", "board-changed", "retired-key", "same-serial"), "0")
    assert ask(app, pi.form(pi.assertion(board=BOARD | {"serial": "00000000deadbeef"}))).status == 400
    assert {kind: count for kind, count in alarms().items() if count != "0"} == {"board-changed": "1"}


# The log.


def test_g05_a_line_cannot_be_forged() -> None:
    """Control characters are escaped, and long texts are cut."""
    record = logging.LogRecord("x", logging.ERROR, "", 1, "a\nforged \x1b[31m\u202e" + "y" * 5000, (), None)
    for form in (logs.TextForm(), logs.JsonForm()):
        line = form.format(record)
        assert "\n" not in line and "\x1b" not in line and "\u202e" not in line and len(line) < 2000


def test_g03_libraries_that_tell_too_much_are_not_heard() -> None:
    """Neither what they log at DEBUG and INFO, nor their warnings, also where somebody turns all of the log up."""
    program = "\n".join(
        (
            "import logging; from pi_agent.fleet import logs; logs.set_up('text')",
            "logging.getLogger().setLevel(logging.DEBUG)",
            "for name in ('requests_oauthlib', 'oauthlib.oauth2', 'urllib3.connectionpool', 'psycopg.pool', 'uvicorn.error'):",
            "    [logging.getLogger(name).log(level, 'canary') for level in (10, 20, 30)]",
            "logging.getLogger('pi_agent.fleet').info('ours')",
        )
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "canary" not in done.stderr and "info: ours" in done.stderr


def test_g04_a_traceback_has_no_values() -> None:
    """Where it happened, and neither what was said nor the source line."""
    secret = "canary-in-a-local"
    try:
        raise ValueError(secret)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 1, "it failed", (), sys.exc_info())
    said = logs.TextForm().format(record) + logs.JsonForm().format(record)
    assert Path(__file__).name in said and secret not in said


def test_g09_the_same_complaint_is_made_ever_more_seldom() -> None:
    """Seven days of failing every ten seconds are under 200 lines, which account for all; after a silence it is told at once."""
    now = [0.0]
    quiet = logs.Quiet(lambda: now[0])

    def said(words: str = "down: %s") -> str:
        record = logging.LogRecord("x", logging.WARNING, "f.py", 7, words, ("why",), None)
        return record.getMessage() if quiet.filter(record) else ""

    lines = []
    for _ in range(7 * 8640):
        lines += [(now[0], line)] if (line := said()) else []
        now[0] += 10
    assert [at for at, _ in lines[:5]] == [0, 60, 180, 420, 900] and len(lines) < 200
    missed = [int(found[1]) for _, line in lines if (found := re.search(r"\(and (\d+) times more", line))]
    assert lines[0][1] == "down: why" and lines[1][1] == "down: why (and 5 times more in 1 min)"
    assert 0 <= 7 * 8640 - len(lines) - sum(missed) < 360  # but for those since the last line
    assert said("up again: %s")
    now[0] += 7200
    assert said()
    now[0] += 60
    assert said()


def test_g10_canaries_are_nowhere(tmp_path: Path) -> None:
    """A whole life with marked secrets, and with a database that fails: none of them is in the log, in an answer about
    anything else, in a process list or in a file; the keys that sign are in the database alone.
    """
    data = tmp_path / "data"
    server = start(data, "", "--log", "json", "--busy-timeout", "0.1")
    seen = b""
    try:
        made = json.loads(
            server.cli("resource-server", "add", "api", "--audience", "https://api.test", "--json").stdout
        )
        operator = server.cli("token", "make", "operator", "--role", "admin").stdout.strip()
        link = server.cli("sign-in-link").stdout.split()[0].rpartition("/")[2]
        pi = server.enroll()
        assertion, unused = pi.assertion(), pi.assertion()
        access = server.ask(pi.form(assertion)).json["access_token"]
        enrolling = server.cli("enrollment-token", "--uses", "1").stdout.strip()
        canaries = [enrolling, made["client_secret"], operator, link, assertion, unused, access]
        basic = base64.b64encode(f"{made['client_id']}:{made['client_secret']}".encode()).decode()
        form = {"content-type": FORM, "authorization": f"Basic {basic}"}
        registration = json.dumps(pi.registration(None)).encode()
        requests = [
            ("POST", "/oauth/introspect", f"token={access}".encode(), form),
            ("POST", "/oauth/revoke", f"token={access}".encode(), form),
            ("POST", "/oauth/register", registration, {"content-type": "x", "authorization": f"Bearer {enrolling}"}),
            *(("GET", path, b"", {}) for path in ("/metrics", "/oauth/jwks", "/healthz", f"/nothing/{access}")),
            *(("GET", path, b"", {"authorization": f"Bearer {operator}"}) for path in ("/api/v1/devices", "/nothing")),
        ]
        bodies = [pi.form(assertion), pi.form(unused + "x"), f"token={access}".encode(), access.encode()]
        with closing(sqlite3.connect(data / "fleet.sqlite3", isolation_level=None)) as other:
            for begin in ("SELECT 1", "BEGIN IMMEDIATE"):  # once as ever, and once while nothing can be written
                other.execute(begin)
                for each in requests:
                    reply = server.request(*each)
                    seen += reply.body + str(reply.headers).encode()
                seen += b"".join(server.ask(body).body for body in bodies)
            assert server.ask(pi.form(unused)).status == 503
        for words in (
            "devices",
            "audit --all",
            "resource-server list",
            "keys list",
            "token list",
            "enrollment-token list",
        ):
            done = server.cli(*words.split())
            seen += done.stdout.encode() + done.stderr.encode()
        seen += b"".join(Path(f"/proc/{server.process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    finally:
        _, said = server.stop()
    with closing(sqlite3.connect(data / "fleet.sqlite3")) as database:
        ((pem,),) = database.execute("SELECT private_key FROM fleet_signingkey").fetchall()
    files = {path.name: path.read_bytes() for path in data.iterdir() if path.is_file()}
    assert "the database failed" in said and leaks([pem.split("\n")[1]], files["fleet.sqlite3"])
    others = b"".join(content for name, content in files.items() if not name.startswith("fleet.sqlite3"))
    assert leaks([*canaries, pem.split("\n")[1]], seen + said.encode() + others) == []
    assert leaks(canaries, b"".join(files.values())) == []
    assert leaks(canaries, b"x" + quote(canaries[0]).encode() + b"x") == [canaries[0]]  # the scan itself can find one


def leaks(canaries: list[str], haystack: bytes) -> list[str]:
    """The canaries that are there in any of the forms that a leak may take. The signature part of a JWT is enough."""
    found = []
    for canary in canaries:
        text = canary.rpartition(".")[2].encode()
        forms = {
            text,
            text.hex().encode(),
            base64.b64encode(text)[:-4],
            base64.urlsafe_b64encode(text)[:-4],
            quote(text).encode(),
        }
        if any(form in haystack for form in forms):
            found.append(canary)
    return found
