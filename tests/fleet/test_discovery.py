"""``/sd/prometheus``: the targets that Prometheus is told of, and what is refused there (http_sd)."""

from __future__ import annotations

import json
import time

import pytest

from fleet.conftest import approve
from fleet.support import BOARD, ME, Pi, Reply, exchange
from fleet.test_api import problem
from pi_agent.fleet import access
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor
from pi_agent.fleet.models import Device, DeviceTag, View

STRANGER = ("192.0.2.1", 40000)


def sd(app: Application, query: str = "", client: tuple[str, int] = ME, method: str = "GET", **headers: str) -> Reply:
    return exchange(app, method, f"/sd/prometheus?{query}", headers={"host": "fleet.test", **headers}, client=client)


def addresses(reply: Reply) -> list[str]:
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json"), reply.body
    return [target for group in json.loads(reply.body) for target in group["targets"]]


@pytest.fixture
def kitchen(app: Application) -> Pi:
    """An approved device of this name, with a tag."""
    pi = approve(app, Pi())
    Device.objects.update(name="kitchen", name_key="kitchen")
    DeviceTag.objects.create(device=Device.objects.get(), tag="Hall", tag_key="hall")
    return pi


def test_a_device_is_a_target_with_labels(app: Application, kitchen: Pi) -> None:
    """Its name with suffix and port; what it says of itself under ``__meta_pi_``, lists as Prometheus writes them."""
    (group,) = json.loads(sd(app, "query=model:2b&port=9256&suffix=.lan").body)
    assert group["targets"] == ["kitchen.lan:9256"]
    assert group["labels"] == {
        "__meta_pi_id": kitchen.client_id,
        "__meta_pi_name": "kitchen",
        "__meta_pi_model": "2B",
        "__meta_pi_memory": "1024",
        "__meta_pi_serial": BOARD["serial"],
        "__meta_pi_soc": "BCM2836",
        "__meta_pi_status": "approved",
        "__meta_pi_late": "",
        "__meta_pi_key": "file",
        "__meta_pi_agent": Device.objects.get().agent_version or "",
        "__meta_pi_tag": ",Hall,",
    }


NO_HOSTS = ("", "two words", "-kitchen", "küche", "a:1", "a..b", "pi-0123456789abcdef")
ELSEWHERE = (
    "localhost",
    "LocalHost",
    "localhost.localdomain",
    "x.localhost",
    "127.0.0.1",
    "10.1",
    "0x7f.0x1",
    "2130706433",
)


@pytest.mark.parametrize("name", [*NO_HOSTS, *ELSEWHERE])
def test_what_is_no_host_name_goes_by_its_id(app: Application, kitchen: Pi, name: str) -> None:
    """Prometheus would refuse the whole list for the sake of one such target; a suffix belongs to names alone."""
    Device.objects.update(name=name, name_key=name)
    assert addresses(sd(app, "suffix=.lan")) == [f"{kitchen.client_id}:9100"]


def test_a_name_that_two_devices_have_is_no_target(app: Application, kitchen: Pi) -> None:
    """One of them would be taken for the other; a name server knows no upper case."""
    other = approve(app, Pi(board=BOARD | {"serial": "00000000000000ff"}))
    Device.objects.filter(client_id=other.client_id).update(name="Kitchen", name_key="kitchen")
    assert set(addresses(sd(app))) == {f"{pi.client_id}:9100" for pi in (kitchen, other)}


def test_targets_are_the_devices_of_the_query(app: Application, kitchen: Pi) -> None:
    """Those that are approved unless it says otherwise; ``[]`` when there are none; a view has a name there, too."""
    assert addresses(sd(app)) == ["kitchen:9100"]
    View.objects.create(slug="hall", query="tag:hall", columns="", sort="", created_at=0, created_by="test")
    assert addresses(sd(app, "query=@hall")) == ["kitchen:9100"]
    assert addresses(sd(app, "query=tag:lab")) == []
    Device.objects.update(status="revoked")
    assert addresses(sd(app)) == []
    assert addresses(sd(app, "query=")) == ["kitchen:9100"]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("query=(((", 400), ("query=modle:2b", 400), ("query=@nothing", 404), ("q=model:2b", 400),
        ("query=model:2b&query=model:3b", 400), ("port=0", 400), ("port=65536", 400), ("port=0080", 400),
        ("port=9100a", 400), ("port=", 400), ("port=%D9%A3", 400), ("suffix=lan", 400), ("suffix=.a/b", 400),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_problem(app: Application, kitchen: Pi, asked: str, status: int) -> None:
    """Never an empty list, at which Prometheus would forget every target."""
    assert problem(sd(app, asked), status)


def test_a_bad_query_says_where(app: Application) -> None:
    """As everywhere else."""
    reply = sd(app, "query=modle:2b")
    assert (reply.json["position"], reply.json["suggestion"]) == (0, "model:2b")


def test_a_reader_may_ask_and_a_stranger_may_not(app: Application, kitchen: Pi) -> None:
    """With an operator token; without one, or with a wrong one, 401."""
    now = int(time.time())
    access.ensure_operator("ann", "reader", by="test", now=now)
    token, _ = access.make_token("ann", "reader", seconds=60, note="", actor=Actor("me", "test"), now=now)
    assert addresses(sd(app, client=STRANGER, authorization=f"Bearer {token}")) == ["kitchen:9100"]
    for headers in ({}, {"authorization": "Bearer pfo_wrong"}):
        reply = sd(app, client=STRANGER, **headers)
        assert problem(reply, 401) and reply.headers["www-authenticate"].startswith("Bearer")


def test_it_is_only_read(app: Application, kitchen: Pi) -> None:
    """HEAD is GET without the content; anything else is refused."""
    whole, head = sd(app), sd(app, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(whole.body))
    assert problem(sd(app, method="OPTIONS"), 405)
