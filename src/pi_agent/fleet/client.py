"""The way from a command to the REST interface: over ``DATA/fleet.sock``, to another machine with an operator token,
or in this process when no server runs.

Each way it is the same application that answers, so a script can prepare a fleet before its server starts. Standard
library only, until a command finds no server; and what only one of the ways needs is imported there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from pi_agent.errors import ConfigError, ConflictError, PiAgentError, QueryError, TransportError, UnknownDeviceError
from pi_agent.fleet.place import SOCKET, default_data, program, typed
from pi_agent.fleet.wire import LocalConnection

TYPE_CHECKING = False  # type checkers take it for true; typing and dataclasses would cost a command line milliseconds
if TYPE_CHECKING:
    from typing import Any, Protocol

    from pi_agent.fleet.settings import Settings

    class _Answer(Protocol):
        status: int

        def read1(self, most: int, /) -> bytes: ...
        def close(self) -> None: ...

    class _Connection(Protocol):
        def request(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], /) -> None: ...
        def getresponse(self) -> _Answer: ...
        def close(self) -> None: ...


SECONDS = 60
CHUNK = 64 * 1024
EXTRA = "pip install 'pi-identity-agent[fleet]'"
LOOPBACK = ("127.0.0.1", "::1", "localhost")

Exchange = Callable[[str, str, bytes, Mapping[str, str]], tuple[int, Iterator[bytes]]]


class Fleet:
    """The REST interface of one fleet. Members in, members out; a refusal is raised as the error it was on the other side.

    A change carries a key of its own, so that it can be sent again when its answer was lost, and happens once. ``served``:
    a server answers, not this process.
    """

    def __init__(self, exchange: Exchange, *, served: bool = True) -> None:
        self.exchange = exchange
        self.served = served

    def get(self, path: str, **parameters: object) -> dict[str, Any]:
        return self._members("GET", _target(path, parameters))

    def post(self, path: str, members: Mapping[str, object]) -> dict[str, Any]:
        return self._members("POST", path, members)

    def put(self, path: str, members: Mapping[str, object]) -> dict[str, Any]:
        return self._members("PUT", path, members)

    def delete(self, path: str) -> dict[str, Any]:
        return self._members("DELETE", path)

    def stream(self, path: str, **parameters: object) -> Iterator[bytes]:
        """The body of an answer as it comes."""
        status, chunks = self.exchange("GET", f"/api/v1{_target(path, parameters)}", b"", {})
        if status != 200:
            raise error_of(status, _read(status, chunks))
        return chunks

    def _members(self, method: str, path: str, members: Mapping[str, object] | None = None) -> dict[str, Any]:
        body = json.dumps(members).encode() if members is not None else b""
        headers = {} if method == "GET" else {"idempotency-key": os.urandom(16).hex()}
        headers |= {"content-type": "application/json"} if body else {}
        try:
            status, chunks = self.exchange(method, f"/api/v1{path}", body, headers)
            answer = _read(status, chunks)
        except TransportError as error:
            if error.reason != "answer":
                raise
            status, chunks = self.exchange(method, f"/api/v1{path}", body, headers)
            answer = _read(status, chunks)
        if status != 200:
            raise error_of(status, answer)
        return answer


def segment(text: str) -> str:
    """Text as one segment of a path."""
    return quote(text, safe="")


def _target(path: str, parameters: Mapping[str, object]) -> str:
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _read(status: int, chunks: Iterator[bytes]) -> dict[str, Any]:
    try:
        members: dict[str, Any] = json.loads(b"".join(chunks))
    except ValueError:
        members = {"detail": f"the server answered {status}"}
    return members


def error_of(status: int, members: Mapping[str, Any]) -> PiAgentError:
    """The error that a problem answer stands for."""
    detail, hint = str(members.get("detail", f"the server answered {status}")), members.get("hint")
    if "position" in members:
        suggestion = members.get("suggestion")
        return QueryError(detail, position=members["position"], suggestion=suggestion, hint=hint)
    if status == 404:
        return UnknownDeviceError(detail, hint=hint)
    if status in (409, 412, 422):
        return ConflictError(detail, hint=hint)
    error = PiAgentError(detail, hint=hint)
    error.exit_code = {400: 2, 401: 4, 403: 4, 429: 5, 503: 5}.get(status, 1)
    return error


def connect(data: Path, load: Callable[[], Settings], *, create: bool = False, served: bool = False) -> Fleet:
    """The fleet in a data folder, whose settings are only loaded when no server runs there.

    ``create`` makes one where there is none; else that is a TransportError. ``served``: it is one, too, when there is one
    that no server serves.
    """
    path = data / SOCKET
    connection = _server_at(path)
    if connection is not None:
        return Fleet(_Wire(lambda: LocalConnection(str(path), SECONDS), f"the server at {path}", {}, connection))
    if served:
        raise TransportError(f"no server runs in {data}", reason="absent")
    from pi_agent.fleet.served import adopted  # only a command without a server needs it

    settings = adopted(load())
    if not create and not settings.shares_database and not settings.database.exists():
        raise absent(settings)
    if not settings.shares_database and not settings.database.exists():
        sys.stderr.write(f"a new fleet begins in {settings.data}\n")
    return Fleet(_in_process(settings), served=False)


def absent(settings: Settings) -> TransportError:
    """The error that the data folder holds no fleet."""
    program = command(settings)
    return TransportError(
        f"there is no fleet in {settings.data}",
        reason="absent",
        hint=f"{program} serve begins one, {program} simulate 200 makes one to look at; or name another folder with --data",
    )


def connect_to(url: str, token: str) -> Fleet:
    """The fleet at an address, for the operator whom ``token`` names. Raises ConfigError."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in LOOPBACK
    if not parts.hostname or not (local or parts.scheme == "https") or parts.path not in ("", "/") or parts.query:
        raise ConfigError(
            f"{url!r} is not the address of a fleet", key="server", hint="--server https://fleet.example.org"
        )
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            "there is no operator token", key="token", hint="put it in PI_FLEET_TOKEN, or name --token-file"
        )
    import http.client

    host, port = parts.hostname, parts.port
    kind = http.client.HTTPConnection if local else http.client.HTTPSConnection  # which checks certificate and name
    headers = {"authorization": f"Bearer {token}"}
    errors = (OSError, http.client.HTTPException)
    return Fleet(_Wire(lambda: kind(host, port, timeout=SECONDS), url, headers, errors=errors))


