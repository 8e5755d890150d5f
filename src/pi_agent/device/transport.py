"""The one place where the device talks to the network. Nothing that happens out there may surprise the rest of the agent.

requests-oauthlib carries the token request, through its own points of extension: an oauthlib client that signs our
assertion, a response hook that believes nothing it should not, and an adapter that keeps the connection honest:

* no redirect is followed, no cookie kept, no ``.netrc``, proxy or CA taken from the environment;
* an answer is read to 64 KiB, as it was sent: a compressed one is refused, since nothing was asked for compressed;
* a request ends after 30 seconds, whatever hangs (names, TLS, a server that drips), because it runs beside its clock,
  and so do all the requests of one attempt together.

Requirements A-13 to A-20, RA-03, RA-06 to RA-12. Every failure is a TransportError with a reason, or an OAuthError.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from typing import Any, TypeVar

import requests
import urllib3
from oauthlib.oauth2 import InsecureTransportError, OAuth2Token, ServiceApplicationClient
from requests.adapters import HTTPAdapter
from requests_oauthlib import OAuth2Session

from pi_agent import oauth
from pi_agent.device import failures
from pi_agent.errors import ConfigError, PiAgentError, TransportError

DEADLINE = 30.0
SOCKET_TIMEOUT = 10.0
MAX_ANSWER = 64 * 1024
LONGEST_PAUSE = 10**9 - 1  # nine digits, which is what a frame takes

urllib3.disable_warnings(urllib3.exceptions.SystemTimeWarning)  # a wrong clock is named by us, as an error
# They print assertions, tokens, and answers that they cannot read (G-03).
for _name in ("requests_oauthlib", "oauthlib", "urllib3"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)

_Result = TypeVar("_Result")
_Session = TypeVar("_Session", bound=requests.Session)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: ``date`` is the server's Date in seconds since 1970, or None."""

    status: int
    content_type: str
    body: bytes
    date: int | None
    retry_after: int | None

    def json_object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises TransportError."""
        hint = "is that the address of a pi-agent server, and is there a login page in between?"
        return oauth.json_object(self.status, self.content_type, self.body, retry_after=self.retry_after, hint=hint)


class Transport:
    """A session with the server's rules of trust. ``loopback_http`` lets plain http through; URLs were checked before.

    With ``one_attempt`` all requests together have DEADLINE seconds, else each has. ``seen`` is the last Date that a
    server we trust has sent, with the boot seconds at which it came, or None.
    """

    def __init__(
        self, *, ca_file: str = "", proxy: str = "", loopback_http: bool = False, one_attempt: bool = False
    ) -> None:
        self._verify: Any = ca_file or True  # the types of requests-oauthlib forget that a path may stand here
        # Plain http is for this machine, and would be read on the way.
        self._proxies = {"https": proxy} if proxy else {}
        self._loopback_http = loopback_http
        self._ends = time.monotonic() + DEADLINE if one_attempt else math.inf
        self.seen: tuple[int, float] | None = None

    def get_json(self, url: str) -> Answer:
        return self._within(lambda: self._request("GET", url, headers={"Accept": "application/json"}))

    def post_json(self, url: str, members: dict[str, Any], *, bearer: str = "") -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if bearer:
            headers["Authorization"] = f"Bearer {bearer}"
        body = json.dumps(members).encode()
        return self._within(lambda: self._request("POST", url, headers=headers, data=body))

    def buy(self, url: str, make_form: Callable[[], str], *, scope: str = "", authorization: str = "") -> oauth.Token:
        """The token that the form buys at ``url``. ``make_form`` is called once; ``scope`` is what it asks for.

        Raises OAuthError, TransportError.
        """
        return self._within(lambda: self._buy(url, make_form, scope, authorization))

    def post_form(self, url: str, body: str, *, authorization: str = "") -> Answer:
        """An answer from an endpoint that gives no token. Raises TransportError."""
        headers = _form_headers(authorization)
        return self._within(lambda: self._request("POST", url, headers=headers, data=body.encode("ascii")))

    def _within(self, request: Callable[[], _Result]) -> _Result:
        return within(min(DEADLINE, self._ends - time.monotonic()), request)

    def _buy(self, url: str, make_form: Callable[[], str], scope: str, authorization: str) -> oauth.Token:
        # oauthlib refuses plain http unless this says otherwise. What the environment said never counts: the
        # URL was checked by us, and http got this far only towards a literal loopback address.
        os.environ.pop("OAUTHLIB_INSECURE_TRANSPORT", None)
        if self._loopback_http:
            os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"
        client = _FormClient(make_form, scope=scope, note=self._note)
        with self._harden(OAuth2Session(client=client)) as session:
            session.register_compliance_hook("access_token_response", client.read_answer)
            _translated(
                lambda: session.fetch_token(
                    url,
                    include_client_id=True,  # the other choice is a Basic header with an empty password
                    timeout=SOCKET_TIMEOUT,
                    verify=self._verify,
                    proxies=self._proxies,
                    headers=_form_headers(authorization),
                )
            )
        return client.received

    def _note(self, answer: Answer) -> None:
        if answer.date is not None:
            self.seen = answer.date, time.clock_gettime(time.CLOCK_BOOTTIME)

    def _request(self, method: str, url: str, **arguments: Any) -> Answer:
        with self._harden(requests.Session()) as session:
            response = _translated(
                lambda: session.request(
                    method,
                    url,
                    timeout=SOCKET_TIMEOUT,
                    verify=self._verify,
                    proxies=self._proxies,
                    allow_redirects=False,
                    **arguments,
                )
            )
        answer = _answer(response)
        self._note(answer)
        return answer

    def _harden(self, session: _Session) -> _Session:
        if isinstance(self._verify, str):
            check_ca_file(self._verify)
        session.trust_env = False
        session.max_redirects = 0
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.adapters.clear()
        session.mount("https://", _BoundedAdapter())
        if self._loopback_http:
            session.mount("http://", _BoundedAdapter())
        session.headers["Accept-Encoding"] = "identity"
        return session


def check_ca_file(path: str) -> None:
    """Raise ConfigError unless the authorities that are to be trusted can be read by this user."""
    try:
        with Path(path).open("rb"):
            return
    except OSError as error:
        text = f"cannot read server.ca_file, {path}: {error.strerror}"
        raise ConfigError(text, key="server.ca_file", hint=f"ls -lL {path}") from error


class _FormClient(ServiceApplicationClient):
    """oauthlib's client for this grant; its own assertion could only be RS256, without kid, for an hour."""

    def __init__(self, make_form: Callable[[], str], *, scope: str, note: Callable[[Answer], None]) -> None:
        super().__init__(client_id="")
        self._make_form = make_form
        self._scope = scope
        self._note = note
        self.received: oauth.Token

    def prepare_request_body(self, *_: object, **__: object) -> str:
        return self._make_form()

    def read_answer(self, response: requests.Response) -> requests.Response:
        """The compliance hook: status and media type are looked at here, since oauthlib is shown the text alone."""
        answer = _answer(response)
        self._note(answer)
        self.received = oauth.read_answer(
            answer.status,
            answer.content_type,
            answer.body,
            scope=self._scope,
            retry_after=answer.retry_after,
        )
        return response

    def parse_request_body_response(self, body: str, scope: object = None, **_: object) -> OAuth2Token:
        self.token = OAuth2Token(oauth.token_answer(self.received))
        return self.token


