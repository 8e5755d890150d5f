"""The token request itself: requirements B-01, B-15 to B-18, B-26, B-27, B-30, and the answers' form."""

from __future__ import annotations

import json
import re
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet.support import FORM, ISSUER, Pi, Reply, ask, exchange
from pi_agent.fleet import clients
from pi_agent.fleet.asgi import Application
from pi_agent.oauth import JWT_BEARER

CODE = re.compile(r"[a-z_]+")
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]*")
anything_goes = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check_refusal(reply: Reply, error: str, status: int = 400) -> None:
    """The form of every OAuth refusal (RFC 6749 section 5.2, requirement B-27)."""
    assert (reply.status, reply.json.get("error")) == (status, error), reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert CODE.fullmatch(error)
    assert DESCRIPTION.fullmatch(reply.json.get("error_description", ""))


def test_b01_a_body_of_more_than_64_kib_is_refused(app: Application) -> None:
    """A body over the limit gets 413, whether its length was announced or not."""
    body = b"x=" + b"y" * 65536
    check_refusal(ask(app, body), "invalid_request", 413)
    announced = exchange(app, "POST", "/oauth/token", b"", {"content-type": FORM, "content-length": "999999999999999"})
    check_refusal(announced, "invalid_request", 413)


def test_b01_more_than_50_parameters_are_refused(app: Application, pi: Pi) -> None:
    """Parameters are counted before any of them is looked at."""
    check_refusal(ask(app, pi.form() + b"&" + b"&".join(b"p%d=1" % n for n in range(60))), "invalid_request")


def test_b01_an_assertion_of_more_than_16_kib_is_refused(app: Application, pi: Pi) -> None:
    """Length comes before any decoding."""
    check_refusal(ask(app, pi.form("a" * 17000 + ".b.c")), "invalid_grant")


