"""The agent's socket: who comes in, how long they may stay, and what they have said so far.

One epoll, no threads. A caller is known by its peer credentials (SO_PEERCRED, unix(7)); its pid is never looked at,
since pids are used again. A request must be whole after 5 seconds, an idle connection goes after a minute, and a full
house turns newcomers away without ever holding up a refresh (requirements E-01, E-02, E-04, E-12, RA-31, RA-32).
"""

from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte
import fcntl
import os
import select
import sys

from pi_agent.device.local import BadRequestError, Request, answer, parse, problem
from pi_agent.errors import ConfigError

SOCKET, LOCK = "agent.sock", "agent.lock"
MAX_PATH = 107  # struct sockaddr_un, unix(7)
MAX_CALLERS = 512
MAX_CALLERS_PER_UID = 256
REQUEST_TIME, IDLE_TIME = 5.0, 60.0
SWEEP = 1.0

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

    Respond = Callable[[Request, int], bytes]


class Caller:
    """``closing`` once the last answer is on its way; ``deadline`` is when we stop waiting, in boot seconds."""

    __slots__ = ("channel", "closing", "deadline", "received", "to_send", "uid")

    def __init__(self, channel: _socket.socket, uid: int, deadline: float) -> None:
        self.channel = channel
        self.uid = uid
        self.deadline = deadline
        self.received = b""
        self.to_send = b""
        self.closing = False


class Doors:
    """Listens in the folder ``runtime``; ``respond`` gives the bytes of the answer to a request from a uid."""

    def __init__(self, runtime: str, poll: select.epoll, respond: Respond) -> None:
        self._respond = respond
        self._poll = poll
        self._callers: dict[int, Caller] = {}
        self._swept = 0.0
        self._path = os.path.join(runtime, SOCKET)
        self._lock = self._take_lock(runtime)
        self._door = self._listen()
        poll.register(self._door.fileno(), select.EPOLLIN)

    def on_event(self, handle: int, events: int, now: float) -> None:
        if handle == self._door.fileno():
            self._welcome(now)
        elif handle in self._callers:
            self._serve(self._callers[handle], events, now)

    def nap(self, now: float) -> float:
        return max(0.0, self._swept + SWEEP - now) if self._callers else 3600.0

    def sweep(self, now: float) -> None:
        if now - self._swept < SWEEP:
            return
        self._swept = now
        for caller in [caller for caller in self._callers.values() if now >= caller.deadline]:
            self._dismiss(caller)

    def close(self) -> None:
        self._remove_socket()
        self._door.close()
        os.close(self._lock)

    def _take_lock(self, runtime: str) -> int:
        """Held for as long as we live, so that a socket without a holder is a dead agent's, and ours to replace."""
        lock = os.open(os.path.join(runtime, LOCK), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise ConfigError(f"another agent runs in {runtime}", path=runtime, hint="pi-agent status") from None
        return lock

    def _remove_socket(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return

    def _listen(self) -> _socket.socket:
        if len(os.fsencode(self._path)) > MAX_PATH:
            raise ConfigError(f"the socket's path is longer than {MAX_PATH} bytes: {self._path}", key="runtime")
        self._remove_socket()
        door = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC)
        before = os.umask(0o117)  # born 0660: a chmod afterwards would come too late
        try:
            door.bind(self._path)
        finally:
            os.umask(before)
        door.listen(128)
        return door

    def _welcome(self, now: float) -> None:
        while True:
            try:
                handle, _ = self._door._accept()  # type: ignore[attr-defined]  # what socket.accept() calls
            except OSError:  # nobody left, or no descriptor: either way the others go on
                return
            channel = _socket.socket(fileno=handle)
            channel.setblocking(False)
            credentials = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
            uid = int.from_bytes(credentials[4:8], sys.byteorder)
            caller = Caller(channel, uid, now + REQUEST_TIME)
            if len(self._callers) >= MAX_CALLERS or self._count(uid) >= MAX_CALLERS_PER_UID:
                self._turn_away(caller)
                continue
            self._callers[handle] = caller
            self._poll.register(handle, select.EPOLLIN)

    def _count(self, uid: int) -> int:
        return sum(caller.uid == uid for caller in self._callers.values())

    def _turn_away(self, caller: Caller) -> None:
        body = problem(503, "too many connections to the agent; close some, or keep one open")
        caller.to_send = answer(503, body, keep_alive=False, content_type="application/problem+json", retry_after=1)
        try:
            caller.channel.send(caller.to_send)
        except OSError:
            return  # gone already
        finally:
            caller.channel.close()

    def _serve(self, caller: Caller, events: int, now: float) -> None:
        try:
            if events & select.EPOLLIN and not self._take(caller, now):
                self._dismiss(caller)
                return
            if caller.to_send:
                caller.to_send = caller.to_send[caller.channel.send(caller.to_send) :]
        except BlockingIOError:
            pass
        except OSError:
            self._dismiss(caller)
            return
        if events & (select.EPOLLHUP | select.EPOLLERR) and not caller.to_send:
            self._dismiss(caller)
            return
        self._poll.modify(caller.channel.fileno(), select.EPOLLOUT if caller.to_send else select.EPOLLIN)
        if not caller.to_send and caller.closing:
            self._dismiss(caller)

    def _take(self, caller: Caller, now: float) -> bool:
        """Read what has come and answer what is whole. False when the caller has hung up."""
        chunk = caller.channel.recv(4096)
        if not caller.received:
            caller.deadline = now + REQUEST_TIME  # from the first byte of a request, however slowly the rest comes
        caller.received += chunk
        try:
            while not caller.closing and (found := parse(caller.received)):
                request, length = found
                caller.received = caller.received[length:]
                caller.to_send += self._respond(request, caller.uid)
                caller.closing = not request.keep_alive
                caller.deadline = now + (REQUEST_TIME if caller.received else IDLE_TIME)
        except BadRequestError as error:
            body = problem(error.status, error.detail)
            caller.to_send += answer(error.status, body, keep_alive=False, content_type="application/problem+json")
            caller.closing = True
        return bool(chunk)

    def _dismiss(self, caller: Caller) -> None:
        self._poll.unregister(caller.channel.fileno())
        del self._callers[caller.channel.fileno()]
        caller.channel.close()
