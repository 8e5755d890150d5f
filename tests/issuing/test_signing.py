"""Signing keys: published before they are used and kept after, in step everywhere, sealed (requirements F-07, RS-10, RS-11, C-13)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import jwt
import pytest

from fleet.conftest import SETTINGS
from fleet.support import ISSUER, Pi, ask, exchange
from pi_agent import jws
from pi_agent.errors import ConfigError, ConflictError, KeyFileError, UsageError
from pi_agent.fleet import resource, signing
from pi_agent.fleet import settings as fleet_settings
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.housekeeper import Housekeeper, attempt, checkpoint
from pi_agent.fleet.introspection import read_token
from pi_agent.fleet.models import AuditEvent, SharedSecret, SigningKey, UsedAssertion
from pi_agent.fleet.options import MAX_LIFETIME
from pi_agent.fleet.signing import JWKS_SECONDS, KEEP_SECONDS, PUBLISH_SECONDS

NOW = int(time.time())
SEALED = replace(SETTINGS, key_secret="correct horse battery staple")


@pytest.fixture
def keys(app: Application) -> Iterator[None]:
    """No signing keys yet; those of the fleet are back afterwards."""
    rows = list(SigningKey.objects.all())
    SigningKey.objects.all().delete()
    yield
    SigningKey.objects.all().delete()
    SharedSecret.objects.all().delete()
    SigningKey.objects.bulk_create(rows)
    app.reload()


def states(now: int) -> list[str]:
    return [key.state(now) for key in signing.load_ring(SETTINGS, now=now).keys]


def test_f07_a_key_is_published_before_it_signs_and_kept_after(keys: None) -> None:
    """The whole life of two keys, by the clock alone."""
    first = signing.load_ring(SETTINGS, now=NOW).signing(NOW).kid
    second = signing.rotate(SETTINGS, now=NOW + 100).kid
    ring = signing.load_ring(SETTINGS, now=NOW + 100)
    starts = NOW + 100 + PUBLISH_SECONDS
    assert PUBLISH_SECONDS > JWKS_SECONDS  # whoever fetched the keys just before has fetched them again
    # The last token that it signed has ended, by any clock that is near.
    assert KEEP_SECONDS >= MAX_LIFETIME + resource.SKEW
    for now, signs, published, words in (
        (NOW + 100, first, {first, second}, ["signing", "next"]),
        (starts - 1, first, {first, second}, ["signing", "next"]),
        (starts, second, {first, second}, ["kept", "signing"]),
        (starts + KEEP_SECONDS - 1, second, {first, second}, ["kept", "signing"]),
        (starts + KEEP_SECONDS, second, {second}, ["past", "signing"]),
    ):
        assert ring.signing(now).kid == signs
        assert {key.kid for key in ring.published(now)} == published
        assert {kid for kid in (first, second) if ring.find(kid, now)} == published  # whose tokens are believed
        assert [key.state(now) for key in ring.keys] == words


def test_f07_no_valid_token_is_refused_while_keys_change(app: Application, pi: Pi, keys: None) -> None:
    """Tokens bought before, during and after a rotation verify with the key set of any moment from their own on."""
    clock = [NOW]
    application = Application(app.authority, clock=lambda: clock[0])
    try:
        application.reload()
        tokens: list[str] = []
        for step in (0, 1, PUBLISH_SECONDS - 1, 1, 60):
            clock[0] += step
            if step == 1 and len(tokens) == 1:
                signing.rotate(SETTINGS, now=clock[0])
            application.reload()
            body = pi.form(pi.assertion(iat=clock[0], exp=clock[0] + 60))
            tokens.append(ask(application, body).json["access_token"])
            published = {key["kid"]: jwt.PyJWK(key) for key in exchange(application, "GET", "/oauth/jwks").json["keys"]}
            for token in tokens:
                key = published[jwt.get_unverified_header(token)["kid"]]
                jwt.decode(token, key, algorithms=["ES256"], audience=ISSUER, options={"verify_iat": False})
        assert len({jwt.get_unverified_header(token)["kid"] for token in tokens}) == 2
    finally:
        application.close()
        app.reload()


def test_rs11_a_lagging_server_signs_with_what_all_publish(keys: None) -> None:
    """A ring that was loaded before the rotation signs with a key that is in every ring, until long after the change."""
    old = signing.load_ring(SETTINGS, now=NOW)
    signing.rotate(SETTINGS, now=NOW)
    new = signing.load_ring(SETTINGS, now=NOW)
    later = NOW + PUBLISH_SECONDS + 60
    assert old.signing(later).kid in {key.kid for key in new.published(later)}
    assert old.find(new.signing(NOW).kid, NOW) is not None


def test_two_rotations_in_a_row_are_refused(keys: None) -> None:
    """The one that waits comes first; at once is possible, for when a key has leaked."""
    signing.load_ring(SETTINGS, now=NOW)
    signing.rotate(SETTINGS, now=NOW)
    with pytest.raises(ConflictError):
        signing.rotate(SETTINGS, now=NOW + 1)
    with pytest.raises(ConflictError):
        signing.retire(signing.load_ring(SETTINGS, now=NOW).signing(NOW).kid, now=NOW + 1)  # no other signs yet
    made = signing.rotate(SETTINGS, now=NOW + 1, at_once=True)
    assert signing.load_ring(SETTINGS, now=NOW + 1).signing(NOW + 1).kid == made.kid


def test_a_retired_key_is_gone_at_once(app: Application, pi: Pi, keys: None) -> None:
    """It is not published, its tokens are inactive, its private half is destroyed; the last one cannot be retired."""
    app.reload()
    kid = app.authority.ring.signing(NOW).kid
    token = ask(app, pi.form()).json["access_token"]
    assert read_token(token, now=NOW, authority=app.authority) is not None
    with pytest.raises(ConflictError):
        signing.retire(kid, now=NOW)
    signing.rotate(SETTINGS, now=NOW, at_once=True)
    signing.retire(kid, now=NOW)
    app.reload()
    assert kid not in {key["kid"] for key in exchange(app, "GET", "/oauth/jwks").json["keys"]}
    assert read_token(token, now=NOW, authority=app.authority) is None
    assert SigningKey.objects.get(kid=kid).private_key == ""
    with pytest.raises(UsageError):
        signing.retire(kid, now=NOW)


def test_a_key_is_replaced_when_it_is_old(keys: None) -> None:
    """After ``key_days``, once, whichever server sees it first."""
    signing.load_ring(SETTINGS, now=NOW)
    due = NOW + SETTINGS.key_days * 86400
    assert signing.rotate_when_due(SETTINGS, now=due - 1) is None
    made = signing.rotate_when_due(SETTINGS, now=due)
    assert made is not None and made.signs_from == due + signing.PUBLISH_SECONDS
    assert signing.rotate_when_due(SETTINGS, now=due) is None


def test_keys_are_sealed_with_a_secret_from_outside(keys: None) -> None:
    """Also those that were made before there was one. Without it, or with another, nothing is signed, and no key is made up."""
    kid = signing.load_ring(SETTINGS, now=NOW).signing(NOW).kid
    assert "PRIVATE KEY" in SigningKey.objects.get().private_key
    assert signing.load_ring(SEALED, now=NOW).signing(NOW).kid == kid
    assert SigningKey.objects.get().private_key.startswith(signing.SEALED)
    with pytest.raises(KeyFileError, match="not there"):
        signing.load_ring(SETTINGS, now=NOW)
    with pytest.raises(KeyFileError, match="another secret"):
        signing.load_ring(replace(SETTINGS, key_secret="x" * 20), now=NOW)
    assert SigningKey.objects.count() == 1


def test_the_housekeeper_goes_by_a_steady_clock_alone(app: Application, keys: None) -> None:
    """Keys that are old are replaced, with an audit line, and what is over is forgotten; not by a clock that was just set."""
    app.reload()
    SigningKey.objects.update(created_at=1)
    UsedAssertion.objects.create(issuer="pi-1", jti="a-jti-of-long-ago", expires_at=1)
    keeper = Housekeeper(app)
    for steady, made, left in ((False, 1, 1), (True, 2, 0)):
        keeper.clock = Mock(**{"is_steady.return_value": steady})
        for chore in keeper.chores:
            attempt(chore)
        assert (SigningKey.objects.count(), UsedAssertion.objects.count()) == (made, left)
    assert AuditEvent.objects.filter(action="signing-key.rotate").count() == 1
    assert checkpoint in [chore.work for chore in keeper.chores]  # without it SQLite's log only grows


@pytest.mark.parametrize(
    ("credential", "more", "secret"),
    [
        (b"s" * 20 + b"\n", {}, "s" * 20),
        (b"s" * 20, {"PI_FLEET_KEY_SECRET": "e" * 20}, "e" * 20),
        (None, {"PI_FLEET_KEY_SECRET": "e" * 20}, "e" * 20),
        (None, {}, ""),
    ],
)
def test_the_secret_comes_from_a_credential_or_the_environment(
    tmp_path: Path, credential: bytes | None, more: dict[str, str], secret: str
) -> None:
    """By systemd as a file, else by a variable, which comes first."""
    if credential is not None:
        (tmp_path / "pi-fleet-key-secret").write_bytes(credential)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path), **more}
    assert fleet_settings.load({"data": str(tmp_path)}, environ).key_secret == secret


@pytest.mark.parametrize("credential", [b"\xff" * 32, b"short", b""])
def test_a_secret_that_is_none_does_not_leave_the_keys_open(tmp_path: Path, credential: bytes) -> None:
    """Random bytes instead of text, or too few of them: whoever has set it believes that the keys are sealed."""
    (tmp_path / "pi-fleet-key-secret").write_bytes(credential)
    with pytest.raises(ConfigError, match="credential"):
        fleet_settings.load({"data": str(tmp_path)}, {"CREDENTIALS_DIRECTORY": str(tmp_path)})


def test_sealed_values_cannot_change_places(keys: None) -> None:
    """What was sealed under one name does not open under another."""
    sealed = signing.seal(b"data", SEALED, "a")
    assert signing.unseal(sealed, SEALED, "a") == b"data"
    with pytest.raises(KeyFileError):
        signing.unseal(sealed, SEALED, "b")


def test_rs10_keys_that_changed_places_are_damaged(keys: None) -> None:
    """Tokens under the kid of another key would be refused everywhere: nothing is signed, and no key is made up."""
    signing.load_ring(SETTINGS, now=NOW)
    signing.rotate(SETTINGS, now=NOW)
    first, second = SigningKey.objects.order_by("id")
    SigningKey.objects.filter(pk=first.pk).update(private_key=second.private_key)
    with pytest.raises(KeyFileError, match=f"{first.kid} is damaged"):
        signing.load_ring(SETTINGS, now=NOW)
    assert SigningKey.objects.count() == 2


def test_servers_that_share_a_database_share_their_secret(keys: None) -> None:
    """The second one finds what the first has made, and it is sealed where the keys are."""
    assert signing.shared_secret(SEALED, "nonce") == signing.shared_secret(SEALED, "nonce")
    assert signing.shared_secret(SEALED, "nonce") != signing.shared_secret(SEALED, "django")
    assert all(row.value.startswith(signing.SEALED) for row in SharedSecret.objects.all())


def test_rs10_without_a_key_that_may_sign_the_server_is_not_ready(app: Application, keys: None) -> None:
    """A key whose time has not come, with a clock that went back: not ready, and it says what is missing."""
    SigningKey.objects.all().delete()
    signing.load_ring(SETTINGS, now=NOW + 10_000)
    app.reload()
    reply = exchange(app, "GET", "/readyz")
    assert (reply.status, reply.json["missing"]) == (503, ["signing key"])
    assert exchange(app, "GET", "/healthz").status == 200


def test_the_first_segment_of_a_token_is_its_header(app: Application, pi: Pi) -> None:
    """It is made once a key and not once a token, and says what it should."""
    token = jws.parse(ask(app, pi.form()).json["access_token"])
    assert token.header == {"typ": "at+jwt", "alg": "ES256", "kid": app.authority.ring.signing(NOW).kid}