class _Wire:
    """One connection, used for one request after the other, and opened again when it is lost."""

    def __init__(
        self,
        open_connection: Callable[[], _Connection],
        name: str,
        headers: Mapping[str, str],
        connection: _Connection | None = None,
        errors: tuple[type[Exception], ...] = (OSError,),
    ):
        self.open_connection, self.name, self.headers = open_connection, name, headers
        self.connection, self.errors = connection, errors

    def __call__(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Iterator[bytes]]:
        try:
            self.connection = self.connection or self.open_connection()
            self.connection.request(method, path, body or None, {**self.headers, **headers})
            answer = self.connection.getresponse()
        except self.errors as error:
            raise self.lost(error) from error
        return answer.status, self.chunks(answer)

    def chunks(self, answer: _Answer) -> Iterator[bytes]:
        whole = False
        try:
            while chunk := answer.read1(CHUNK):
                yield chunk
            whole = True
        except self.errors as error:
            raise self.lost(error) from error
        finally:
            answer.close()
            if not whole and self.connection is not None:  # the rest of this answer must not be taken for the next one
                self.connection.close()
                self.connection = None

    def lost(self, error: Exception) -> TransportError:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        unreached = isinstance(error, ConnectionRefusedError) or type(error).__name__ == "gaierror"
        words = getattr(error, "strerror", None) or type(error).__name__
        return TransportError(f"{self.name} did not answer: {words}", reason="refused" if unreached else "answer")


def command(settings: Settings) -> str:
    """What to type for the fleet of these settings."""
    import shlex  # only who is told to type something needs it

    there = "" if settings.data == default_data(os.environ) else f" --data {shlex.quote(str(settings.data))}"
    return program() + there


def _server_at(path: Path) -> LocalConnection | None:
    """A connection to the server with this socket, if one runs."""
    try:
        return LocalConnection(str(path), SECONDS)
    except PermissionError as error:
        from pi_agent.fleet import folder

        owner = folder.owner_of(path.parent)
        raise ConfigError(
            f"{path.parent} belongs to {owner}", key="data", hint=f"sudo -u {owner} {typed(path.parent)}"
        ) from error
    except OSError:
        return None


def _in_process(settings: Settings) -> Exchange:
    """The application itself, for one command of the user who owns the folder."""
    from pi_agent.fleet import folder

    os.umask(0o077)
    folder.prepare(settings.data)
    try:
        from pi_agent.fleet.inprocess import application  # Django, which only a command without a server needs
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed", hint=EXTRA) from error
    served = application(settings if settings.issuer else settings.with_port(settings.port), uid=os.geteuid())

    def exchange(method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Iterator[bytes]]:
        status, answer = served(method, path, body)
        return status, iter([answer])

    return exchange
