"""The device's one door to the network, against real servers on loopback that do what servers should not."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter

from device.asking import ASSERTION, failed, failing, fetch
from device.servers import DATE, TOKEN, Authority, reply, says, serving, token
from pi_agent import oauth
from pi_agent.device import transport
from pi_agent.device.transport import Transport
from pi_agent.errors import OAuthError, TransportError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


# What is sent


def test_the_request_is_the_grant_and_nothing_else() -> None:
    """One POST with the form of RFC 7523, and headers that ask for plain JSON."""
    with serving(says(reply(Date=DATE))) as server:
        transport = Transport(loopback_http=True)
        form = oauth.grant_form(ASSERTION, scope="read", resource="https://api.example")
        found = transport.buy(server.url + "/oauth/token", lambda: form, scope="read")
        (request,) = server.requests
    assert (found.access_token, found.expires_in) == (TOKEN, 1800)
    assert transport.seen is not None and transport.seen[0] == 1795262400
    assert request.line == "POST /oauth/token HTTP/1.1"
    assert request.form == {
        "grant_type": oauth.JWT_BEARER,
        "assertion": ASSERTION,
        "scope": "read",
        "resource": "https://api.example",
    }
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert request.headers["accept-encoding"] == "identity"


def test_a17_m05_no_authorization_header_is_sent() -> None:
    """Not even the Basic header with an empty password that the library sends by default; and no cookie."""
    with serving(says(reply(Set_Cookie="a=b"))) as server:
        fetch(server.url)
        fetch(server.url)
        assert len(server.requests) == 2
        assert not {"authorization", "cookie"} & {name for request in server.requests for name in request.headers}


def test_a14_a_session_keeps_no_cookie() -> None:
    """A-14: what a server sets is not kept: our adapter does not hand it on, and the jar takes none from any other."""
    with (
        serving(says(reply(Set_Cookie="a=b"))) as server,
        Transport(loopback_http=True)._harden(requests.Session()) as session,
    ):
        for adapter in (session.get_adapter(server.url), HTTPAdapter()):
            session.mount("http://", adapter)
            assert session.get(server.url, timeout=5).headers["Set-Cookie"] == "a=b"
            assert list(session.cookies) == []


def test_a05_every_call_makes_a_new_assertion() -> None:
    """make_form is called once for each attempt, and the server sees what it gave."""
    made: list[str] = []

    def make() -> str:
        made.append(f"a.b.{len(made)}")
        return oauth.grant_form(made[-1])

    with serving(says(reply())) as server:
        client = Transport(loopback_http=True)
        for _ in range(3):
            client.buy(server.url, make)
        assert [request.form["assertion"] for request in server.requests] == made == ["a.b.0", "a.b.1", "a.b.2"]


def test_an_enrollment_token_is_a_bearer_header_of_that_request_only() -> None:
    """post_json carries it; get_json and the next post do not."""
    with serving(says(reply({}))) as server:
        client = Transport(loopback_http=True)
        client.post_json(server.url, {"a": 1}, bearer="secret")
        client.post_json(server.url, {"a": 1})
        client.get_json(server.url)
        sent = [request.headers.get("authorization") for request in server.requests]
    assert sent == ["Bearer secret", None, None]


def test_g01_an_enrollment_token_of_two_lines_is_not_quoted() -> None:
    """What cannot stand in a header is refused without being shown."""
    with serving(says(reply({}))) as server, pytest.raises(TransportError) as caught:
        Transport(loopback_http=True).post_json(server.url, {}, bearer="secret\nX-Evil: 1")
    assert "secret" not in str(caught.value)
    assert server.requests == []


# nothing around us changes what happens


def test_a13_plain_http_needs_the_setting_whatever_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """OAUTHLIB_INSECURE_TRANSPORT opens nothing."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")
    with serving(says(reply())) as server:
        strict = Transport()
        for attempt in (
            lambda: strict.buy(server.url, lambda: oauth.grant_form(ASSERTION)),
            lambda: strict.get_json(server.url),
            lambda: strict.post_json(server.url, {}),
        ):
            with pytest.raises(TransportError) as caught:
                attempt()
            assert caught.value.reason == "address"
        assert "OAUTHLIB_INSECURE_TRANSPORT" not in os.environ  # oauthlib's own refusal stands behind ours
        assert server.connections == 0


