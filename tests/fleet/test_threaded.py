"""Django behind ASGI: what becomes of a streamed answer when its client leaves, or when it cannot be finished; and its threads."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from django.db import connection

from fleet.support import Pi, exchange, register
from pi_agent.fleet import export
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.database import CACHE_KIB, READING_KIB
from pi_agent.fleet.threaded import THREADS

SCOPE = {
    "type": "http", "method": "GET", "path": "/api/v1/devices.csv", "raw_path": b"/api/v1/devices.csv", "root_path": "",
    "query_string": b"", "headers": [(b"host", b"localhost")], "client": ("uid", os.geteuid()), "scheme": "http",
    "server": ("localhost", None), "http_version": "1.1",
}  # fmt: skip


@pytest.fixture
def parts(app: Application, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many parts the export of this fleet has: the heading, and one for each of its five devices."""
    for _ in range(5):
        register(app, Pi(board=None))
    monkeypatch.setattr(export, "BATCH", 1)
    return 6


def stream(app: Application, *, leaves_after: int) -> list[dict[str, Any]]:
    """What is sent to a client that goes away after so many parts."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        gone = asyncio.Event()
        requests = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Mapping[str, Any]) -> None:
            sent.append(dict(message))
            if len(sent) == leaves_after + 1:
                gone.set()

        await app(dict(SCOPE), receive, send)

    asyncio.run(run())
    return [message for message in sent if message.get("body")]


def test_an_export_ends_when_nobody_listens_any_more(app: Application, parts: int) -> None:
    """A client that leaves after the heading does not keep the server busy with the rest."""
    assert len(stream(app, leaves_after=99)) == parts
    assert len(stream(app, leaves_after=1)) < parts


def test_an_export_that_fails_is_cut_short(app: Application, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not end as if it were whole: the error reaches the server, which closes the connection."""

    def broken(*_: object) -> Iterator[str]:
        yield "id\n"
        raise RuntimeError("the disk is gone")

    monkeypatch.setattr(export, "_lines", broken)
    with pytest.raises(RuntimeError, match="the disk is gone"):
        stream(app, leaves_after=99)


def test_no_reader_keeps_a_change_waiting(app: Application) -> None:
    """All threads for questions are taken: a change from elsewhere and a question from this machine are answered."""
    free = threading.Event()
    busy = [app.django.pool.submit(free.wait) for _ in range(THREADS)]
    try:
        headers = {"host": "fleet.test", "content-type": "application/json"}
        assert exchange(app, "POST", "/api/v1/devices/approve", b"{}", headers).status == 401
        assert exchange(app, "GET", "/api/v1/devices", b"", {"host": "localhost"}, ("uid", os.geteuid())).status == 200
    finally:
        free.set()
        assert all(each.result(10) for each in busy)


def test_a_question_whose_client_has_left_is_not_begun(app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for a thread, and nobody waits for its answer any more."""
    begun: list[object] = []
    monkeypatch.setattr(app.django, "get_response", begun.append)
    assert app.django._respond({"method": "GET"}, b"", lambda: True) is None
    assert begun == []


def test_a_thread_that_answers_operators_keeps_more_pages(app: Application) -> None:
    """Counting many devices needs a whole index at hand; the threads of the token endpoint stay small, and so does this one."""
    if connection.vendor != "sqlite":
        pytest.skip("PostgreSQL keeps its pages for all connections together")

    def pages() -> int:
        with connection.cursor() as cursor:
            return int(cursor.execute("PRAGMA cache_size").fetchone()[0])

    def anew() -> int:
        connection.close()  # as after an error
        return pages()

    before = pages()
    pool = app.django.pool
    found = [pool.submit(pages).result(), pool.submit(anew).result()]
    assert found == [-READING_KIB, -READING_KIB]
    assert before == pages() == -CACHE_KIB


PARTS = b'--B\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n--B--\r\n'
FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("path", ["/sign-in", "/devices/act", "/api/v1/devices/tag"])
@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data; boundary=B",
        "Multipart/Form-Data;boundary=B",
        FORM + ';a="' + 19000 * '\\";',
        FORM + 300 * ";",
    ],
    ids=["parts", "Parts", "quotes", "semicolons"],
)
def test_a_content_type_that_takes_long_to_read_costs_no_thread(
    app: Application, monkeypatch: pytest.MonkeyPatch, path: str, kind: str
) -> None:
    """Strangers who send it, or a form in parts, would keep a revocation waiting: they are refused before Django reads it."""
    monkeypatch.setattr(app.django, "get_response", None)
    headers = {"host": "fleet.test", "content-type": kind, "cookie": f"__Host-pi-fleet-csrf={'a' * 32}"}
    assert exchange(app, "POST", path, PARTS, headers).status == 415


@pytest.mark.parametrize("path", ["/sign-in", "/devices", "/api/v1/devices", "/metrics"])
@pytest.mark.parametrize(
    "cookie", ['a="' + 2 * 20000 * "\\" + '"', "; ".join(300 * ['a="\\054"'])], ids=["one", "many"]
)
def test_cookies_that_take_long_to_read_are_not_read(
    app: Application, monkeypatch: pytest.MonkeyPatch, path: str, cookie: str
) -> None:
    """One request of a stranger would take a thread for a minute, and eight of them all the threads there are."""
    monkeypatch.setattr(app.django, "get_response", None)
    assert exchange(app, "GET", path, b"", {"host": "fleet.test", "cookie": cookie}).status == 400


def test_a_form_has_no_more_fields_than_a_page(app: Application) -> None:
    """To read a thousand of them takes longer than to refuse them."""
    headers = {"host": "fleet.test", "content-type": FORM, "cookie": f"__Host-pi-fleet-csrf={'a' * 32}"}
    assert exchange(app, "POST", "/sign-in", b"&".join([b"a=1"] * 200), headers).status == 403
    assert exchange(app, "POST", "/sign-in", b"&".join([b"a=1"] * 201), headers).status == 400
