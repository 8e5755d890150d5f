"""Key rotation and enrollment, step by step, with the agent's real code: nothing half, nobody locked out (F-04, F-06)."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fleet import cuts
from fleet.board import Board, Clock, Network
from pi_agent import assertion, jws
from pi_agent.device import files, identity, joining, rotate
from pi_agent.device.keys import stores
from pi_agent.errors import TransportError
from pi_agent.fleet import rotation
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.limits import Watch
from pi_agent.fleet.models import AuditEvent, Device, DeviceKey
from pi_agent.fleet.tokens import Authority

PERIOD = 900
Make = Callable[..., Board]


@pytest.fixture
def make(app: Application, authority: Authority, tmp_path: Path) -> Make:
    """Makes a board that has not enrolled yet; settings of the server by name."""

    def make(**settings: Any) -> Board:
        own = replace(authority, settings=replace(authority.settings, **settings), watch=Watch(0))
        return Board(tmp_path / secrets.token_hex(4), Network(lambda: own, Clock()))

    return make


def enrolled(board: Board) -> Board:
    board.setup()
    Device.objects.filter(status="pending").update(status="approved")
    assert board.refresh()["outcome"] == "token"
    return board


def kid(board: Board) -> str:
    known = identity.load(board.state)
    assert joining.load_key(board.state, known).public_key().kid == known.kid
    return known.kid


def speaking() -> list[str]:
    return list(DeviceKey.objects.filter(retired_at=None, pending_until=None).values_list("kid", flat=True))


def rotated(board: Board) -> str:
    """The new kid, after the steps of one rotation that the agent decided on."""
    known = identity.load(board.state)
    rotate.begin(board.state, known, stores.successor(known.key))
    assert board.refresh()["outcome"] == "token"
    return kid(board)


def test_f04_the_first_use_of_the_new_key_retires_the_old(make: Make) -> None:
    """F-04: after one refresh the server knows the new key alone, and the old one is refused by name."""
    board = enrolled(make())
    old = identity.load(board.state)
    new = rotated(board)
    assert new != old.kid
    assert speaking() == [new]
    identity.store(board.state, old)
    answer = board.refresh()
    assert (answer["outcome"], "retired" in str(answer["message"])) == ("refused", True)
    assert AuditEvent.objects.filter(action="device.retired-key").count() == 1


def test_f04_until_then_both_keys_get_tokens(make: Make) -> None:
    """F-04: a new key that was signed in and not used leaves the old one in force."""
    board = enrolled(make())
    known = identity.load(board.state)
    new = stores.load_or_create("file:key-new.pem", board.state)
    network: Any = board.network
    rotate.sign_in(network, known, joining.load_key(board.state, known), new, loopback_http=False, now=_now(board))
    assert board.refresh()["outcome"] == "token"
    assert speaking() == [known.kid]
    assert DeviceKey.objects.get(kid=new.public_key().kid).pending_until == _now(board) + rotation.OVERLAP


def test_f04_a_server_that_does_not_rotate_goes_on_giving_tokens(make: Make) -> None:
    """F-04: as long as the server refuses the new key, or is not there for it, the old one gets tokens; then it turns."""
    board = enrolled(make())
    known = identity.load(board.state)
    rotate.begin(board.state, known, stores.successor(known.key))

    def closed(moment: str, path: str) -> None:
        if path == "/oauth/rotate":
            raise TransportError("nothing there", reason="refused")

    board.network.line = closed
    assert [board.refresh()["outcome"] for _ in range(3)] == ["token"] * 3
    assert speaking() == [known.kid]
    board.network.line = lambda moment, path: None
    assert board.refresh()["outcome"] == "token"
    assert speaking() == [kid(board)] != [known.kid]


def test_f04_a_new_key_that_nobody_uses_is_forgotten(make: Make) -> None:
    """F-04: the overlap is bounded: after it the new key gets nothing, the old one goes on, and signing in again works."""
    board = enrolled(make())
    known = identity.load(board.state)
    old, new = joining.load_key(board.state, known), stores.load_or_create("file:key-new.pem", board.state)
    network: Any = board.network
    rotate.sign_in(network, known, old, new, loopback_http=False, now=_now(board))
    board.network.clock.now += rotation.OVERLAP + 1
    identity.store(board.state, replace(known, key="file:key-new.pem", kid=new.public_key().kid))
    assert board.refresh()["outcome"] == "refused"
    identity.store(board.state, known)
    assert board.refresh()["outcome"] == "token"
    rotate.begin(board.state, known, "file:key-new.pem")
    assert board.refresh()["outcome"] == "token"
    assert speaking() == [new.public_key().kid]


def test_f04_a_key_that_another_rotation_overtook_is_given_up(make: Make, tmp_path: Path) -> None:
    """F-04: a copy signs its own key in first, which retires ours before its use: ours is dropped, and the next one turns."""
    board = enrolled(make())
    known = identity.load(board.state)
    ours = rotate.begin(board.state, known, stores.successor(known.key))
    network: Any = board.network
    for location, folder in ((ours.next_key, board.state), ("file:key-theirs.pem", tmp_path)):
        folder.chmod(0o700)
        new = stores.load_or_create(location, folder)
        rotate.sign_in(network, known, joining.load_key(board.state, known), new, loopback_http=False, now=_now(board))
    assert board.refresh()["outcome"] == "token"
    assert identity.load(board.state) == known
    Device.objects.update(rotation_at=_now(board))
    assert [board.refresh()["outcome"] for _ in range(2)] == ["token", "token"]
    assert speaking() == [kid(board)] != [known.kid]


def test_the_server_asks_and_the_agent_turns(make: Make) -> None:
    """An operator's wish, and a key's age, reach the agent with a token; the refresh after that one is with the new key."""
    board = enrolled(make(device_key_days=365))
    first = kid(board)
    Device.objects.update(rotation_at=_now(board))
    assert board.refresh()["outcome"] == "token"
    assert identity.load(board.state).next_key
    assert board.refresh()["outcome"] == "token"
    second = kid(board)
    assert second != first
    assert Device.objects.get().rotation_at is None
    board.network.clock.now += 366 * 86400
    for _ in range(2):
        assert board.refresh()["outcome"] == "token"
    assert kid(board) not in (first, second)
    assert speaking() == [kid(board)]


def test_a_key_in_the_fuses_is_never_asked_for_another(make: Make) -> None:
    """The board has no second key to give."""
    from pi_agent.fleet.devicekeys import KeyState, is_due

    key = KeyState(made_at=0, pending_until=None, rotation_at=5)
    assert not is_due(key, protection="firmware-otp", max_days=1, now=10**9)
    assert is_due(key, protection="tpm", max_days=0, now=10**9)


@pytest.mark.parametrize("fault", cuts.FAULTS)
def test_f04_a_rotation_cut_at_any_step_goes_on(make: Make, fault: str) -> None:
    """F-04, RA-18, RA-21: whatever step of a rotation fails, the next refreshes finish it; one device, one speaking key."""
    for fatal in range(1, 200):
        Device.objects.all().delete()
        board = enrolled(make())
        old = kid(board)
        if cuts.run(board, partial(rotated, board), fatal, cuts.FAULTS[fault]):
            break
        board.network.clock.now += PERIOD
        files.sweep(board.state)
        known = identity.load(board.state)
        if known.kid == old and not known.next_key:
            rotate.begin(board.state, known, stores.successor(known.key))
        outcomes = [board.refresh()["outcome"] for _ in range(2)]
        assert outcomes == ["token", "token"], (fatal, outcomes)
        assert speaking() == [kid(board)]
        assert kid(board) != old
        assert Device.objects.count() == 1
    assert 15 < fatal < 199


@pytest.mark.parametrize("fault", cuts.FAULTS)
def test_an_enrollment_cut_at_any_step_is_one_device(make: Make, fault: str) -> None:
    """RA-18, RA-21, RA-35: whatever step of setup fails, setup again gives one key, one device and a token."""
    for fatal in range(1, 200):
        Device.objects.all().delete()
        board = make()
        if cuts.run(board, board.setup, fatal, cuts.FAULTS[fault]):
            break
        files.sweep(board.state)
        enrolled(board)
        assert Device.objects.count() == 1, fatal
        assert speaking() == [kid(board)]
        assert len(list(board.state.glob("key*.pem"))) == 1
        assert {path.stat().st_mode & 0o777 for path in board.state.iterdir()} == {0o600}
    assert 12 < fatal < 199


def test_a_server_restored_from_a_backup_takes_the_key_back(make: Make) -> None:
    """A server that has forgotten the rotation knows the key before; that one signs the present one in again."""
    board = enrolled(make())
    old = kid(board)
    new = rotated(board)
    DeviceKey.objects.filter(kid=new).delete()
    DeviceKey.objects.filter(kid=old).update(retired_at=None)
    board.network.clock.now += PERIOD
    assert board.refresh()["outcome"] == "token"
    assert speaking() == [new]


def test_400_days_off_and_the_server_changed_its_keys_twice(make: Make, authority: Authority) -> None:
    """A board that was switched off for 400 days has a token at its first refresh, untouched."""
    board = enrolled(make())
    before = (board.state / "key.pem").read_bytes()
    board.network.clock.now += 400 * 86400
    board.boot()
    assert board.refresh()["outcome"] == "token"
    assert (board.state / "key.pem").read_bytes() == before
    assert identity.load(board.state).next_key  # the key is over a year old: the server has asked for another


# Attacks on the endpoint


def statements(board: Board, **changes: Any) -> dict[str, Any]:
    """A request that is good but for ``changes``: claims by name, ``old``/``new`` to sign with another key."""
    known = identity.load(board.state)
    old = changes.pop("old", None) or joining.load_key(board.state, known)
    new = changes.pop("new", None) or stores.load_or_create("file:key-next.pem", board.state)
    shown = changes.pop("shown", new).public_key()
    nonce = _ask(board, {"jwks": {}, "signed_by_old": "a.b.c", "signed_by_new": "a.b.c"}).get("nonce")
    said: dict[str, Any] = {"nonce": nonce or _nonce(board, known, old, new), "jkt": shown.kid} | changes

    def sign(signer: Any) -> str:
        claims = assertion.claims(
            issuer=known.client_id,
            audience=known.issuer,
            now=_now(board),
            jti=secrets.token_urlsafe(16),
            **said,
        )
        kid = signer.public_key().kid
        return assertion.sign(claims, kind=assertion.ROTATION, alg=signer.alg, kid=kid, sign=signer.sign)

    return {"jwks": {"keys": [shown.jwk]}, "signed_by_old": sign(old), "signed_by_new": sign(new)}


def _nonce(board: Board, known: identity.Identity, old: Any, new: Any) -> str:
    claims = assertion.claims(issuer=known.client_id, audience=known.issuer, now=_now(board), jti="x" * 22)
    signed = assertion.sign(claims, kind=assertion.ROTATION, alg=new.alg, kid=new.public_key().kid, sign=new.sign)
    request = {"jwks": {"keys": [new.public_key().jwk]}, "signed_by_old": signed, "signed_by_new": signed}
    return str(_ask(board, request)["nonce"])


def _ask(board: Board, request: dict[str, Any]) -> dict[str, Any]:
    found = board.network.post("https://fleet.test/oauth/rotate", "application/json", json.dumps(request).encode(), "")
    return found.json_object() | {"status": found.status}


def _now(board: Board) -> int:
    return int(board.network.clock.now)


def test_a_good_request_is_good(make: Make) -> None:
    """The request that the attacks below change is taken."""
    board = enrolled(make())
    assert _ask(board, statements(board))["status"] == 200


def test_f04_the_old_key_alone_cannot_name_a_key_it_does_not_have(make: Make) -> None:
    """F-04: the new key has to prove itself: a public key that somebody else holds is not signed in."""
    board = enrolled(make())
    other = stores.load_or_create("file:key-other.pem", board.state)
    assert _ask(board, statements(board, shown=other))["status"] == 400
    assert DeviceKey.objects.count() == 1


def test_f04_a_new_key_alone_cannot_take_a_device_over(make: Make) -> None:
    """F-04: without the device's key nothing is signed in, and an unknown device answers what a bad signature does."""
    board = enrolled(make())
    thief = stores.load_or_create("file:key-thief.pem", board.state)
    refused = _ask(board, statements(board, old=thief))
    known = identity.load(board.state)
    identity.store(board.state, replace(known, client_id="pi-ffffffffffffffff"))
    unknown = _ask(board, statements(board, old=thief))
    assert (refused["status"], refused["error"]) == (400, "invalid_grant")
    assert {**refused, "nonce": ""} == {**unknown, "nonce": ""}
    assert DeviceKey.objects.count() == 1


