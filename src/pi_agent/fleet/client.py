"""The way from a command to the REST interface: over ``DATA/fleet.sock``, or in this process when no server runs.

Either way it is the same application that answers, so a script can prepare a fleet before its server starts. Standard
library only, until a command finds no server.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from pi_agent.errors import ConfigError, ConflictError, PiAgentError, QueryError, TransportError, UnknownDeviceError
from pi_agent.fleet import folder
from pi_agent.fleet.settings import Settings

SECONDS = 60
EXTRA = "pip install 'pi-agent[fleet]'"

Exchange = Callable[[str, str, bytes], tuple[int, bytes]]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The REST interface of one fleet. Members in, members out; a refusal is raised as the error it was on the other side."""

    exchange: Exchange

    def get(self, path: str, **parameters: object) -> dict[str, Any]:
        given = {name: value for name, value in parameters.items() if value is not None}
        return self._members("GET", f"{path}?{urlencode(given)}" if given else path, b"")

    def post(self, path: str, members: Mapping[str, object]) -> dict[str, Any]:
        return self._members("POST", path, json.dumps(members).encode())

    def _members(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        status, answer = self.exchange(method, f"/api/v1{path}", body)
        try:
            members: dict[str, Any] = json.loads(answer)
        except ValueError:
            members = {"detail": f"the server answered {status}"}
        if status != 200:
            raise error_of(status, members)
        return members


def error_of(status: int, members: Mapping[str, Any]) -> PiAgentError:
    """The error that a problem answer stands for."""
    detail, hint = str(members.get("detail", f"the server answered {status}")), members.get("hint")
    if "position" in members:
        suggestion = members.get("suggestion")
        return QueryError(detail, position=members["position"], suggestion=suggestion, hint=hint)
    if status == 404:
        return UnknownDeviceError(detail, hint=hint)
    if status == 409:
        return ConflictError(detail, hint=hint)
    error = PiAgentError(detail, hint=hint)
    error.exit_code = {400: 2, 401: 4, 403: 4, 503: 5}.get(status, 1)
    return error


def connect(settings: Settings, *, create: bool = False) -> Fleet:
    """The fleet in a data folder. ``create`` makes one where there is none; else that is a TransportError."""
    if _is_served(settings):
        return Fleet(lambda *request: _over_socket(settings, *request))
    if not create and not settings.shares_database and not settings.database.exists():
        raise TransportError(
            f"there is no fleet in {settings.data}",
            reason="absent",
            hint=f"pi-fleet --data {settings.data} serve, or name another folder with --data",
        )
    return Fleet(_in_process(settings))


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=SECONDS)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def _is_served(settings: Settings) -> bool:
    connection = _Connection(str(settings.socket))
    try:
        connection.connect()
    except PermissionError as error:
        owner = folder.owner_of(settings.data)
        raise ConfigError(
            f"{settings.data} belongs to {owner}", key="data", hint=f"sudo -u {owner} pi-fleet ..."
        ) from error
    except OSError:
        return False
    finally:
        connection.close()
    return True


def _over_socket(settings: Settings, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = _Connection(str(settings.socket))
    try:
        connection.request(method, path, body or None, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise TransportError(f"the server at {settings.socket} did not answer", reason="answer") from error
    finally:
        connection.close()


def _in_process(settings: Settings) -> Exchange:
    """The application itself, for one command of the user who owns the folder."""
    os.umask(0o077)
    folder.prepare(settings.data)
    try:
        from pi_agent.fleet.inprocess import application  # Django, which only a command without a server needs
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs {error.name}, which is not installed", hint=EXTRA) from error
    return application(settings if settings.issuer else settings.with_port(settings.port), uid=os.geteuid())
