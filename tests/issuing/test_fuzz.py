"""Whatever is sent to an endpoint, it answers in its own words (requirement B-26): no 5xx, no leak, no crash."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.live import LiveFleet
from fleet.support import FORM, Pi, exchange
from issuing.conftest import start
from issuing.test_introspection import add_server, basic
from pi_agent.errors import OAuthError
from pi_agent.fleet.asgi import Application
from pi_agent.fleet.web import Request, read_form
from pi_agent.oauth import CLIENT_ASSERTION_TYPE, JWT_BEARER

TRIES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NAMES = st.sampled_from(
    "token client_id client_secret client_assertion client_assertion_type assertion grant_type scope resource x".split()  # noqa: SIM905  # a list of words reads better
)
VALUES = st.text(max_size=80) | st.sampled_from(
    [JWT_BEARER, CLIENT_ASSERTION_TYPE, "client_credentials", "\0", "a.b.c", "%ff", ""]
)
FORMS = st.lists(st.tuples(NAMES, VALUES), max_size=8)
CODES = set(
    "invalid_request invalid_client invalid_grant invalid_scope invalid_target unsupported_grant_type".split()  # noqa: SIM905  # the same
)


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke"])
@TRIES
@given(
    form=FORMS,
    authorization=st.sampled_from(["", "Basic", "Basic x", "Basic Og==", "Bearer x", basic("rs-own")["authorization"]]),
)
def test_b26_any_form_is_answered(app: Application, path: str, form: list[tuple[str, str]], authorization: str) -> None:
    """200, or a refusal with a registered code, that is never to be stored."""
    add_server("own", "https://fleet.test")
    headers = {"content-type": FORM} | ({"authorization": authorization} if authorization else {})
    reply = exchange(app, "POST", path, urlencode(form, errors="surrogatepass").encode(), headers)
    assert reply.status in (200, 400, 401), reply.body
    assert reply.headers["cache-control"] == "no-store"
    assert reply.status == 200 or reply.json["error"] in CODES


@pytest.mark.parametrize("path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke", "/oauth/register"])
@TRIES
@given(body=st.binary(max_size=400), kind=st.sampled_from([FORM, "application/json", "", "x/y; charset=utf-16"]))
def test_b26_any_bytes_are_answered(app: Application, path: str, body: bytes, kind: str) -> None:
    """Never a 5xx, and nothing of what was sent comes back."""
    reply = exchange(app, "POST", path, body, {"content-type": kind})
    assert 400 <= reply.status < 500
    assert len(body) < 8 or body not in reply.body


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    found = start(tmp_path_factory.mktemp("fuzz") / "data", "")
    yield found
    assert found.stop() == (0, "")


@pytest.mark.parametrize(
    "path", ["/oauth/token", "/oauth/introspect", "/oauth/revoke", "/oauth/register", "/oauth/rotate"]
)
def test_b26_no_bytes_cost_the_connection(live: LiveFleet, path: str) -> None:
    """By real HTTP, token requests by their short way too: one answer for each, on the same connection, and a silent log."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    connection.connect()
    peer = connection.sock

    @TRIES
    @given(
        body=st.binary(max_size=400) | FORMS.map(lambda form: urlencode(form, errors="surrogatepass").encode()),
        kind=st.sampled_from([FORM, "application/json", "x/y; charset=utf-16"]),
        authorization=st.sampled_from(["x", "Basic x"]),
    )
    def ask(body: bytes, kind: str, authorization: str) -> None:
        connection.request("POST", path, body, {"content-type": kind, "authorization": authorization})
        answer = connection.getresponse()
        assert 400 <= answer.status < 500 and json.loads(answer.read())["error"]
        assert connection.sock is peer and not answer.will_close

    ask()
    connection.close()


JSON_VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@TRIES
@given(
    name=st.sampled_from(["iss", "sub", "aud", "exp", "iat", "nbf", "jti", "board", "boot", "agent", "x"]),
    value=JSON_VALUES,
)
def test_b26_any_claim_is_answered(app: Application, pi: Pi, name: str, value: Any) -> None:
    """A device may sign whatever it likes: a token or a refusal, for both grants."""
    for typ, members in (
        ("pi-device-grant+jwt", {"grant_type": JWT_BEARER, "assertion": ""}),
        (
            "JWT",
            {
                "grant_type": "client_credentials",
                "client_assertion_type": CLIENT_ASSERTION_TYPE,
                "client_assertion": "",
            },
        ),
    ):
        claims = pi.claims() | {name: value}
        signed = pi.sign(pi.header(typ=typ), json.loads(json.dumps(claims)))
        body = urlencode({key: part or signed for key, part in members.items()}).encode()
        reply = exchange(app, "POST", "/oauth/token", body, {"content-type": FORM})
        assert reply.status == 200 or reply.json["error"] in CODES, reply.body


@given(st.dictionaries(st.text(min_size=1), st.text(min_size=1), max_size=10))
def test_a_form_is_read_as_it_was_written(form: dict[str, str]) -> None:
    """What urlencode writes, read_form reads; except that a NUL is refused."""
    try:
        body = urlencode(form).encode()
    except UnicodeEncodeError:
        return
    request = Request("POST", body, FORM)
    if any("\0" in value for value in form.values()):
        with pytest.raises(OAuthError):
            read_form(request)
    else:
        assert read_form(request) == form


@given(st.binary(max_size=200))
def test_any_body_is_a_form_or_a_refusal(body: bytes) -> None:
    """A property of the reader: text in, OAuthError or a form out."""
    try:
        form = read_form(Request("POST", body, FORM))
    except OAuthError as error:
        assert error.error == "invalid_request"
    else:
        assert all(form.values())
