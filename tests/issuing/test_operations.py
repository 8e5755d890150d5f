"""Backup and restore, and the commands around them (requirements B-29, D-14)."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fleet.live import LiveFleet, run
from fleet.support import FORM, Pi, Reply, ask
from issuing.cluster import Cluster
from issuing.conftest import start
from issuing.test_client_credentials import client_form
from pi_agent.fleet import backup
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.options import OPTIONS
from pi_agent.jwk import public_key

PROJECT = Path(__file__).resolve().parents[2]


# Backup and restore.


def test_d14_a_backup_is_taken_while_the_server_writes(tmp_path: Path) -> None:
    """Whole, private, and never in the place of another file."""
    server = start(tmp_path / "data", "")
    try:
        pi = server.enroll()
        target = tmp_path / "backup.db"
        done = server.cli("backup", str(target), "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["devices"] == 1
        assert target.stat().st_mode & 0o777 == 0o600
        assert server.cli("backup", str(target)).returncode == 2
        assert server.ask(pi.form()).status == 200
        assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "data"]
    finally:
        server.stop()


def test_d14_a_restore_tells_what_it_would_forget(tmp_path: Path) -> None:
    """Revoked devices, retired keys, revoked tokens: named, refused without a word of the operator, and kept on demand."""
    data, target = tmp_path / "data", tmp_path / "backup.db"
    server = start(data, "")
    port = server.port
    lost, kept = server.enroll(), server.enroll(board=None)
    used = kept.form()
    for name in ("eve", "ann"):
        assert server.cli("operator", "set", name, "admin").returncode == 0
    eve, ann = (server.cli("token", "make", name, "--role", "admin").stdout.strip() for name in ("eve", "ann"))
    assert server.cli("enrollment-token", "--uses", "5").returncode == 0
    assert server.cli("resource-server", "add", "shop", "--audience", "https://shop.example").returncode == 0
    assert server.cli("backup", str(target)).returncode == 0
    for words in (
        ("operator", "remove", "eve"),
        ("operator", "set", "ann", "reader"),
        ("resource-server", "remove", "shop", "--yes"),
    ):
        assert server.cli(*words).returncode == 0, words
    with closing(sqlite3.connect(data / "fleet.sqlite3")) as opened, opened:
        opened.execute("UPDATE fleet_enrollmenttoken SET uses_left = 1")  # four devices later
    assert server.ask(used).status == 200
    assert server.cli("revoke", lost.client_id, "--yes", "--reason", "stolen").returncode == 0
    assert server.cli("restore", str(target)).returncode == 6  # it is being served
    server.stop()
    told = run("--data", str(data), "restore", str(target))
    assert told.returncode == 6
    assert f"since then {lost.client_id} was revoked" in told.stderr and "--keep-revocations" in told.stderr
    for way in ("operator eve", "operator ann", f"operator token {eve[:12]}", "enrollment token 1", "resource server"):
        assert f"since then the {way}" in told.stderr, told.stderr
    for before in ("fleet.sqlite3.before-restore", "fleet.sqlite3.before-restore-2"):  # neither is written over
        done = run("--data", str(data), "restore", str(target), "--keep-revocations")
        assert done.returncode == 0, done.stderr
        assert (data / before).exists() and done.stderr.rstrip().endswith(before)
    server = start(data, "", bind=f"127.0.0.1:{port}")
    try:
        assert "revoked" in server.ask(lost.form()).json["error_description"]
        assert server.ask(used).json["error"] == "invalid_grant"  # used after the backup, and still used
        assert server.ask(kept.form()).status == 200
        assert (
            server.cli("operator", "list").stdout.count("ann")
            == server.cli("operator", "list").stdout.count("reader")
            == 1
        )
        for token, status in ((eve, 401), (ann, 403)):
            headers = {"authorization": f"Bearer {token}"}
            assert server.request("GET", "/api/v1/operators", b"", headers).status == status
        assert "shop" not in server.cli("resource-server", "list").stdout
        with closing(sqlite3.connect(data / "fleet.sqlite3")) as opened:
            assert opened.execute("SELECT uses_left FROM fleet_enrollmenttoken").fetchall() == [(1,)]
        assert "database.restore" in server.cli("audit", "-o", "json").stdout
        assert server.cli("audit", "verify").returncode == 0
    finally:
        server.stop()


def test_rs14_a_newer_backup_is_refused_before_anything_is_replaced(tmp_path: Path) -> None:
    """The fleet is there as before: its server was only stopped to restore, and starts again."""
    data, target = tmp_path / "data", tmp_path / "backup.db"
    assert run("--data", str(data), "simulate", "3").returncode == 0
    assert run("--data", str(data), "backup", str(target)).returncode == 0
    with closing(sqlite3.connect(target)) as opened, opened:
        opened.execute("INSERT INTO django_migrations (app, name, applied) VALUES ('fleet', '9999_later', 0)")
    done = run("--data", str(data), "restore", str(target))
    assert (done.returncode, "newer pi-fleet (9999_later)" in done.stderr) == (2, True), done.stderr
    assert not [path.name for path in data.iterdir() if path.name.startswith(".") or "restore" in path.name]
    assert run("--data", str(data), "devices", "-o", "name").stdout.count("\n") == 3


def test_d14_a_restore_trusts_nobody_who_was_forgotten(tmp_path: Path) -> None:
    """Revoked and forgotten since the backup, which holds it as approved: named, and revoked on demand."""
    data, target = tmp_path / "data", tmp_path / "backup.db"
    server = start(data, "")
    gone = server.enroll(board=None)
    assert server.cli("backup", str(target)).returncode == 0
    for action in ("revoke", "forget"):
        assert server.cli(action, gone.client_id, "--yes", "--reason", "sold").returncode == 0
    server.stop()
    told = run("--data", str(data), "restore", str(target))
    assert (told.returncode, f"since then {gone.client_id} was forgotten" in told.stderr) == (6, True)
    assert run("--data", str(data), "restore", str(target), "--keep-revocations").returncode == 0
    assert json.loads(run("--data", str(data), "device", gone.client_id, "--json").stdout)["status"] == "revoked"


def test_d05_a_restart_brings_nobody_back(tmp_path: Path) -> None:
    """The first admin was removed, there is another: the next start makes no admin and prints no link."""
    server = start(tmp_path / "data", "")
    for words in (("set", "ann", "admin"), ("remove", "operator")):
        assert server.cli("operator", *words).returncode == 0
    server.stop()
    server = start(tmp_path / "data", "")
    try:
        assert [line.split()[0] for line in server.cli("operator", "list").stdout.splitlines()] == ["NAME", "ann"]
    finally:
        _, said = server.stop()
    assert "sign-in-link --operator NAME" in server.greeting + said and "/sign-in/" not in server.greeting + said


def test_d14_what_is_no_backup_is_refused(tmp_path: Path) -> None:
    """Noise, a folder, a database of something else, a truncated copy: said, and nothing has changed."""
    data = tmp_path / "data"
    assert run("--data", str(data), "migrate").returncode == 0
    before = (data / "fleet.sqlite3").read_bytes()
    backup.backup(data / "fleet.sqlite3", tmp_path / "good")
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    (tmp_path / "short").write_bytes((tmp_path / "good").read_bytes()[:8192])
    (tmp_path / "folder").mkdir()
    with closing(sqlite3.connect(tmp_path / "other")) as other, other:
        other.execute("CREATE TABLE x (y)")
    for name in ("noise", "short", "folder", "other", "missing"):
        done = run("--data", str(data), "restore", str(tmp_path / name))
        assert done.returncode != 0 and "error:" in done.stderr and "Traceback" not in done.stderr, (name, done.stderr)
    assert (data / "fleet.sqlite3").read_bytes() == before


def test_postgresql_has_its_own_tools(tmp_path: Path, cluster: Cluster) -> None:
    """The command to use is in the hint."""
    done = run("--data", str(tmp_path / "d"), "backup", "x", env={"DATABASE_URL": cluster.database()})
    assert (done.returncode, "pg_dump" in done.stderr) == (2, True)


def test_the_next_device_on_postgresql_is_numbered_after_a_simulated_fleet(tmp_path: Path, cluster: Cluster) -> None:
    """Numbers that simulate gives away itself are not given again to a device that enrolls."""
    url = cluster.database()
    assert run("--data", str(tmp_path / "d"), "simulate", "3", env={"DATABASE_URL": url}).returncode == 0
    name = url.rpartition("/")[2]
    asked = "SELECT nextval(pg_get_serial_sequence('fleet_device', 'id')), (SELECT max(id) FROM fleet_device)"
    assert cluster.execute(asked, name) == [(4, 3)]


# Commands.


def test_what_cannot_be_undone_is_asked_for(server: LiveFleet) -> None:
    """Nothing is removed without a yes; and after a signing key was retired, its successor is named."""
    assert server.cli("resource-server", "add", "till", "--audience", "https://till.example").returncode == 0
    refused = server.cli("resource-server", "remove", "till")
    assert (refused.returncode, "add --yes" in refused.stderr) == (2, True)
    assert "till" in server.cli("resource-server", "list").stdout
    assert server.cli("resource-server", "remove", "till", "--yes").returncode == 0
    assert "till" not in server.cli("resource-server", "list").stdout

    before = {key["kid"]: key["state"] for key in json.loads(server.cli("keys", "list", "--json").stdout)["items"]}
    kid = next(kid for kid, state in before.items() if state == "signing")
    made = server.cli("keys", "rotate", "--now").stdout.strip()
    assert f"now {made} signs\n" in server.cli("keys", "retire", kid, "--yes").stderr


def test_a_script_prepares_a_server_without_the_page(tmp_path: Path) -> None:
    """Devices by their keys, a resource server and a rule, before the first start; then they work."""
    pi, data = Pi(board=None), tmp_path / "data"
    jwk = tmp_path / "key.jwk"
    jwk.write_text(json.dumps(public_key(pi.key.public_key()).jwk))
    words = ("device", "add", "--jwk", str(jwk), "--serial", "C0FFEE01", "--revision", "a01041", "--approve", "--json")
    made = json.loads(run("--data", str(data), *words).stdout)
    assert (made["status"], made["kid"]) == ("approved", pi.public.kid)
    assert json.loads(run("--data", str(data), *words).stdout)["id"] == made["id"]
    adding = ("resource-server", "add", "api", "--audience", "https://api.test", "--scopes", "read", "--json")
    service = json.loads(run("--data", str(data), *adding).stdout)
    server = start(data, "")
    try:
        pi.client_id, pi.issuer = made["id"], server.issuer
        reply = server.ask(pi.form(resource="https://api.test")).json
        basic = base64.b64encode(f"{service['client_id']}:{service['client_secret']}".encode()).decode()
        headers = {"content-type": FORM, "authorization": f"Basic {basic}"}
        found = server.request("POST", "/oauth/introspect", f"token={reply['access_token']}".encode(), headers).json
        assert (found["active"], found["scope"], found["board"]["model"]) == (True, "read", "2B")
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{}", "empty"),
        ('{"kty":"oct"}', "kty"),
        ("5", "no JWK"),
        ("nonsense", "neither PEM nor JSON"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "neither PEM nor JSON"),
        ('{"kty":"EC","crv":"P-256","x":"AA","y":"AA","d":"AA"}', "public half"),
    ],
)
def test_f02_a_key_that_is_none_is_refused(server: LiveFleet, tmp_path: Path, text: str, why: str) -> None:
    """With a sentence, and exit code 2."""
    (tmp_path / "jwk").write_text(text)
    done = server.cli("device", "add", "--key", str(tmp_path / "jwk"))
    assert done.returncode == 2 and why in done.stderr, done.stderr


def test_a_key_as_openssl_writes_it(server: LiveFleet, tmp_path: Path) -> None:
    """PEM is taken, and is the key that it is as a JWK; a private one is refused with the command that gives its half."""
    key, path = ec.generate_private_key(ec.SECP256R1()), tmp_path / "key.pem"
    path.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert public_key(key.public_key()).kid in server.cli("device", "add", "--key", str(path)).stderr
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    done = server.cli("device", "add", "--key", str(path))
    assert (done.returncode, "openssl pkey -in KEY.pem -pubout" in done.stderr) == (2, True)
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    path.write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = server.cli("device", "add", "--key", str(path))
    assert (done.returncode, "neither P-256, Ed25519 nor RSA" in done.stderr) == (2, True)


def test_keys_are_rotated_by_command_and_all_servers_follow(tmp_path: Path, cluster: Cluster) -> None:
    """A key that is made at one server is published by the other within seconds."""
    url = cluster.database()
    first, second = (start(tmp_path / name, url) for name in "ab")
    try:
        kid = first.cli("keys", "rotate").stdout.strip()
        end = time.monotonic() + 10
        while kid.encode() not in second.request("GET", "/oauth/jwks").body:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert "next" in second.cli("keys", "list").stdout
        assert second.cli("keys", "rotate").returncode == 6
        assert second.cli("keys", "retire", kid).returncode == 2  # nobody confirmed
        assert second.cli("keys", "retire", kid, "--yes").returncode == 0
    finally:
        first.stop()
        second.stop()


def test_doctor_has_nothing_to_say_of_a_sound_fleet(server: LiveFleet) -> None:
    """Exit 0; each line begins with a state; and as JSON."""
    done = server.cli("doctor")
    assert done.returncode == 0, done.stdout
    assert json.loads(server.cli("doctor", "--json").stdout)["schema"] == "pi-fleet.doctor/1"


# The documentation.


def test_every_setting_is_documented() -> None:
    """``docs/fleet-settings.md`` has a row for each, with the words of ``pi-fleet serve --help``."""
    text = (PROJECT / "docs" / "fleet-settings.md").read_text()
    for name, option in OPTIONS.items():
        assert f"`{name}`" in text and option.help in text, name


def test_b29_a_device_is_slowed_down_and_keeps_its_assertion(tmp_path: Path) -> None:
    """429 with Retry-After after its burst; the same assertion is good later, and other devices are served."""
    server = LiveFleet(tmp_path / "data", "--device-rate", "0.5", "--device-burst", "2")
    try:
        pi, other = server.enroll(), server.enroll(board=None)
        bodies = [pi.form() for _ in range(3)]
        assert [server.ask(body).status for body in bodies[:2]] == [200, 200]
        slowed = server.ask(bodies[2])
        assert slowed.status == 429
        assert slowed.headers["retry-after"] in ("1", "2")  # of two seconds, one may be over
        assert server.ask(other.form()).status == 200
        end = time.monotonic() + 60
        while (reply := server.ask(bodies[2])).status == 429:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert reply.status == 200, reply.body
    finally:
        server.stop()


def test_b29_forgeries_use_up_nobodys_share(app: Application, pi: Pi) -> None:
    """A thousand replays and forgeries in a device's name: it is served all the same."""
    from dataclasses import replace

    from pi_agent.fleet.limits import Limit, Limits

    limits = Limits(Limit(1e6, 10**6), Limit(1e6, 10**6), Limit(0.01, 3))
    application = Application(replace(app.authority, limits=limits))
    try:
        body = pi.form()
        assert ask(application, body).status == 200
        forged = pi.form(Pi(client_id=pi.client_id).sign(pi.header(), pi.claims()))
        assert {ask(application, each).status for each in [body, forged] * 20} == {400}
        assert ask(application, pi.form()).status == 200
    finally:
        application.close()