def test_a14_v15_netrc_and_proxy_variables_have_no_effect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No password from .netrc goes out, and no proxy of the environment is asked."""
    netrc = tmp_path / "netrc"
    netrc.write_text(
        "machine 127.0.0.1 login user password netrc-password\ndefault login user password netrc-password\n"
    )
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(says(reply())) as proxy, serving(says(reply())) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        fetch(server.url)
        Transport(loopback_http=True).get_json(server.url)
        assert proxy.connections == 0
        assert len(server.requests) == 2
        assert not any("authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_a14_a_ca_from_the_environment_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, variable: str
) -> None:
    """Only server.ca_file, or the system's bundle, says whom to trust."""
    value = authority.ca_file.parent if variable == "SSL_CERT_DIR" else authority.ca_file
    monkeypatch.setenv(variable, str(value))
    with serving(says(reply()), tls=authority.context()) as server:
        assert failed(server.url).reason == "tls"
        assert server.requests == []


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a14_a_ca_from_the_environment_does_not_replace_ours(
    monkeypatch: pytest.MonkeyPatch, authority: Authority, tmp_path: Path, variable: str
) -> None:
    """server.ca_file counts, whatever the environment names."""
    monkeypatch.setenv(variable, str(tmp_path / "missing.pem"))
    with serving(says(reply()), tls=authority.context()) as server:
        assert fetch(server.url, ca_file=str(authority.ca_file)).access_token == TOKEN


def test_a_proxy_of_our_own_settings_is_used() -> None:
    """server.proxy is asked for a connection, no other one is made, and the proxy is told nothing more."""
    with serving(says(reply({}, status=502))) as proxy, serving(says(reply())) as server:
        assert failed(f"https://127.0.0.1:{server.port}/token", proxy=proxy.url).reason == "proxy"
        assert [request.line for request in proxy.requests] == [f"CONNECT 127.0.0.1:{server.port} HTTP/1.0"]
        assert server.connections == 0


def test_no_proxy_is_shown_what_goes_to_this_machine_in_plain_text() -> None:
    """Plain http is for a server on this machine (server.loopback_http): a proxy would read the assertion, and is not asked."""
    with serving(says(reply())) as proxy, serving(says(reply())) as server:
        assert fetch(server.url, proxy=proxy.url).access_token == TOKEN
        assert Transport(loopback_http=True, proxy=proxy.url).get_json(server.url).status == 200
        assert proxy.connections == 0


@pytest.mark.parametrize(("proxy", "reason"), [("http://127.0.0.1:1", "proxy"), ("socks5://127.0.0.1:1", "address")])
def test_a_proxy_that_is_no_help_is_named(proxy: str, reason: str) -> None:
    """Nobody there, or a kind that is not spoken: nothing goes around it."""
    with serving(says(reply())) as server:
        assert failed(f"https://127.0.0.1:{server.port}", proxy=proxy).reason == reason
        assert server.connections == 0


# A-15, RA-11: redirects


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
def test_a15_ra11_m02_no_redirect_is_followed(status: int) -> None:
    """The assertion never reaches the place that a redirect names; neither does a GET."""
    with (
        serving(says(reply())) as bait,
        serving(says(reply(b"", status=status, Location=bait.url + "/token", Refresh=f"0; url={bait.url}"))) as server,
    ):
        assert failed(server.url).reason == "redirect"
        for ask in (
            Transport(loopback_http=True).get_json,
            lambda url: Transport(loopback_http=True).post_json(url, {}),
        ):
            with pytest.raises(TransportError) as caught:
                ask(server.url)
            assert caught.value.reason == "redirect"
        assert bait.connections == 0
        assert len(server.requests) == 3


# A-16, RA-09, RA-10: what comes back (the whole list is in the tests of pi_agent.oauth)


@pytest.mark.parametrize("status", [201, 204, 400, 401, 500, 503])
def test_a16_m03_a_token_in_another_status_is_not_believed(status: int) -> None:
    """The library would take it."""
    assert failing(says(reply(status=status))).reason == "answer"


def test_a16_ra10_m03_a_captive_portal_gives_no_token() -> None:
    """200, text/html, and a body that the library would read as a form."""
    script = says(reply(f"access_token={TOKEN}&token_type=Bearer&expires_in=60".encode(), media="text/html"))
    assert str(failing(script)) == "the server answered 200 without a JSON object"


@pytest.mark.parametrize(
    "members", [{"token_type": "DPoP"}, {"access_token": ""}, {"expires_in": -1}, {"expires_in": None}]
)
def test_a16_m03_a_token_that_is_none_is_not_believed(members: dict[str, Any]) -> None:
    """Types, emptiness and lives are checked before the library sees the answer."""
    assert failing(says(reply(token(**members)))).reason == "answer"


