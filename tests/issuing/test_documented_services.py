"""The programs in docs/resource-servers.md, as they are printed there, with a real fleet behind them (requirement C-04)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jwt
import pytest
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.test import RequestFactory, override_settings

from device.resident import until
from fleet.live import LiveFleet
from fleet.support import Pi, exchange
from pi_agent.fleet import InsufficientScopeError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resource-servers.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def block(sign: str) -> str:
    """The one Python block of the page with ``sign`` in it."""
    (text,) = [block for block in BLOCKS if sign in block]
    return str(text)


def program(
    sign: str, server: LiveFleet | None = None, change: tuple[str, str] = ("", ""), **names: Any
) -> dict[str, Any]:
    """What that block defines, run with ``names``; with ``server``, as a service of that fleet; with one text changed."""
    text = block(sign).replace(*change) if change[0] else block(sign)
    if server:
        text = text.replace("https://fleet.example.org", server.issuer)
        text = text.replace("https://telemetry.example.org", server.issuer)
    names["__name__"] = "documented"
    exec(compile(text, str(PAGE), "exec"), names)
    return names


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


def test_the_django_decorator(server: LiveFleet, pi: Pi, token: str) -> None:
    """Around a view or as middleware: a good token names its device, another is a 401, a scope it lacks a 403, no keys a 503."""
    names = program("def devices_only")
    devices_only = names["devices_only"]

    def view(request: Any, more: str = "") -> HttpResponse:
        return HttpResponse(request.device.device + more)

    def ask(respond: Any, headers: Mapping[str, str], **more: str) -> HttpResponse:
        request: HttpRequest = RequestFactory().post("/", headers=headers)
        found: HttpResponse = respond(request, **more)
        return found

    bearer = {"authorization": f"Bearer {token}"}
    with override_settings(FLEET_ISSUER=server.issuer, FLEET_AUDIENCE=server.issuer):
        for headers, status in asked(token):
            assert ask(names["every_request"](view), headers).status_code == status
        assert ask(devices_only("device")(view), bearer, more="!").content == f"{pi.client_id}!".encode()
        short = ask(devices_only("admin")(view), bearer)
        assert (short.status_code, 'scope="admin"' in short["www-authenticate"]) == (403, True)
        assert ask(devices_only()(view), {})["www-authenticate"] == "Bearer"
        guarded = CsrfViewMiddleware(lambda _: HttpResponse()).process_view
        posted = RequestFactory(enforce_csrf_checks=True).post("/")
        assert guarded(posted, devices_only()(view), (), {}) is None, "the CSRF check is lifted"
    with override_settings(FLEET_ISSUER="http://127.0.0.1:1", FLEET_AUDIENCE=server.issuer):
        down = ask(devices_only()(view), bearer)
        assert (down.status_code, down["retry-after"]) == (503, "60")


def test_the_fastapi_dependency(server: LiveFleet, pi: Pi, token: str) -> None:
    """The printed service, whole, for whoever has FastAPI: its devices have no scope ``write``."""
    pytest.importorskip("fastapi")
    bearer = {"authorization": f"Bearer {token}"}
    app = program("app = FastAPI()", server)["app"]
    short = exchange(app, "POST", "/telemetry", headers=bearer)
    assert (short.status, 'scope="write"' in short.headers["www-authenticate"]) == (403, True)
    assert exchange(app, "POST", "/telemetry").headers["www-authenticate"] == "Bearer"
    allowed = program("app = FastAPI()", server, change=("write", "device"))["app"]
    reply = exchange(allowed, "POST", "/telemetry", headers=bearer)
    assert (reply.status, reply.json) == (200, {"thanks": pi.client_id})


async def greet(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["device"].device.encode()})


def test_the_asgi_middleware(server: LiveFleet, pi: Pi, token: str) -> None:
    """The same, for an ASGI application behind it."""
    middleware = program("class DevicesOnly")["DevicesOnly"]
    for headers, status in asked(token):
        reply = exchange(middleware(greet, server.issuer, server.issuer), "GET", "/", headers=headers)
        assert reply.status == status
        assert status != 200 or reply.body == pi.client_id.encode()
    bearer = {"authorization": f"Bearer {token}"}
    short = exchange(middleware(greet, server.issuer, server.issuer, "admin"), "GET", "/", headers=bearer)
    assert (short.status, 'scope="admin"' in short.headers["www-authenticate"]) == (403, True)
    down = exchange(middleware(greet, "http://127.0.0.1:1", server.issuer), "GET", "/", headers=bearer)
    assert (down.status, down.headers["retry-after"]) == (503, "60")


def test_a_websocket_needs_a_token_too(server: LiveFleet, token: str) -> None:
    """One without is closed before the application hears of it; the start of the server passes."""
    reached, sent = [], []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["type"])

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = program("class DevicesOnly")["DevicesOnly"](application, server.issuer, server.issuer)
    bearer = (b"authorization", f"Bearer {token}".encode())
    asyncio.run(middleware({"type": "websocket", "headers": []}, None, send))
    assert (reached, sent) == ([], [{"type": "websocket.close"}])
    asyncio.run(middleware({"type": "websocket", "headers": [bearer]}, None, send))
    asyncio.run(middleware({"type": "lifespan"}, None, send))
    assert reached == ["websocket", "lifespan"]


@pytest.mark.skipif(not (shutil.which("nginx") and shutil.which("curl")), reason="nginx or curl is not installed")
def test_behind_nginx(server: LiveFleet, pi: Pi, token: str, tmp_path: Path) -> None:
    """The printed locations and gate: the service hears which device it is, and neither a token nor what a caller claims."""
    (tmp_path / "devices_only.py").write_text(block("class DevicesOnly"))
    gate = block("from devices_only import").replace("https://fleet.example.org", server.issuer)
    (tmp_path / "gate.py").write_text(gate.replace("https://telemetry.example.org", server.issuer))
    (tmp_path / "service.py").write_text(SERVICE)
    (locations,) = re.findall(r"^```nginx\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    locations = locations.replace("http://127.0.0.1:9001/", f"http://unix:{tmp_path}/gate.sock:/")
    locations = locations.replace("http://127.0.0.1:8000", f"http://unix:{tmp_path}/service.sock")
    places = "".join(f"{kind}_temp_path {tmp_path}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {places} server {{ listen unix:{tmp_path}/nginx.sock; {locations} }} }}"
    )
    uvicorn = (
        sys.executable,
        "-m",
        "uvicorn",
        "--lifespan",
        "off",
        "--log-level",
        "warning",
        "--app-dir",
        str(tmp_path),
    )
    with contextlib.ExitStack() as stack:
        for name, command in (
            ("gate", (*uvicorn, "gate:app", "--uds", str(tmp_path / "gate.sock"))),
            ("service", (*uvicorn, "service:app", "--uds", str(tmp_path / "service.sock"))),
            ("nginx", ("nginx", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))),
        ):
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
            until((tmp_path / f"{name}.sock").exists)

        def ask(*headers: str) -> tuple[str, str]:
            more = [word for header in headers for word in ("-H", header)]
            format_ = ["-o", str(tmp_path / "body"), "-w", "%{http_code} %header{www-authenticate}"]
            asking = [
                "curl",
                "-s",
                "--unix-socket",
                str(tmp_path / "nginx.sock"),
                *format_,
                *more,
                "http://x/telemetry",
            ]
            done = subprocess.run(asking, capture_output=True, text=True, check=True)
            return done.stdout, (tmp_path / "body").read_text()

        said, body = ask(f"Authorization: Bearer {token}", "X-Device: pi-of-somebody-else")
        assert (said, body) == ("200 ", f"{[pi.client_id]} []")
        assert ask()[0] == "401 Bearer"
        assert ask("Authorization: Bearer x.y.z")[0].startswith('401 Bearer error="invalid_token"')


SERVICE = """
async def app(scope, receive, send):
    told = [[value.decode() for name, value in scope["headers"] if name == wanted] for wanted in (b"x-device", b"authorization")]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": "{} {}".format(*told).encode()})