def at_once(calls: Sequence[Callable[[], Reply]]) -> list[int]:
    """The statuses of requests that are made at the same moment."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result().status for future in [pool.submit(call) for call in calls]]


def test_one_token_revoked_by_many_at_once_is_revoked(live: LiveFleet) -> None:
    """Each of them is told 200, on either database, and the log has one line."""
    pi = live.enroll()
    token = live.ask(pi.form()).json["access_token"]
    calls = [
        partial(live.request, "POST", "/oauth/revoke", client_form(pi, token=token), {"content-type": FORM})
        for _ in range(6)
    ]
    assert at_once(calls) == [200] * 6
    assert live.cli("audit", "action:token.revoked", "-o", "jsonl").stdout.count("\n") == 1


def test_two_admins_cannot_end_each_other_at_once(live: LiveFleet) -> None:
    """D-02: one of them is refused, on either database, and one admin stays."""
    for name in ("ann", "bob"):
        assert live.cli("operator", "set", name, "admin").returncode == 0
    assert live.cli("operator", "remove", "operator").returncode == 0
    bearers = {name: live.cli("token", "make", name, "--role", "admin").stdout.strip() for name in ("ann", "bob")}
    kind = {"content-type": "application/json"}
    calls = [
        partial(
            live.request,
            "PUT",
            f"/api/v1/operators/{other}",
            b'{"role": "reader"}',
            kind | {"authorization": f"Bearer {bearers[name]}"},
        )
        for name, other in (("ann", "bob"), ("bob", "ann"))
    ]
    for _ in range(10):  # often enough for both to be under way together
        assert at_once(calls).count(200) == 1
        assert live.cli("operator", "list").stdout.count("admin") == 1
        for name in bearers:
            live.cli("operator", "set", name, "admin")
