"""For programs on the board: ask the agent on its socket. Standard library only.

    >>> from pi_agent.client import auth, token
    >>> token()                          # an access token with at least a minute to live
    'eyJ...'
    >>> requests.get(url, auth=auth())   # or httpx.Client(auth=auth()): always a good token, a new one after a 401

This is the one file of the hall with a door in it: it connects to the agent's UNIX socket, and to nothing else.
"""

from __future__ import annotations

import _socket  # `socket` would cost a command that only prints a token a third of its time
import json
import os
import sys
from collections.abc import AsyncGenerator, Generator
from typing import Any

from pi_agent.errors import AgentError, TransportError

DEFAULT_RUNTIME = "/run/pi-agent"
SOCKET = "agent.sock"
MAX_ANSWER = 128 * 1024
MARGIN = 2.0  # beyond what the agent was asked to wait


def token(
    *,
    audience: str | None = None,
    scope: str | None = None,
    min_valid: int = 60,
    runtime: str | None = None,
    timeout: float = 10.0,
) -> str:
    """An access token with at least ``min_valid`` seconds left; the configured one unless another is named.

    ``runtime`` is the agent's folder (``$PI_AGENT_RUNTIME``). A token that must be fetched first is waited for up to
    ``timeout`` seconds. Raises AgentError when the agent has none (its message says why), TransportError when there is
    no agent.
    """
    target = token_target(audience=audience, scope=scope, min_valid=min_valid, wait=int(timeout))
    return _access_token(ask(target, runtime=runtime, timeout=timeout + MARGIN))


def renew(
    *, audience: str | None = None, scope: str | None = None, runtime: str | None = None, timeout: float = 10.0
) -> str:
    """Another access token than the current one, because a server refused that. Raises as ``token`` does."""
    target = token_target("/v1/refresh", audience=audience, scope=scope, min_valid=1, wait=int(timeout))
    return _access_token(ask(target, method="POST", runtime=runtime, timeout=timeout + MARGIN))


def auth(
    *,
    audience: str | None = None,
    scope: str | None = None,
    min_valid: int = 60,
    runtime: str | None = None,
    timeout: float = 10.0,
) -> Auth:
    """An object for ``auth=`` in requests and in httpx (also its asynchronous client). Arguments as for ``token``."""
    chosen = {"audience": audience, "scope": scope, "runtime": runtime, "timeout": timeout}
    return Auth(chosen, min_valid)


class Auth:
    """Puts a good token on every request, and repeats a request once with a new one when the answer is 401."""

    requires_request_body = requires_response_body = False  # httpx reads these

    def __init__(self, chosen: dict[str, Any], min_valid: int) -> None:
        self._chosen = chosen
        self._min_valid = min_valid

    @property  # type: ignore[misc]  # httpx takes instances of its Auth only; this way it need not be imported here
    def __class__(self) -> type:
        httpx = sys.modules.get("httpx")
        return httpx.Auth if httpx else Auth

    def __call__(self, request: Any) -> Any:
        """What requests calls with a PreparedRequest."""
        self._put(request, self._token())
        request.register_hook("response", self._on_response)
        return request

    def sync_auth_flow(self, request: Any) -> Generator[Any, Any, None]:
        """What httpx drives: yield a request, be sent its response."""
        self._put(request, self._token())
        response = yield request
        if response.status_code == 401:
            self._put(request, self._renew())
            yield request

    async def async_auth_flow(self, request: Any) -> AsyncGenerator[Any, Any]:
        """The same for httpx.AsyncClient. The socket is asked in a thread, so that the event loop goes on."""
        import asyncio

        self._put(request, await asyncio.to_thread(self._token))
        response = yield request
        if response.status_code == 401:
            self._put(request, await asyncio.to_thread(self._renew))
            yield request

    def _on_response(self, response: Any, **arguments: Any) -> Any:
        body, authorization = response.request.body, response.request.headers.get("Authorization", "")
        ours = authorization.startswith("Bearer ")  # a redirect elsewhere took it off
        if response.status_code != 401 or not ours or not (body is None or isinstance(body, bytes | str)):
            return response  # a stream that has been read cannot be sent again
        _ = response.content  # the connection goes back to the pool only when it has been read
        response.close()
        request = response.request.copy()
        self._put(request, self._renew())
        again = response.connection.send(request, **arguments)
        again.history.append(response)
        again.request = request
        return again

    def _token(self) -> str:
        return token(min_valid=self._min_valid, **self._chosen)

    def _renew(self) -> str:
        return renew(**self._chosen)

    def _put(self, request: Any, access_token: str) -> None:
        request.headers["Authorization"] = f"Bearer {access_token}"


def token_target(
    path: str = "/v1/token",
    *,
    audience: str | None = None,
    scope: str | None = None,
    min_valid: int = 60,
    wait: int = 0,
) -> str:
    """The target of a request for a token, with its query."""
    from urllib.parse import urlencode  # here, because it loads more than all the rest

    query = {"audience": audience, "scope": scope, "min_valid": min_valid, "wait": wait or None}
    return f"{path}?{urlencode({name: value for name, value in query.items() if value is not None})}"


def ask(target: str, *, method: str = "GET", runtime: str | None = None, timeout: float = 5.0) -> dict[str, Any]:
    """The JSON object that the agent answers to ``target``.

    Raises AgentError (.status) for an answer that is not 200, TransportError when nobody or nonsense answers.
    """
    status, body = get(target, method=method, runtime=runtime, timeout=timeout)
    try:
        members = json.loads(body)
        detail = members.get("detail", "") if status == 200 else str(members["detail"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _not_the_agent() from error
    if status != 200:
        refusal = AgentError(detail, status=status, hint=members.get("hint") or None)
        if status == 503 and members.get("reason") != "signed-out":
            refusal.exit_code = TransportError.exit_code  # nobody refused: it is worth another try
        elif status == 400:
            refusal.exit_code = 2
        raise refusal
    return members  # type: ignore[no-any-return]  # it has members, so it is an object


def get(target: str, *, method: str = "GET", runtime: str | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
    """Status and body of the agent's answer to ``target``. Raises TransportError."""
    path = f"{runtime or os.environ.get('PI_AGENT_RUNTIME') or DEFAULT_RUNTIME}/{SOCKET}"
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    received = bytearray()
    try:
        channel.settimeout(timeout)
        channel.connect(path)
        channel.sendall(f"{method} {target} HTTP/1.1\r\nHost: pi\r\nConnection: close\r\n\r\n".encode("ascii"))
        while len(received) <= MAX_ANSWER and (chunk := channel.recv(16384)):
            received += chunk
    except OSError as error:
        if not received:  # a caller who is turned away has an answer, and then a broken connection
            raise _no_agent(path, error) from error
    finally:
        channel.close()
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    word = head[9:12]
    if not head.startswith(b"HTTP/1.1 ") or not word.isdigit():
        raise _not_the_agent()
    return int(word), body


def _access_token(members: dict[str, Any]) -> str:
    text = members.get("access_token")
    if not isinstance(text, str) or not text:
        raise _not_the_agent()
    return text


def _not_the_agent() -> TransportError:
    return TransportError("what answers on the socket is not the agent", reason="answer")


def _no_agent(path: str, error: OSError) -> TransportError:
    if isinstance(error, PermissionError):
        hint = "the socket is for its group: sudo usermod -aG pi-agent $USER, and log in again"
        return TransportError(f"no permission to use {path}", reason="permission", hint=hint)
    return TransportError(
        f"no agent answers at {path}: {error.strerror or error}",
        reason="no-agent",
        hint="systemctl status pi-agent; or start it by hand: pi-agent run",
    )
