"""The agent's socket: who comes in, how long they may stay, and what they have said so far.

One epoll, no threads. A caller is known by its peer credentials (SO_PEERCRED, unix(7)); its pid is never looked at,
since pids are used again. A request must be whole after 5 seconds and an idle connection goes after a minute. Nobody
can crowd out others: a user has so many connections (a new one then takes the place of that user's idlest) and so many
requests a second, and is told so. In a full house a newcomer takes the place of the idlest of whoever has most. It never
holds up a refresh (requirements E-01, E-02, E-04, E-12, RA-31, RA-32, RA-36).
"""

from __future__ import annotations

import _socket  # the plain module: `socket` would bring enum, selectors and a megabyte
import os
import select
import sys

from pi_agent.device import entrance
from pi_agent.device.allow import Peer
from pi_agent.device.local import MAX_REQUEST, BadRequestError, Request, parse, refusal

MAX_CALLERS = 2000
MAX_CALLERS_PER_UID = 1000
REQUESTS_PER_SECOND, BURST = 1000.0, 5000.0
PAUSE, CREDIT = 1 / REQUESTS_PER_SECOND, BURST / REQUESTS_PER_SECOND  # the same in seconds
MAX_UNSENT = 16 * 1024  # a caller who asks on without reading waits, and costs no memory
REQUEST_TIME, IDLE_TIME = 5.0, 60.0
SWEEP = 1.0
SO_PEERGROUPS = 59  # include/uapi/asm-generic/socket.h
IN, OUT, GONE = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR
AT_ONCE = _socket.MSG_DONTWAIT  # on each call, which is cheaper than to make each socket non-blocking

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

    Respond = Callable[[Request, Peer, float, float], bytes | float]


class User:
    """What a uid has of us: open connections, and requests.

    ``paid_until`` is when its requests so far would have been in turn, one every PAUSE; it may be ahead by CREDIT.
    """

    __slots__ = ("callers", "paid_until", "peer")

    def __init__(self, uid: int) -> None:
        self.peer = Peer(uid)  # who it is when nobody asks for groups
        self.callers = 0
        self.paid_until = 0.0

    def spend(self, now: float) -> bool:
        """Take one request from what it may ask; False when there is nothing left."""
        until = (self.paid_until if self.paid_until > now else now) + PAUSE
        if until > now + CREDIT:
            return False
        self.paid_until = until
        return True

    def is_needed(self, now: float) -> bool:
        return self.callers > 0 or self.paid_until > now


class Caller:
    """``closing`` once the last answer is on its way; ``deadline`` is when we stop waiting, in boot seconds.

    ``parked`` is a request that waits for its answer, with the caller's consent.
    """

    __slots__ = ("channel", "closing", "deadline", "events", "handle", "parked", "peer", "received", "to_send", "user")

    def __init__(self, handle: int, channel: _socket.socket, user: User, peer: Peer, deadline: float) -> None:
        self.handle = handle
        self.channel = channel
        self.user = user
        self.peer = peer
        self.deadline = deadline
        self.received = b""
        self.to_send = b""
        self.events = 0  # what the epoll tells us about; 0: it does not know this caller
        self.parked: Request | None = None
        self.closing = False

    def is_idle(self) -> bool:
        return not (self.received or self.to_send or self.parked)


