"""The programs in docs/resource-servers.md, as they are printed there, with a real fleet behind them (requirement C-04)."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings

from fleet.live import LiveFleet
from fleet.support import Pi, exchange
from issuing.conftest import start

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resource-servers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def program(sign: str, **names: Any) -> dict[str, Any]:
    """What the one block with ``sign`` in it defines, run with ``names``."""
    (text,) = [block for block in BLOCKS if sign in block]
    exec(compile(text, str(PAGE), "exec"), names)
    return names


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    found = start(tmp_path_factory.mktemp("services") / "data", "")
    yield found
    found.stop()


@pytest.fixture(scope="module")
def pi(server: LiveFleet) -> Pi:
    return server.enroll()


@pytest.fixture(scope="module")
def token(server: LiveFleet, pi: Pi) -> str:
    return str(server.ask(pi.form()).json["access_token"])


def asked(token: str) -> list[tuple[dict[str, str], int]]:
    """Headers of a request, and the status that they should get."""
    good, _, signature = token.rpartition(".")
    forged = f"{good}.{signature[::-1]}"
    return [
        ({"authorization": f"Bearer {token}"}, 200),
        ({"authorization": f"Bearer {forged}"}, 401),
        ({"authorization": f"Basic {token}"}, 401),
        ({}, 401),
    ]


def test_the_django_middleware(server: LiveFleet, pi: Pi, token: str) -> None:
    """A good token passes and names its device; anything else is a 401; keys that cannot be had are a 503."""
    middleware = program("def devices_only")["devices_only"]

    def view(request: Any) -> HttpResponse:
        return HttpResponse(request.device.device)

    def ask(headers: Mapping[str, str]) -> HttpResponse:
        request: HttpRequest = RequestFactory().get("/", headers=headers)
        found: HttpResponse = middleware(view)(request)
        return found

    with override_settings(FLEET_ISSUER=server.issuer, FLEET_AUDIENCE=server.issuer):
        for headers, status in asked(token):
            assert ask(headers).status_code == status
        assert ask({"authorization": f"Bearer {token}"}).content == pi.client_id.encode()
        assert "invalid_token" in ask({})["www-authenticate"]
    with override_settings(FLEET_ISSUER="http://127.0.0.1:1", FLEET_AUDIENCE=server.issuer):
        assert ask({"authorization": f"Bearer {token}"}).status_code == 503


def test_the_asgi_middleware(server: LiveFleet, pi: Pi, token: str) -> None:
    """The same, for an ASGI application behind it."""
    middleware = program("class DevicesOnly")["DevicesOnly"]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["device"].device.encode()})

    for headers, status in asked(token):
        reply = exchange(middleware(application, server.issuer, server.issuer), "GET", "/", headers=headers)
        assert reply.status == status
        assert status != 200 or reply.body == pi.client_id.encode()
    unreachable = middleware(application, "http://127.0.0.1:1", server.issuer)
    assert exchange(unreachable, "GET", "/", headers={"authorization": f"Bearer {token}"}).status == 503


def test_the_assertion_of_a_client_that_is_not_the_agent(server: LiveFleet, pi: Pi) -> None:
    """What the PyJWT lines print buys a token."""
    said = io.StringIO()
    names = {"DEVICE": pi.client_id, "ISSUER": server.issuer, "KID": pi.public.kid, "private_key": pi.key}
    with contextlib.redirect_stdout(said):
        program("jwt.encode", **names)
    assert server.ask(pi.form(said.getvalue().strip())).status == 200


def test_the_first_lines(server: LiveFleet, pi: Pi, token: str) -> None:
    """The function alone, with this fleet's name and a scope that its devices have."""
    (text,) = [block for block in BLOCKS if "print(token.device" in block]
    text = text.replace("https://fleet.example.org", server.issuer).replace(
        "https://telemetry.example.org", server.issuer
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(text.replace('"write"', '"device"'), {"text": token})
    assert said.getvalue().startswith(f"{pi.client_id} {pi.board['serial'] if pi.board else ''}")