def test_b01_what_is_wrong_in_its_form_costs_neither_a_query_nor_a_signature(
    app: Application, pi: Pi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cheapest checks come first: the registry is asked, and a signature looked at, for a well-formed assertion alone."""
    monkeypatch.setattr(clients, "find_keys", lambda names: dict.fromkeys(names) if not list(names) else 1 / 0)
    good = pi.assertion()
    for body in (
        b"", b"x=" + b"y" * 70_000, pi.form(good, grant_type="password"), pi.form(good) + b"&scope=a&scope=b", pi.form("x" * 20_000),
        pi.form(good + "="), pi.form(good.replace(".", ":")), pi.form(pi.assertion(header={"alg": "HS256"})),
        pi.form(pi.assertion(header={"crit": []})), pi.form(pi.assertion(iss="no identifier")), pi.form(pi.assertion(header={"kid": 5})),
    ):  # fmt: skip
        assert ask(app, body).status in (400, 413), body[:80]
    assert ask(app, pi.form(good)).status == 500  # as this one would cost both


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_b15_only_post_is_served(app: Application, pi: Pi, method: str) -> None:
    """Other methods get 405 and are told which one is right."""
    reply = exchange(app, method, "/oauth/token", pi.form(), {"content-type": FORM})
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("kind", ["", "application/json", "text/plain", "multipart/form-data", FORM + "x"])
def test_b15_only_a_form_is_read(app: Application, pi: Pi, kind: str) -> None:
    """The right body under another content type is refused."""
    check_refusal(exchange(app, "POST", "/oauth/token", pi.form(), {"content-type": kind}), "invalid_request")


def test_b15_the_content_type_may_carry_parameters_and_capitals(app: Application, pi: Pi) -> None:
    """A media type is compared without case, and without its parameters."""
    headers = {"content-type": "Application/X-WWW-Form-Urlencoded; charset=UTF-8"}
    assert exchange(app, "POST", "/oauth/token", pi.form(), headers).status == 200


def test_b15_parameters_in_the_url_do_not_count(app: Application, pi: Pi) -> None:
    """An assertion in the query string is not read."""
    reply = exchange(app, "POST", "/oauth/token?" + pi.form().decode(), b"", {"content-type": FORM})
    check_refusal(reply, "invalid_request")


@pytest.mark.parametrize("name", ["grant_type", "assertion", "scope", "whatever"])
def test_b15_a_repeated_parameter_is_refused(app: Application, pi: Pi, name: str) -> None:
    """Twice is once too often, known or not, same value or not."""
    extra = f"&{name}=a&{name}=" if name in ("scope", "whatever") else f"&{name}=x"
    check_refusal(ask(app, pi.form() + extra.encode()), "invalid_request")


def test_b15_an_empty_parameter_is_as_good_as_none(app: Application, pi: Pi) -> None:
    """An empty scope asks for the default scope; an empty assertion is missing."""
    assert ask(app, pi.form() + b"&scope=&resource=").json["scope"] == "device"
    check_refusal(ask(app, urlencode({"grant_type": JWT_BEARER, "assertion": ""}).encode()), "invalid_request")


def test_b15_unknown_parameters_are_ignored(app: Application, pi: Pi) -> None:
    """RFC 6749 section 3.2."""
    assert ask(app, pi.form(colour="red")).status == 200


@pytest.mark.parametrize("body", [b"scope=%ff", b"scope=\xff", b"scope=%00a", b"scope=%c0%80"])
def test_b20_text_that_is_not_utf8_is_refused(app: Application, pi: Pi, body: bytes) -> None:
    """Broken UTF-8 and NUL reach no database."""
    check_refusal(ask(app, pi.form() + b"&" + body), "invalid_request")


@pytest.mark.parametrize("grant", ["password", "refresh_token", JWT_BEARER.upper(), JWT_BEARER + " "])
def test_b16_other_grants_do_not_exist(app: Application, pi: Pi, grant: str) -> None:
    """grant_type is compared exactly."""
    body = urlencode({"grant_type": grant, "assertion": pi.assertion()}).encode()
    check_refusal(ask(app, body), "unsupported_grant_type")


def test_b16_a_missing_grant_type_or_assertion_is_named(app: Application) -> None:
    """The description says which one."""
    assert "grant_type" in ask(app, b"assertion=a.b.c").json["error_description"]
    assert "assertion" in ask(app, urlencode({"grant_type": JWT_BEARER}).encode()).json["error_description"]


def test_b17_the_scope_is_what_the_device_may_have(app: Application, pi: Pi) -> None:
    """No scope asked: all that is allowed. More than that: invalid_scope."""
    assert ask(app, pi.form(scope="device")).json["scope"] == "device"
    check_refusal(ask(app, pi.form(scope="device admin")), "invalid_scope")
    check_refusal(ask(app, pi.form(scope="Device")), "invalid_scope")


def test_b18_a_client_id_must_be_that_of_the_assertion(app: Application, pi: Pi) -> None:
    """RFC 7521 section 4.2."""
    assert ask(app, pi.form(client_id=pi.client_id)).status == 200
    check_refusal(ask(app, pi.form(client_id="pi-0000000000000000")), "invalid_grant")


def test_a_resource_other_than_the_audience_is_refused(app: Application, pi: Pi) -> None:
    """RFC 8707 section 2: a token is for the audience of this server and no other."""
    assert ask(app, pi.form(resource=ISSUER)).status == 200
    check_refusal(ask(app, pi.form(resource="https://bank.example")), "invalid_target")


def test_b27_only_invalid_client_is_a_401(app: Application, pi: Pi) -> None:
    """Whoever authenticates as a client beside the assertion is told that it is not done here."""
    reply = ask(app, pi.form(), authorization="Basic cGk6")
    check_refusal(reply, "invalid_client", 401)
    assert "www-authenticate" in reply.headers
    check_refusal(ask(app, pi.form(client_secret="hunter2")), "invalid_client", 401)
    assert ask(app, pi.form()).headers["cache-control"] == "no-store"


def test_b30_there_is_no_refresh_token(app: Application, pi: Pi) -> None:
    """RFC 7521 section 4.1: the answer has exactly the members of a bearer token, and when to come again."""
    answer = ask(app, pi.form()).json
    assert set(answer) == {"access_token", "token_type", "expires_in", "scope", "refresh_in"}
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 1800)


def test_the_hint_when_to_come_again_is_spread(app: Application, pi: Pi) -> None:
    """Around half the token's life, and not the same for all: devices that started together do not stay together."""
    hints = [ask(app, pi.form()).json["refresh_in"] for _ in range(12)]
    assert min(hints) >= 810 and max(hints) <= 990 and len(set(hints)) > 3


@anything_goes
@given(body=st.binary(max_size=300) | st.text(max_size=300).map(str.encode), kind=st.sampled_from([FORM, "", "x/y"]))
def test_b26_no_body_gives_a_5xx(app: Application, body: bytes, kind: str) -> None:
    """Whatever is posted, the answer is an OAuth refusal in its proper form."""
    reply = exchange(app, "POST", "/oauth/token", body, {"content-type": kind})
    check_refusal(reply, reply.json["error"])


@anything_goes
@given(st.dictionaries(st.sampled_from(["grant_type", "assertion", "scope", "resource", "client_id"]), st.text()))
def test_b26_no_form_gives_a_5xx_or_is_reflected(app: Application, form: dict[str, str]) -> None:
    """Whatever the parameters hold, nothing of it comes back."""
    secret = "Zx9" + "q" * 12
    form = {name: value + secret for name, value in form.items()} | {"grant_type": form.get("grant_type", JWT_BEARER)}
    reply = ask(app, urlencode(form, errors="surrogatepass").encode())
    check_refusal(reply, reply.json["error"])
    assert secret not in json.dumps(reply.json)