def test_b22_the_statements_cannot_be_used_again(make: Make) -> None:
    """B-21: what was signed once signs nothing in a second time."""
    board = enrolled(make())
    request = statements(board)
    assert [_ask(board, request)["status"] for _ in range(2)] == [200, 400]


@pytest.mark.parametrize("change", [{"jkt": "x" * 43}, {"nonce": "AAAA"}, {"nonce": None}])
def test_f01_the_statements_are_about_this_key_and_this_moment(make: Make, change: dict[str, Any]) -> None:
    """F-01: another thumbprint, a nonce of somebody else's or none is refused."""
    board = enrolled(make())
    assert _ask(board, statements(board, **change))["status"] == 400
    assert DeviceKey.objects.count() == 1


def test_a_device_cannot_fill_the_registry_with_keys(make: Make) -> None:
    """B-29: a device signs in so many new keys an hour and no more; its own key goes on, and an hour later the next is taken."""
    board = enrolled(make())
    for number in range(rotation.MOST_AN_HOUR):
        new = stores.load_or_create(f"file:key-{number}.pem", board.state)
        answer = _ask(board, statements(board, new=new))
    assert (answer["status"], answer["error"]) == (429, "slow_down")
    assert DeviceKey.objects.count() == rotation.MOST_AN_HOUR
    assert board.refresh()["outcome"] == "token"
    board.network.clock.now += rotation.HOUR
    assert _ask(board, statements(board))["status"] == 200


