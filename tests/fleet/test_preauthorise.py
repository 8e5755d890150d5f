"""Devices on their way in: lists of boards and keys, what an operator is shown, and codes that people type."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.support import BOARD, Pi, register, rest
from pi_agent import words
from pi_agent.errors import UsageError
from pi_agent.fleet import lists, pending, preauthorise
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.models import AuditEvent, Device, Preauthorisation
from pi_agent.jws import b64url

OPERATOR = Actor("ann", "uid 0")


@pytest.fixture(autouse=True)
def _no_lines(app: Application) -> None:
    Preauthorisation.objects.all().delete()


def allow(*texts: str, life: int = 3600) -> None:
    now = int(time.time())
    preauthorise.add(lists.read_csv(["serial,key,name", *texts]), expires_at=now + life, actor=OPERATOR, now=now)


# Lists


def test_a_list_is_read_as_a_spreadsheet_writes_it() -> None:
    """A byte-order mark, any order of columns, capitals in a serial, empty lines."""
    lines = lists.read_csv(["\ufeffName, Serial ,KEY", "garden,00000000AAAA0002,", "", f",,{'k' * 43}"])
    assert lines == [lists.Line("00000000aaaa0002", "", "garden"), lists.Line("", "k" * 43, "")]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "name the columns"),
        (["00000000aaaa0002"], "name the columns"),
        (["serial,key,colour"], "name the columns"),
        (["serial,key", ","], None),
        (["serial,key", f"00000000aaaa0002,{'k' * 43}"], "line 2 needs a serial or a key"),
        (["serial", "00000000aaaa0002", "xyz"], "line 3: 'xyz' is no serial"),
        (["key", "short"], "line 2: 'short' is no key thumbprint"),
        (["serial,name", "00000000aaaa0002,\x1b[2J"], "line 2: a name"),
    ],
)
def test_a_mistake_in_a_list_is_named_by_its_line(rows: list[str], sentence: str | None) -> None:
    """What is wrong, and on which line; an empty line is no mistake."""
    if sentence is None:
        assert lists.read_csv(rows) == []
        return
    with pytest.raises(UsageError, match=sentence):
        lists.read_csv(rows)


@given(st.lists(st.text()))
def test_any_lines_are_a_list_or_our_error(rows: list[str]) -> None:
    """Whatever is in the file."""
    try:
        lists.read_csv(rows)
    except UsageError:
        return


def test_a_serial_on_the_list_is_approved_when_it_comes(app: Application) -> None:
    """The board is approved, called what the list says, and the log says why."""
    allow(f"{BOARD['serial']},,garden")
    pi = Pi()
    reply = register(app, pi)
    assert (reply.json["status"], reply.json["client_name"]) == ("approved", "garden")
    assert '"by": "serial on the list"' in AuditEvent.objects.get(action="device.enrolled").detail


def test_a_key_on_the_list_is_approved_when_it_comes(app: Application) -> None:
    """Only the holder of that key, whatever its board says."""
    pi, other = Pi(), Pi()
    allow(f",{pi.public.kid},kitchen")
    assert register(app, other).json["status"] == "pending"
    Device.objects.all().delete()
    assert register(app, pi).json["status"] == "approved"


def test_a_line_is_good_for_one_device(app: Application) -> None:
    """The second board with the serial waits, and is flagged beside the first."""
    allow(f"{BOARD['serial']},,garden")
    assert [register(app, Pi()).json["status"] for _ in range(2)] == ["approved", "pending"]
    assert Device.objects.filter(flag__contains="is also enrolled as").count() == 1


def test_of_parallel_boards_one_gets_the_line(app: Application) -> None:
    """Twenty boards that claim one serial at the same moment: one is approved."""
    allow(f"{BOARD['serial']},,garden")
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: register(app, Pi()), range(20)))
    assert [reply.json.get("status") for reply in replies].count("approved") == 1


def test_a_line_ends(app: Application) -> None:
    """After its time nobody is approved by it."""
    allow(f"{BOARD['serial']},,garden", life=-1)
    assert register(app, Pi()).json["status"] == "pending"


def test_a_board_that_waits_already_is_approved_by_a_later_list(app: Application) -> None:
    """The operator's list came after the board: setup --wait finds itself approved."""
    pi = Pi()
    assert register(app, pi).json["status"] == "pending"
    allow(f"{BOARD['serial']},,garden")
    assert register(app, pi).json["status"] == "approved"