def test_a20_a_wider_scope_is_refused_and_a_narrower_one_taken() -> None:
    """Without OAUTHLIB_RELAX_TOKEN_SCOPE, and without the Warning that the library raises."""
    with serving(says(reply(token(scope="read")))) as server:
        assert fetch(server.url, scope="read write").scope == "read"
        assert failed(server.url, scope="write").reason == "answer"


def test_an_oauth_error_comes_back_as_one() -> None:
    """Code, description, status and the pause the server asks for."""
    script = says(reply({"error": "invalid_grant", "error_description": "revoked"}, status=400, Retry_After="7"))
    with serving(script) as server, pytest.raises(OAuthError) as caught:
        fetch(server.url)
    error = caught.value
    assert (error.error, error.description, error.status, error.retry_after) == ("invalid_grant", "revoked", 400, 7)


# RA-04 and the clock


@pytest.mark.parametrize(
    ("text", "date", "seconds"),
    [
        ("120", DATE, 120),
        ("0", DATE, 0),
        ("-5", DATE, None),
        ("1.5", DATE, None),
        ("soon", DATE, None),
        ("9" * 30, DATE, None),
        ("\u00b2", DATE, None),
        ("Sat, 21 Nov 2026 12:01:30 GMT", DATE, 90),
        ("Sat, 21 Nov 2026 11:00:00 GMT", DATE, 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", DATE, transport.LONGEST_PAUSE),
        ("Sat, 21 Nov 2026 12:01:30 GMT", "", None),
        ("", DATE, None),
    ],
)
def test_ra04_retry_after_is_seconds_or_a_date_against_the_answers_own(
    text: str, date: str, seconds: int | None
) -> None:
    """Our clock has no part in it, and junk is nothing."""
    with serving(says(reply({}, status=503, Retry_After=text, Date=date))) as server:
        answer = Transport(loopback_http=True).get_json(server.url)
    assert answer.retry_after == seconds


NEARLY_A_DATE = r"[A-Z][a-z]{2}, [0-9]{1,4} [A-Z][a-z]{2} [0-9]{1,6} [0-9:]{1,9} ([A-Z]{3}|[+-][0-9]{1,9})"


@given(st.text() | st.from_regex(NEARLY_A_DATE, fullmatch=True))
def test_any_date_header_is_a_time_or_none(text: str) -> None:
    """No header ends the attempt: a date that is none is None."""
    assert transport.http_date(text) is None or isinstance(transport.http_date(text), int)
    assert transport._retry_after(text, 0) is None or isinstance(transport._retry_after(text, 0), int)


# G-03: what is said on the way


def test_g03_m05_the_libraries_tell_nobody(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """With every logger at DEBUG, neither assertion nor token appears, on success or failure."""
    caplog.set_level(logging.DEBUG)
    refusal = reply({"error": "invalid_grant"}, status=400)
    spilt = b"HTTP/1.1 200 OK\r\nno header but " + TOKEN.encode() + b"\r\n\r\n{}"
    for answer in (reply(), reply(status=500), refusal, reply(b"{", media="text/html"), spilt):
        with serving(says(answer)) as server, contextlib.suppress(TransportError, OAuthError):
            fetch(server.url)
    logging.getLogger("anything").debug("the logs are caught")
    out, err = capfd.readouterr()
    assert "the logs are caught" in caplog.text
    for secret in (ASSERTION, TOKEN):
        assert secret not in caplog.text + out + err


def test_a12_no_traceback_of_a_failed_attempt_shows_the_assertion() -> None:
    """The error chain that a crash would print holds neither request nor answer."""
    error = failing(says(reply(status=500)))
    text = io.StringIO()
    traceback.print_exception(error, file=text)
    assert ASSERTION not in text.getvalue()
    assert TOKEN not in text.getvalue()


# within


def test_within_gives_what_the_attempt_gives() -> None:
    """A value is returned and an error is raised in the caller's thread."""
    assert transport.within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        transport.within(5, lambda: 1 // 0)


def test_within_ends_with_its_time() -> None:
    """An attempt that hangs is left behind."""
    awake = threading.Event()
    with pytest.raises(TransportError, match=r"no answer within 0\.05 s"):
        transport.within(0.05, lambda: awake.wait(5))
    awake.set()