@pytest.mark.parametrize("status", ["pending", "quarantined", "revoked", "rejected"])
def test_only_an_approved_device_rotates(make: Make, status: str) -> None:
    """A key of a device that gets no tokens signs no other key in."""
    board = enrolled(make())
    Device.objects.update(status=status)
    assert _ask(board, statements(board))["status"] == 400
    assert DeviceKey.objects.count() == 1


def test_f02_a_key_of_another_device_is_not_taken(make: Make) -> None:
    """F-02: a key that is enrolled already cannot become a second device's key."""
    first, second = enrolled(make()), enrolled(make())
    taken = joining.load_key(second.state, identity.load(second.state))
    assert _ask(first, statements(first, new=taken))["status"] == 400
    assert DeviceKey.objects.count() == 2


def test_a_grant_assertion_is_no_rotation_statement(make: Make) -> None:
    """RFC 8725 3.11: what a device signs for a token cannot be turned into a rotation."""
    board = enrolled(make())
    known = identity.load(board.state)
    key = joining.load_key(board.state, known)
    request = statements(board)
    claims = assertion.claims(issuer=known.client_id, audience=known.issuer, now=_now(board), jti="y" * 22)
    request["signed_by_old"] = assertion.sign(claims, kind=assertion.GRANT, alg=key.alg, kid=known.kid, sign=key.sign)
    assert _ask(board, request)["status"] == 400


