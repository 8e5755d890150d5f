"""The agent's socket: who comes in, how long they may stay, and what they have said so far.

One epoll, no threads. A caller is known by its peer credentials (SO_PEERCRED, unix(7)); its pid is never looked at,
since pids are used again. A request must be whole after 5 seconds and an idle connection goes after a minute. Nobody
can crowd out others: a user has so many connections (a new one then takes the place of that user's idlest) and so many
requests a second, and is told so. A full house never holds up a refresh (requirements E-01, E-02, E-04, E-12, RA-31,
RA-32, RA-36).
"""

from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte
import os
import select
import sys

from pi_agent.device import entrance
from pi_agent.device.allow import Peer
from pi_agent.device.local import MAX_REQUEST, BadRequestError, Request, answer, parse, problem

MAX_CALLERS = 2000
MAX_CALLERS_PER_UID = 1000
REQUESTS_PER_SECOND, BURST = 1000.0, 5000.0
MAX_UNSENT = 16 * 1024  # a caller who asks on without reading waits, and costs no memory
REQUEST_TIME, IDLE_TIME = 5.0, 60.0
SWEEP = 1.0
SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

    Respond = Callable[[Request, Peer, bool], bytes | None]


class Caller:
    """``closing`` once the last answer is on its way; ``deadline`` is when we stop waiting, in boot seconds.

    ``parked`` is a request that waits for its answer, with the caller's consent.
    """

    __slots__ = ("channel", "closing", "deadline", "events", "parked", "peer", "received", "to_send")

    def __init__(self, channel: _socket.socket, peer: Peer, deadline: float) -> None:
        self.channel = channel
        self.peer = peer
        self.deadline = deadline
        self.received = b""
        self.to_send = b""
        self.events = 0  # what the epoll tells us about; 0: it does not know this caller
        self.parked: Request | None = None
        self.closing = False

    def must_wait(self) -> bool:
        """What was received next is not to be answered now."""
        return self.closing or self.parked is not None or len(self.to_send) > MAX_UNSENT

    def is_idle(self) -> bool:
        return not (self.received or self.to_send or self.parked)