class _BoundedAdapter(HTTPAdapter):
    """Hands on an answer only when it is no redirect, not compressed, and read whole within MAX_ANSWER bytes."""

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        try:
            if 300 <= resp.status < 400:
                raise TransportError(
                    f"the server redirects ({resp.status}); redirects are refused, they could take the assertion elsewhere",
                    reason="redirect",
                    hint="use the final address as server.issuer; on a new network, is there a login page?",
                )
            if resp.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise TransportError("the answer is compressed, which was not asked for", reason="answer")
            body = _read(resp)
        except BaseException:
            resp.close()
            raise
        whole = urllib3.HTTPResponse(
            body=io.BytesIO(body), headers=resp.headers, status=resp.status, preload_content=False
        )
        response = super().build_response(req, whole)
        response.encoding = "utf-8"  # without it requests guesses, and guessing loads a large table
        return response


def _form_headers(authorization: str) -> dict[str, str]:
    headers = {"Accept": "application/json", "Content-Type": "application/x-www-form-urlencoded"}
    return headers | ({"Authorization": authorization} if authorization else {})


def _read(resp: Any) -> bytes:
    body = bytearray()
    while chunk := resp.read(8192, decode_content=False):
        body += chunk
        if len(body) > MAX_ANSWER:
            raise TransportError(f"the answer is longer than {MAX_ANSWER // 1024} KiB", reason="answer")
    return bytes(body)


def _answer(response: requests.Response) -> Answer:
    date = http_date(response.headers.get("Date", ""))
    return Answer(
        status=response.status_code,
        content_type=response.headers.get("Content-Type", ""),
        body=response.content,
        date=date,
        retry_after=_retry_after(response.headers.get("Retry-After", ""), date),
    )


def http_date(text: str) -> int | None:
    """Seconds since 1970 of an HTTP date (RFC 9110 section 5.6.7), or None."""
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


def _retry_after(text: str, date: int | None) -> int | None:
    """Seconds to wait (RFC 9110 section 10.2.3); a date counts from the answer's own Date; junk is nothing."""
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    moment = http_date(text)
    return min(max(0, moment - date), LONGEST_PAUSE) if moment is not None and date is not None else None


def _translated(request: Callable[[], _Result]) -> _Result:
    """Run ``request``; whatever the libraries raise leaves as a TransportError that says what to look at."""
    try:
        return request()
    except PiAgentError:
        raise
    except (OSError, ValueError, urllib3.exceptions.HTTPError, InsecureTransportError) as error:
        raise failures.explained(error, patience=SOCKET_TIMEOUT) from None


def within(seconds: float, attempt: Callable[[], _Result]) -> _Result:
    """What ``attempt`` returns or raises, or TransportError after ``seconds``.

    The attempt runs in a thread of its own, because neither a resolver that hangs nor a server that drips can be
    interrupted; one that outlives its time is left behind and dies with this short-lived process.
    """
    values: list[_Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            values.append(attempt())
        except BaseException as error:  # noqa: BLE001  # carried over to the caller's thread, whatever it is
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    if seconds > 0:
        thread.start()
        thread.join(seconds)
    if errors:
        raise errors[0]
    if values:
        return values[0]
    if _is_resolving(thread):
        raise failures.no_name_server()
    limit = f"within {seconds:.3g} s" if seconds > 0 else "in the time that an attempt has"
    raise TransportError(f"no answer {limit}", reason="timeout")


def _is_resolving(thread: threading.Thread) -> bool:
    """The thread hangs in the resolver, which tells nobody and cannot be told to end."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame and frame.f_code is not socket.getaddrinfo.__code__:
        frame = frame.f_back
    return frame is not None