def test_f04_a_retired_key_signs_nothing_in(make: Make) -> None:
    """F-04: neither one that was retired, nor one that was itself signed in and never used until its time was over."""
    board = enrolled(make())
    DeviceKey.objects.update(retired_at=1)
    assert _ask(board, statements(board))["status"] == 400
    DeviceKey.objects.update(retired_at=None, pending_until=_now(board) - 1)
    assert _ask(board, statements(board))["status"] == 400
    assert DeviceKey.objects.count() == 1


@pytest.mark.parametrize(
    ("which", "change"),
    [
        ("signed_by_new", {"iss": "pi-ffffffffffffffff", "sub": "pi-ffffffffffffffff"}),
        ("signed_by_old", {"jkt": "x" * 43}),
    ],
)
def test_f01_both_keys_say_the_same(make: Make, which: str, change: dict[str, str]) -> None:
    """F-01: one statement speaks of another device, or of another new key: the two make no request."""
    board = enrolled(make())
    request = statements(board)
    old = joining.load_key(board.state, identity.load(board.state))
    key = old if which == "signed_by_old" else stores.load_or_create("file:key-next.pem", board.state)
    claims = jws.parse(request[which]).claims | change | {"jti": "z" * 22}
    kid = key.public_key().kid
    request[which] = assertion.sign(claims, kind=assertion.ROTATION, alg=key.alg, kid=kid, sign=key.sign)
    answer = _ask(board, request)
    assert (answer["status"], answer["error_description"]) == (400, "the two statements do not say the same")


def test_f04_the_last_new_key_of_an_hour_stays_good(make: Make) -> None:
    """The next one is refused, and what was taken before is not taken back by that."""
    board = enrolled(make())
    for number in range(rotation.MOST_AN_HOUR):
        _ask(board, statements(board, new=stores.load_or_create(f"file:key-{number}.pem", board.state)))
    assert DeviceKey.objects.filter(pending_until__isnull=False, retired_at=None).count() == 1
