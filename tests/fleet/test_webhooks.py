"""Webhooks: signed, tried again, and never sent where they should not go. Requirement D-10."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from fleet.support import Pi, register
from pi_agent.errors import ConflictError, UsageError
from pi_agent.fleet import changes, webhooks
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.audit import Actor, Event
from pi_agent.fleet.models import AuditEvent, Delivery

NOW = 1_795_221_900


class Receiver:
    """A real HTTP server that answers with ``status`` and keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[tuple[Mapping[str, str], bytes]] = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append((dict(self.headers), body))
                self.send_response(outer.status)
                self.send_header("Location", f"http://127.0.0.1:{outer.server.server_port}/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?x=1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def test_d10_an_attempt_ends_in_time_however_slowly_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that sends a byte now and then, of its headers or of its body, holds nobody up."""
    monkeypatch.setattr(webhooks, "SECONDS", 1)
    for begun in (b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ended = threading.Event()

            def drip(listener: socket.socket = listener, begun: bytes = begun, ended: threading.Event = ended) -> None:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.sendall(begun)
                    while not ended.wait(0.1):
                        connection.sendall(b"x")

            thread = threading.Thread(target=drip)
            thread.start()
            started = time.monotonic()
            with suppress(OSError, http.client.HTTPException):
                webhooks.post_once(f"http://127.0.0.1:{listener.getsockname()[1]}/", b"{}", {})
            took = time.monotonic() - started
            ended.set()
            thread.join()
        assert took < 10  # for ever, if it were not cut off


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def test_a_pending_device_is_told_and_signed(app: Application, receiver: Receiver) -> None:
    """The receiver can check who sent it, and when, with the secret it was given."""
    hook = webhooks.add(receiver.url, ["pending"], by="ann", now=NOW)
    pi = Pi()
    register(app, pi)
    assert webhooks.deliver(NOW + 10**6, webhooks.post_once) == 1
    headers, body = receiver.got[0]
    told = json.loads(body)
    assert (told["event"], told["device"]) == ("pending", pi.client_id)
    at, _, tag = headers["x-pi-fleet-signature"].partition(",v1=")
    signed = hmac.new(hook.secret.encode(), at[2:].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert signed == tag
    assert webhooks.deliver(NOW + 10**7, webhooks.post_once) == 0


def test_who_does_not_answer_is_asked_again_and_not_for_ever(app: Application, receiver: Receiver) -> None:
    """Later each time; after the last try it is over, and the error stays to be seen."""
    webhooks.add(receiver.url, [], by="ann", now=NOW)
    receiver.status = 500
    webhooks.queue([Event("device.revoke", "pi-1", detail={"reason": "x"})], actor="ann", now=NOW)
    at, tries = NOW, 0
    while (row := Delivery.objects.get()).next_at is not None:
        assert row.next_at >= at
        at = row.next_at
        webhooks.deliver(at, webhooks.post_once)
        tries += 1
    assert (tries, len(receiver.got), Delivery.objects.get().error) == (11, 11, "answered 500")


def test_what_was_refused_did_not_happen(app: Application, receiver: Receiver) -> None:
    """An action that was turned down is in the audit log, and nobody is told of it."""
    webhooks.add(receiver.url, [], by="ann", now=NOW)
    chosen = changes.Chosen("id:*", most=0)
    for pi in (Pi(board=None), Pi(board=None)):
        register(app, pi)
    before = Delivery.objects.count()
    with pytest.raises(ConflictError):
        changes.act("revoke", chosen, reason="x", actor=Actor("ann", "test"), now=NOW)
    assert (AuditEvent.objects.filter(result="refused").count(), Delivery.objects.count()) == (1, before)


def test_an_address_that_cannot_be_asked_is_one_that_failed(app: Application) -> None:
    """A name that no resolver takes: noted with the delivery, and the others are told."""
    webhooks.add("https://hooks..example.org/x", [], by="test", now=NOW)
    register(app, Pi(board=None))
    assert webhooks.deliver(NOW + 10**6, webhooks.post_once) == 0
    assert Delivery.objects.get().error == "UnicodeError"


def test_no_redirect_is_followed(app: Application, receiver: Receiver) -> None:
    """A 307 would carry the event to another host; it counts as a failure."""
    webhooks.add(receiver.url, [], by="ann", now=NOW)
    receiver.status = 307
    webhooks.queue([Event("device.revoke", "pi-1")], actor="ann", now=NOW)
    assert webhooks.deliver(NOW, webhooks.post_once) == 0
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://u:p@example.org/",
        "file:///etc/passwd",
        "https:///x",
        "https://[::1",
        "x",
    ],
)
def test_d10_an_address_is_https_or_loopback(app: Application, url: str) -> None:
    """Nothing else is ever fetched."""
    with pytest.raises(UsageError):
        webhooks.add(url, [], by="ann", now=NOW)


def test_an_unknown_event_and_a_second_webhook_are_refused(app: Application) -> None:
    """With what there is."""
    with pytest.raises(UsageError):
        webhooks.add("https://hooks.test/", ["pendin"], by="ann", now=NOW)
    webhooks.add("https://hooks.test/", [], by="ann", now=NOW)
    with pytest.raises(ConflictError):
        webhooks.add("https://hooks.test/", [], by="ann", now=NOW)