class Doors:
    """Listens in the folder ``runtime``; ``respond(request, peer, now, until)`` gives the bytes of an answer.

    To say "not yet" it gives the time until which the caller is willing to wait; it is then asked again, with that time
    as ``until`` (0.0 at first), by ``resume`` and when that time has come. ``asks_groups`` says whether anybody needs a
    caller's groups.
    """

    def __init__(self, runtime: str, poll: select.epoll, respond: Respond, *, gid: int | None = None) -> None:
        self._respond = respond
        self._poll = poll
        self._callers: dict[int, Caller] = {}
        self._users: dict[bytes, User] = {}  # by uid, in the form that the kernel tells it
        self._swept = 0.0
        self.refused = 0
        self.asks_groups = True
        self._lock = entrance.take_lock(runtime)
        self._door, self._path = entrance.listen(runtime, gid)
        self._handle = self._door.fileno()
        self._reserve = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        poll.register(self._handle, IN)

    def __len__(self) -> int:
        return len(self._callers)

    def on_event(self, handle: int, events: int, now: float) -> bool:
        """False when ``handle`` is none of ours."""
        if handle == self._handle:
            self._welcome(now)
        elif handle in self._callers:
            self._serve(self._callers[handle], events, now)
        else:
            return False
        return True

    def nap(self, now: float) -> float:
        return max(0.0, self._swept + SWEEP - now) if self._callers else 3600.0

    def sweep(self, now: float) -> None:
        if now - self._swept < SWEEP:
            return
        self._swept = now
        self._users = {uid: user for uid, user in self._users.items() if user.is_needed(now)}
        for caller in [caller for caller in self._callers.values() if now >= caller.deadline]:
            if caller.parked:
                self._retry(caller, now)
            else:
                self._dismiss(caller)

    def resume(self, now: float) -> None:
        """Something has changed: ask again for those who wait."""
        for caller in [caller for caller in self._callers.values() if caller.parked]:
            self._retry(caller, now)

    def let_in(self, gid: int | None) -> str:
        """Another group may come in from now on; None: our own. The answer is "" or what went wrong."""
        try:
            if self._path:
                os.chown(self._path, -1, os.getegid() if gid is None else gid, follow_symlinks=False)
        except OSError as error:
            return f"the socket keeps its group ({error.strerror}) until: sudo systemctl restart pi-agent"
        return ""

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
        # named, so that nobody asks the kernel what kind of socket it is
        channel = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, handle)
        credentials = channel.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        user = self._users.get(credentials[4:8])
        if user is None:
            user = self._users[credentials[4:8]] = User(int.from_bytes(credentials[4:8], sys.byteorder))
        peer = with_groups(user.peer, channel, credentials) if self.asks_groups else user.peer
        caller = Caller(handle, channel, user, peer, now + REQUEST_TIME)
        if not self._has_room_for(user):
            self._turn_away(caller)
            return
        self._callers[handle] = caller
        user.callers += 1
        self._serve(caller, IN, now)  # most have asked by now, and are gone before the epoll hears of them

    def _has_room_for(self, user: User) -> bool:
        """There is room for one more, if need be after an idle one has gone."""
        if user.callers >= MAX_CALLERS_PER_UID:
            return self._dismiss_idlest(user)
        if len(self._callers) < MAX_CALLERS:
            return True
        return self._dismiss_idlest(max(self._users.values(), key=_callers)) or self._dismiss_idlest(None)

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

    def _dismiss_idlest(self, user: User | None) -> bool:
        """End the connection that has been idle longest (of ``user``, or of anybody). False when none is idle."""
        idle = [caller for caller in self._callers.values() if caller.is_idle() and user in (None, caller.user)]
        if idle:
            self._dismiss(min(idle, key=_deadline))
        return bool(idle)

    def _turn_away(self, caller: Caller) -> None:
        self.refused += 1
        why = "too many connections to the agent; close some, or keep one open"
        try:
            caller.channel.send(refusal(503, why, keep_alive=False, retry_after=1), AT_ONCE)
        except OSError:
            return  # gone already
        finally:
            caller.channel.close()

    def _serve(self, caller: Caller, events: int, now: float) -> None:
        try:
            if events & IN:
                self._take(caller, now)
            elif events & GONE and not caller.to_send:
                raise ConnectionResetError
            self._send(caller, now)
        except BlockingIOError:
            self._listen_to(caller, IN)  # nothing to read yet
        except OSError:
            self._dismiss(caller)

    def _take(self, caller: Caller, now: float) -> None:
        """Read what has come and answer what is whole; raises OSError when the caller has hung up, or says too much."""
        chunk = caller.channel.recv(4096, AT_ONCE)
        if not chunk:
            raise ConnectionResetError
        if not caller.received and not caller.parked:
            caller.deadline = now + REQUEST_TIME  # from the first byte of a request, however slowly the rest comes
        caller.received += chunk
        self._answer_received(caller, now)
        if len(caller.received) > 2 * MAX_REQUEST:
            raise ConnectionResetError

    def _send(self, caller: Caller, now: float) -> None:
        """Send what there is to send, and answer what was asked in the meantime; raises OSError when the caller has gone."""
        while caller.to_send and (sent := _send_some(caller)):
            caller.to_send = caller.to_send[sent:]
            if caller.received and not caller.to_send:
                self._answer_received(caller, now)
        if caller.to_send:
            self._listen_to(caller, OUT)
        elif caller.closing:
            self._dismiss(caller)
        else:
            self._listen_to(caller, IN)

    def _listen_to(self, caller: Caller, events: int) -> None:
        if not caller.events:
            self._poll.register(caller.handle, events)
        elif events != caller.events:
            self._poll.modify(caller.handle, events)
        caller.events = events

    def _answer_received(self, caller: Caller, now: float) -> None:
        """Answer one request after the other, as long as there is one and the caller takes in what we say."""
        try:
            while caller.received and not (caller.closing or caller.parked) and len(caller.to_send) <= MAX_UNSENT:
                found = parse(caller.received)
                if not found:
                    break
                request, length = found
                caller.received = caller.received[length:]
                if not caller.user.spend(now):
                    raise BadRequestError(
                        429, f"uid {caller.peer.uid} asks more than {REQUESTS_PER_SECOND:g} times a second"
                    )
                self._answer(caller, request, now, 0.0)
        except BadRequestError as error:
            self.refused += 1
            pause = 1 if error.status == 429 else None
            caller.to_send += refusal(error.status, error.detail, keep_alive=False, retry_after=pause)
            caller.closing = True

    def _answer(self, caller: Caller, request: Request, now: float, until: float) -> None:
        response = self._respond(request, caller.peer, now, until)
        if isinstance(response, float):
            caller.parked = request
            caller.deadline = response
            return
        caller.parked = None
        caller.to_send += response
        caller.closing = not request.keep_alive
        caller.deadline = now + (REQUEST_TIME if caller.received else IDLE_TIME)

    def _retry(self, caller: Caller, now: float) -> None:
        assert caller.parked is not None
        self._answer(caller, caller.parked, now, caller.deadline)
        self._answer_received(caller, now)
        try:
            self._send(caller, now)
        except OSError:
            self._dismiss(caller)

    def _dismiss(self, caller: Caller) -> None:
        del self._callers[caller.handle]
        caller.user.callers -= 1
        caller.channel.close()  # which takes it out of the epoll, too: nobody else holds it


def with_groups(peer: Peer, channel: _socket.socket, credentials: bytes) -> Peer:
    """The caller with its groups as they were when it connected. More than 256 count as none but the primary."""
    try:
        packed = channel.getsockopt(_socket.SOL_SOCKET, SO_PEERGROUPS, 1024)
    except OSError:
        packed = b""
    packed += credentials[8:12]
    return Peer(peer.uid, (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4)))


def _send_some(caller: Caller) -> int:
    """How much could be sent now; a caller who does not read is asked again when he does."""
    try:
        return caller.channel.send(caller.to_send, AT_ONCE)
    except BlockingIOError:
        return 0


def _callers(user: User) -> int:
    return user.callers


def _deadline(caller: Caller) -> float:
    return caller.deadline
