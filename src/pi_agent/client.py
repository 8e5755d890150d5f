"""For programs on the board: ask the agent on its socket. Standard library only.

    >>> from pi_agent.client import token
    >>> token()                          # an access token with at least a minute to live
    'eyJ...'

This is the one file of the hall with a door in it: it connects to the agent's UNIX socket, and to nothing else.
"""

from __future__ import annotations

import _socket  # `socket` would cost a command that only prints a token a third of its time
import json
import os
from typing import Any

from pi_agent.errors import AgentError, TransportError

DEFAULT_RUNTIME = "/run/pi-agent"
SOCKET = "agent.sock"
MAX_ANSWER = 64 * 1024


def token(*, min_valid: int = 60, runtime: str | None = None, timeout: float = 5.0) -> str:
    """An access token with at least ``min_valid`` seconds left. ``runtime`` is the agent's folder (``$PI_AGENT_RUNTIME``).

    Raises AgentError when the agent has none (its message says why), TransportError when there is no agent.
    """
    return str(ask(f"/v1/token?min_valid={min_valid}", runtime=runtime, timeout=timeout)["access_token"])


def ask(target: str, *, runtime: str | None = None, timeout: float = 5.0) -> dict[str, Any]:
    """The JSON object that the agent answers to ``GET target``.

    Raises AgentError (.status) for an answer that is not 200, TransportError when nobody or nonsense answers.
    """
    status, body = get(target, runtime=runtime, timeout=timeout)
    try:
        members = json.loads(body)
        detail = members if status == 200 else str(members["detail"])
    except (ValueError, KeyError, TypeError) as error:
        raise TransportError("what answers on the socket is not the agent", reason="answer") from error
    if status != 200:
        raise AgentError(detail, status=status, hint=members.get("hint") or None)
    return members  # type: ignore[no-any-return]  # the agent answers objects


def get(target: str, *, runtime: str | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
    """Status and body of ``GET target``. Raises TransportError."""
    path = f"{runtime or os.environ.get('PI_AGENT_RUNTIME') or DEFAULT_RUNTIME}/{SOCKET}"
    channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        channel.settimeout(timeout)
        channel.connect(path)
        channel.sendall(f"GET {target} HTTP/1.1\r\nHost: pi\r\nConnection: close\r\n\r\n".encode("ascii"))
        received = bytearray()
        while len(received) <= MAX_ANSWER and (chunk := channel.recv(16384)):
            received += chunk
    except OSError as error:
        raise TransportError(
            f"no agent answers at {path}: {error.strerror or error}",
            reason="no-agent",
            hint="systemctl status pi-agent; or start it by hand: pi-agent run",
        ) from error
    finally:
        channel.close()
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    word = head[9:12]
    if not head.startswith(b"HTTP/1.1 ") or not word.isdigit():
        raise TransportError("what answers on the socket is not the agent", reason="answer")
    return int(word), body