"""


def test_the_pyjwt_verifier(server: LiveFleet, pi: Pi, token: str) -> None:
    """PyJWT alone believes a token for this service, none for another, and no other kind of JWT."""
    verify = program("PyJWKClient", server)["verify"]
    assert verify(token)["sub"] == pi.client_id
    for change in ("https://telemetry.example.org", "https://other.test"), ('"at+jwt"', '"another+jwt"'):
        with pytest.raises(jwt.InvalidTokenError):
            program("PyJWKClient", server, change)["verify"](token)


def added(server: LiveFleet, folder: Path, *kind: str) -> dict[str, Any]:
    """A key of openssl's in ``folder``, added as the page says: the four names that its programs use."""
    private = ("openssl", "genpkey", *kind, "-out", "key.pem")
    subprocess.run(private, cwd=folder, check=True, capture_output=True)
    half = ("openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "half.pem")
    subprocess.run(half, cwd=folder, check=True, capture_output=True)
    done = server.cli("device", "add", "--key", str(folder / "half.pem"), "--approve", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    key = (folder / "key.pem").read_text()
    return {"ISSUER": server.issuer, "DEVICE": made["id"], "KID": made["kid"], "key": key}


EC = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@needs_openssl
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_pyjwt_and_curl_as_they_are_printed(server: LiveFleet, tmp_path: Path) -> None:
    """The program and the command line after it: one token."""
    names = added(server, tmp_path, *EC)
    text = block('end="")').replace("https://fleet.example.org", server.issuer)
    for name in ("DEVICE", "KID"):
        text = re.sub(f'^{name} = ".*"$', f'{name} = "{names[name]}"', text, flags=re.MULTILINE)
    (tmp_path / "assertion.py").write_text(text)
    (line,) = re.findall(r"^\$ (python assertion.py .*)$", PAGE.read_text(), re.MULTILINE)
    line = line.replace("https://fleet.example.org", server.issuer).replace("python", sys.executable)
    done = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["token_type"] == "Bearer"


@needs_openssl
@pytest.mark.parametrize(
    ("name", "kind"), [("token_by_authlib", EC), ("token_by_client_credentials", EC), ("token_by_oauthlib", RSA)]
)
def test_an_oauth_library_as_it_is_printed(
    server: LiveFleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: tuple[str, ...]
) -> None:
    """Two tokens, one after the other: nothing is sent twice."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    monkeypatch.setenv("AUTHLIB_INSECURE_TRANSPORT", "1")
    names = program(f"def {name}", **added(server, tmp_path, *kind))
    first, second = names[name](), names[name]()
    assert first and second and first != second


def test_the_first_lines(server: LiveFleet, pi: Pi, token: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The function alone: these devices have no scope ``write``; with one that they have, it says who it is."""
    header = f"Bearer {token}"
    with pytest.raises(InsufficientScopeError):
        program("print(token.device", server, header=header)
    program("print(token.device", server, ("write", "device"), header=header)
    said = capsys.readouterr().out
    assert said.startswith(f"{pi.client_id} ") and pi.board and pi.board["serial"] in said
    boardless = server.enroll(board=None)
    bearer = f"Bearer {server.ask(boardless.form()).json['access_token']}"
    program("print(token.device", server, ("write", "device"), header=bearer)
    assert capsys.readouterr().out == f"{boardless.client_id} {frozenset({'device'})}\n"