class Doors:
    """Listens in the folder ``runtime``; ``respond(request, peer, last)`` gives the bytes of an answer.

    It may give None to say "not yet" unless ``last`` is true; it is asked again by ``resume`` and when the caller's
    patience (``request.until``) ends. ``asks_groups`` says whether anybody needs a caller's groups.
    """

    def __init__(self, runtime: str, poll: select.epoll, respond: Respond, *, gid: int | None = None) -> None:
        self._respond = respond
        self._poll = poll
        self._callers: dict[int, Caller] = {}
        self._counts: dict[int, int] = {}
        self._budget: dict[int, tuple[float, float]] = {}
        self._swept = 0.0
        self.refused = 0
        self.asks_groups = True
        self._lock = entrance.take_lock(runtime)
        self._door, self._path = entrance.listen(runtime, gid)
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        poll.register(self._door.fileno(), select.EPOLLIN)

    def __len__(self) -> int:
        return len(self._callers)

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
        self._budget = {uid: left for uid, left in self._budget.items() if now - left[1] < BURST / REQUESTS_PER_SECOND}
        for caller in [caller for caller in self._callers.values() if now >= caller.deadline]:
            if caller.parked:
                self._retry(caller, now, last=True)
            else:
                self._dismiss(caller)

    def resume(self, now: float) -> None:
        """Something has changed: ask again for those who wait."""
        for caller in [caller for caller in self._callers.values() if caller.parked]:
            self._retry(caller, now, last=False)

    def close(self) -> None:
        if self._path:
            entrance.remove(self._path)
        for caller in list(self._callers.values()):
            self._dismiss(caller)
        self._door.close()
        os.close(self._reserve)
        os.close(self._lock)

    def _welcome(self, now: float) -> None:
        try:
            handle, _ = self._door._accept()  # type: ignore[attr-defined]  # what socket.accept() calls
        except BlockingIOError:
            return
        except OSError:
            self._make_room()
            return
        channel = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM, 0, handle
        )  # named, so that nobody asks the kernel
        channel.setblocking(False)
        self._admit(Caller(channel, peer_of(channel, groups=self.asks_groups), now + REQUEST_TIME), now)

    def _admit(self, caller: Caller, now: float) -> None:
        count = self._counts.get(caller.peer.uid, 0)
        if (count >= MAX_CALLERS_PER_UID and not self._dismiss_idlest(caller.peer.uid)) or len(self) >= MAX_CALLERS:
            self._turn_away(caller)
            return
        self._callers[caller.channel.fileno()] = caller
        self._counts[caller.peer.uid] = self._counts.get(caller.peer.uid, 0) + 1
        self._serve(caller, select.EPOLLIN, now)  # most have asked by now, and are gone before the epoll hears of them

    def _make_room(self) -> None:
        """No descriptor is left (RA-36): spend the one in reserve on a newcomer, and send the idlest caller home."""
        self.refused += 1
        if not self._dismiss_idlest(None):
            os.close(self._reserve)
            try:
                handle, _ = self._door._accept()  # type: ignore[attr-defined]  # what socket.accept() calls
                os.close(handle)
            except OSError:
                pass  # somebody else took it; the newcomer keeps waiting
            self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    def _dismiss_idlest(self, uid: int | None) -> bool:
        """End the connection that has been idle longest (of ``uid``, or of anybody). False when none is idle."""
        idle = [caller for caller in self._callers.values() if caller.is_idle() and uid in (None, caller.peer.uid)]
        if idle:
            self._dismiss(min(idle, key=_deadline))
        return bool(idle)

    def _turn_away(self, caller: Caller) -> None:
        self.refused += 1
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
            if events & (select.EPOLLHUP | select.EPOLLERR) and not caller.to_send:
                self._dismiss(caller)
                return
            self._send(caller, now)
        except BlockingIOError:
            self._listen_to(caller, select.EPOLLIN)  # nothing to read yet
        except OSError:
            self._dismiss(caller)

    def _send(self, caller: Caller, now: float) -> None:
        """Send what there is to send, and answer what was asked in the meantime; raises OSError when the caller has gone."""
        while caller.to_send and (sent := _send_some(caller)):
            caller.to_send = caller.to_send[sent:]
            if not caller.to_send:
                self._answer_received(caller, now)
        if not caller.to_send and caller.closing:
            self._dismiss(caller)
            return
        self._listen_to(caller, select.EPOLLOUT if caller.to_send else select.EPOLLIN)

    def _listen_to(self, caller: Caller, events: int) -> None:
        if not caller.events:
            self._poll.register(caller.channel.fileno(), events)
        elif events != caller.events:
            self._poll.modify(caller.channel.fileno(), events)
        caller.events = events

    def _take(self, caller: Caller, now: float) -> bool:
        """Read what has come and answer what is whole. False when the caller has hung up, or says too much."""
        chunk = caller.channel.recv(4096)
        if not caller.received and not caller.parked:
            caller.deadline = now + REQUEST_TIME  # from the first byte of a request, however slowly the rest comes
        caller.received += chunk
        self._answer_received(caller, now)
        return bool(chunk) and len(caller.received) <= 2 * MAX_REQUEST

    def _answer_received(self, caller: Caller, now: float) -> None:
        try:
            while not caller.must_wait() and (found := parse(caller.received)):
                request, length = found
                caller.received = caller.received[length:]
                if not self._spend(caller.peer.uid, now):
                    raise BadRequestError(
                        429, f"uid {caller.peer.uid} asks more than {REQUESTS_PER_SECOND:g} times a second"
                    )
                self._answer(caller, request, now, last=False)
        except BadRequestError as error:
            self.refused += 1
            body = problem(error.status, error.detail)
            pause = 1 if error.status == 429 else None
            caller.to_send += answer(
                error.status, body, keep_alive=False, content_type="application/problem+json", retry_after=pause
            )
            caller.closing = True

    def _answer(self, caller: Caller, request: Request, now: float, *, last: bool) -> None:
        response = self._respond(request, caller.peer, last)
        caller.parked = request if response is None else None
        if response is None:
            caller.deadline = request.until
            return
        caller.to_send += response
        caller.closing = not request.keep_alive
        caller.deadline = now + (REQUEST_TIME if caller.received else IDLE_TIME)

    def _retry(self, caller: Caller, now: float, *, last: bool) -> None:
        assert caller.parked is not None
        self._answer(caller, caller.parked, now, last=last)
        if not caller.parked:
            self._answer_received(caller, now)
        try:
            self._send(caller, now)
        except OSError:
            self._dismiss(caller)

    def _spend(self, uid: int, now: float) -> bool:
        """Take one request from what ``uid`` may ask; False when there is nothing left (a token bucket)."""
        left, at = self._budget.get(uid, (BURST, now))
        left += (now - at) * REQUESTS_PER_SECOND
        left = BURST if left > BURST else left
        if left < 1:
            self._budget[uid] = left, now
            return False
        self._budget[uid] = left - 1, now
        return True

    def _dismiss(self, caller: Caller) -> None:
        del self._callers[caller.channel.fileno()]
        self._counts[caller.peer.uid] -= 1
        if not self._counts[caller.peer.uid]:
            del self._counts[caller.peer.uid]
        caller.channel.close()  # which takes it out of the epoll, too: nobody else holds it


def peer_of(channel: _socket.socket, *, groups: bool) -> Peer:
    """User and groups of whoever connected, as they were then. More than 256 groups count as none but the primary."""
    credentials = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if not groups:
        return Peer(uid)
    try:
        packed = channel.getsockopt(_socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:
        packed = b""
    packed += credentials[8:12]
    return Peer(uid, (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)))


def _send_some(caller: Caller) -> int:
    """How much could be sent now; a caller who does not read is asked again when he does."""
    try:
        return caller.channel.send(caller.to_send)
    except BlockingIOError:
        return 0


def _deadline(caller: Caller) -> float:
    return caller.deadline