def test_sending_a_list_again_adds_nothing(app: Application) -> None:
    """The same lines are given their new end."""
    for life in (60, 6000):
        allow(f"{BOARD['serial']},,garden", life=life)
    line = Preauthorisation.objects.get()
    assert line.expires_at > time.time() + 5000


# What an operator is shown


def test_the_pi_and_the_operator_see_the_same(app: Application) -> None:
    """Code and words of the pending list are those of the key."""
    pi = Pi()
    register(app, pi)
    item = rest(app, "GET", "/pending").json["items"][0]
    assert (item["code"], item["words"]) == (words.code(pi.public.kid), " ".join(words.words(pi.public.kid)))
    assert item["why"][0] == "its serial was never seen before"
    assert item["source"] == "192.0.2.1"


def test_the_list_says_that_a_serial_was_here_before(app: Application) -> None:
    """The same serial with another key is named with its devices, revoked ones too."""
    first, second = Pi(), Pi()
    register(app, first)
    Device.objects.update(status="revoked")
    register(app, second)
    item = rest(app, "GET", f"/pending?code={words.code(second.public.kid)}").json["items"][0]
    assert f"{first.client_id} (revoked)" in item["why"][0]


def test_a_code_finds_its_device_and_no_other(app: Application) -> None:
    """However it is typed; a code of nobody is 404, and what is no code is 400."""
    pis = [Pi() for _ in range(5)]
    for pi in pis:
        register(app, pi)
    for pi in pis:
        assert pending.find(words.code(pi.public.kid).lower().replace("-", "")).client_id == pi.client_id
    nobody = words.code(b64url(secrets.token_bytes(32)))
    assert rest(app, "GET", f"/pending?code={nobody}").status == 404
    assert rest(app, "GET", "/pending?code=no-code").status == 400


def test_lists_over_rest(app: Application) -> None:
    """A list is sent, shown, and a line is taken back; each is in the audit log."""
    line = {"serial": "00000000AAAA0002", "name": "garden"}
    made = rest(app, "POST", "/preauthorisations", {"lines": [line], "ttl": 3600})
    assert (made.status, made.json["new"]) == (200, 1), made.body
    shown = rest(app, "GET", "/preauthorisations").json["items"]
    assert [(item["serial"], item["name"]) for item in shown] == [("00000000aaaa0002", "garden")]
    assert rest(app, "DELETE", f"/preauthorisations/{shown[0]['id']}").status == 200
    assert rest(app, "DELETE", f"/preauthorisations/{shown[0]['id']}").status == 404
    actions = list(AuditEvent.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["preauthorised", "preauthorisation.end", "preauthorisation.end"]


def test_an_operator_asks_for_new_keys(app: Application, pi: Pi) -> None:
    """A reason is needed, the devices are chosen like for any change, and the log has it."""
    asked = {"query": f"id:{pi.client_id}", "max": 1}
    assert rest(app, "POST", "/devices/rotate-key", asked).status == 400
    assert rest(app, "POST", "/devices/rotate-key", asked | {"dry_run": True}).json["count"] == 1
    assert Device.objects.get().rotation_at is None
    assert rest(app, "POST", "/devices/rotate-key", asked | {"reason": "yearly"}).status == 200
    assert Device.objects.get().rotation_at is not None
    assert AuditEvent.objects.filter(action="device.rotate-key", device=pi.client_id).exists()
