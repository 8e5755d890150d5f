"""The resident: it waits, schedules and answers local callers, for years, in a few megabytes.

It holds neither the private key nor a TLS stack, and imports nothing dear (a test lists its modules); for a refresh it
starts a worker (``worker.py``) and waits for its answer beside everything else. Whatever a worker does (crash, hang,
garbage) is one failed attempt. A token that is still good is served, whatever the attempts since have come to.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no stubs for it, but `signal` would bring enum and 0.7 MB
import os
import select
import sys
import time

from pi_agent.device import allow, api, children, clock, frames, leaving, metrics, network, outlets, schedule
from pi_agent.device.doors import SWEEP, Doors
from pi_agent.device.journal import INFO, WARNING, Journal
from pi_agent.device.systemd import notify
from pi_agent.device.tokens import DEMAND_PAUSE, NEVER, Slot, Tokens
from pi_agent.errors import PiAgentError

WORKER_DEADLINE = 40.0  # the worker ends its own attempt after 30
LONGEST_NAP = 10.0  # a suspended board wakes up in the middle of a nap, and boot time has gone on
HEARTBEAT = 5.0
KEY_REST = 86400.0  # between two rotations, however often the server asks for one: it must not wear the card out
NEVER_YET = -KEY_REST
NOTHING, NETWORK, ALL = range(3)  # what may have changed for an attempt that failed: the clock and the settings are ALL
MAX_EVENTS = 64  # taken from the epoll at a time
UNSENT = ("board_document", "allow", "flags", "warnings", "note")  # what a worker has no use for

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

    from pi_agent.device.local import Request


def main(settings_fd: int, alarm: int | None = None) -> None:
    """Run until SIGTERM or SIGINT. ``settings_fd`` is a pipe that holds the settings as a frame, ``alarm`` is ``alarm.py``'s."""
    with os.fdopen(settings_fd, "rb") as pipe:
        settings = frames.unpack(pipe.read(frames.MAX_FRAME))
    try:
        agent = Agent(settings)
    except PiAgentError as error:
        sys.stderr.write(f"error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        raise SystemExit(error.exit_code) from None
    agent.run(alarm)


def let_callers_finish() -> None:
    """Not to cut in on whoever wakes us (SCHED_BATCH, sched(7)): a caller has then asked when we look, and is answered in
    one go. Refused under the systemd unit, which has done it itself.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:
        return


def boot_seconds() -> float:
    """Seconds since boot, sleep included (CLOCK_BOOTTIME), so that no clock step and no suspend stretches a token."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def chance() -> float:
    return int.from_bytes(os.urandom(4), "big") / 2**32


class Agent:
    """``settings`` are the fields that ``preparation.py`` packs."""

    def __init__(self, settings: dict[str, str]) -> None:
        now = boot_seconds()
        self.settings = settings
        self.uid = os.geteuid()
        self.rules = allow.unpack(settings["allow"])
        spread = schedule.spread_at_start(now, float(settings["spread"]))
        first = schedule.first_attempt(now, phase=float(settings["phase"]), spread=spread)
        self.tokens = Tokens(settings["resource"], settings["scope"], first)
        self.attempts = self.refreshes = self.clock_steps = 0
        self.failures: dict[str, int] = {}
        self._refreshed = 0.0
        self._poll = select.epoll()
        gid = _gid(settings)
        self._doors = Doors(settings["runtime"], self._poll, self._respond, gid=gid)
        self._doors.asks_groups = any(rule.gid is not None for rule in self.rules)
        self._outlets = outlets.Outlets(settings, gid)
        self._journal = Journal()
        self._note = settings["note"]
        self._children: dict[int, children.Child] = {}
        self._in_flight: Slot | None = None
        self._overtaken = NOTHING  # what has changed since that attempt began
        self._new_key = NEVER_YET
        self._anchor: float | None = None
        self._watch = clock.Watch(time.time(), now)
        self._beat = 0.0
        self._due = 0.0  # when there is more to do than to answer callers; 0.0 is at once
        self.leaving = leaving.Leaving()
        self._once_more = False  # the settings have been changed again while they are read
        self._running = True

    def run(self, alarm: int | None) -> None:
        let_callers_finish()
        heard = self._listen(alarm)
        self._journal.say(f"listening on {self.settings['runtime']}/agent.sock")
        now = boot_seconds()
        for warning in self.warnings(now):
            self._journal.say(warning, level=WARNING)
        notify("READY=1", "STATUS=" + api.sentence(self, now, self.tokens.default))
        while self._running:
            events = self._poll.poll(self._due - now if self._due > now else 0.0, MAX_EVENTS)
            now = boot_seconds()
            for handle, kinds in events:
                if self._doors.on_event(handle, kinds, now):
                    if self._due > now + SWEEP:  # noqa: PLR1730  # min() is a dear call here
                        self._due = now + SWEEP
                elif handle in heard:
                    heard[handle]()
                elif handle in self._children:
                    self._on_child(handle)
                    self._due = 0.0
            if now >= self._due:
                self._on_time(now)
                self._due = now + self._nap(now)
        self._stop()

    def _stop(self) -> None:
        notify("STOPPING=1")
        for child in self._children.values():
            child.end()
        self._outlets.remove()
        self._doors.close()

    def _nap(self, now: float) -> float:
        until = min([now + LONGEST_NAP, *(child.deadline for child in self._children.values())])
        if not self._in_flight:
            until = min(until, self.tokens.next_attempt())
        return max(0.0, min(until - now, self._doors.nap(now)))

    def _on_time(self, now: float) -> None:
        if now - self._beat >= HEARTBEAT:
            self._beat = now
            notify("WATCHDOG=1")
            self.tokens.sweep(now)
            children.reap()
        self._outlets.sweep(self.tokens.default, now)
        self._tell("files", self._outlets.problem, now)
        self._notice_clock(now)
        self._doors.sweep(now)
        for handle in [handle for handle, child in self._children.items() if now >= child.deadline]:
            self._end(handle, now, "timeout", "the worker did not end in time")
        if not self._in_flight and (slot := self.tokens.due(now)):
            self._start(slot, now)

    def _notice_clock(self, now: float) -> None:
        step = self._watch.step(time.time(), now)
        if step:
            self.clock_steps += 1
            self._journal.say(
                f"the clock was set {'forward' if step > 0 else 'back'} by {clock.length(round(abs(step)))}"
            )
            self._try_failed(now, ALL)
        self._tell("clock", self.clock_problem(now), now)

    def _tell(self, subject: str, problem: str, now: float) -> None:
        """Log a problem when it comes, and each hour; figures in it do not make it another one."""
        if problem:
            self._journal.report(subject, problem[:24], problem, now, level=WARNING)
        else:
            self._journal.forget(subject)

    # Attempts

    def _start(self, slot: Slot, now: float) -> None:
        self.attempts += 1
        slot.asked = now
        request = {
            "action": "token",
            "audience": slot.audience,
            "scope": slot.scope,
            "refresh_token": slot.refresh_token,
            "may_rotate": "1" if now - self._new_key >= KEY_REST else "",
        }
        self._in_flight, self._overtaken = slot, NOTHING
        try:
            self._spawn("pi_agent.device.worker", request, now, slot)
        except OSError as error:  # no process, memory or descriptor to be had: as good as a failed attempt
            reason = {"outcome": "failed", "reason": "resources", "message": f"no worker: {error.strerror}"}
            self._finish(slot, reason, now)

    def _spawn(self, module: str, request: dict[str, str], now: float, purpose: object) -> None:
        fields = {name: value for name, value in self.settings.items() if name not in UNSENT} | request
        fields["anchor"] = "" if self._anchor is None else repr(self._anchor)
        command = children.python(self.settings, module)
        self._adopt(children.Child(command, now + WORKER_DEADLINE, purpose, said=frames.pack(fields)))

    def _adopt(self, child: children.Child) -> None:
        self._children[child.output] = child
        self._poll.register(child.output, select.EPOLLIN)

    def _on_child(self, handle: int) -> None:
        if not self._children[handle].read():
            self._end(handle, boot_seconds(), "worker", "the worker broke off")

    def _end(self, handle: int, now: float, reason: str, message: str) -> None:
        child = self._children.pop(handle)
        self._poll.unregister(handle)
        child.end()
        fields = child.fields() or {"outcome": "failed", "reason": reason, "message": message}
        if isinstance(child.purpose, Slot):
            self._finish(child.purpose, fields, now)
        elif child.purpose == "reload":
            self._on_reload(fields, now)
            if self._once_more:
                self._reload(now)
        elif child.purpose is self.leaving:
            self.leaving.on_answer(fields)
            self._revoke(now)

    def _finish(self, slot: Slot, fields: dict[str, str], now: float) -> None:
        self._in_flight = None
        slot.renewing = False
        if fields.get("rotates"):
            self._new_key = now
        if fields.get("anchor"):
            self._anchor = float(fields["anchor"])
        self._note = fields.get("note", self._note)
        self._tell("key", self._note, now)
        if self.leaving.said:  # whatever it brought was asked for before
            self.leaving.add(fields.get("head", ""), fields.get("refresh_token", ""))
            self._revoke(now)
            return
        before = slot.outcome
        try:
            self._book(slot, fields, now)
        except (KeyError, ValueError):
            self._book(slot, {"outcome": "failed", "reason": "worker", "message": "the worker made no sense"}, now)
        if slot.failure:
            self.tokens.rest = slot.asked + schedule.SHORTEST_PAUSE
            self._try_again(slot, now, self._overtaken)
        if slot is self.tokens.default:
            self._outlets.put(slot, now, changed=slot.outcome != before, start=self._start_hook)
            notify("STATUS=" + api.sentence(self, now, slot))
        name = f"token {slot.audience} {slot.scope}"
        level = WARNING if slot.failure else INFO
        self._journal.report(
            name, slot.outcome + slot.failure.get("reason", ""), api.sentence(self, now, slot), now, level=level
        )
        self._doors.resume(now)

    def _book(self, slot: Slot, fields: dict[str, str], now: float) -> None:
        if fields["outcome"] == "token":
            slot.keep(fields, chance())
            self.refreshes += 1
            self._refreshed = now
            return
        slot.fail(fields, now, chance())
        reason = metrics.label(fields.get("reason", ""))
        self.failures[reason] = self.failures.get(reason, 0) + 1

    def _start_hook(self, command: list[str], variables: dict[str, str], now: float) -> None:
        try:
            self._adopt(children.Child(command, now + outlets.HOOK_DEADLINE, "hook", variables=variables))
        except OSError as error:
            self._journal.say(f"cannot run {command[0]}: {error.strerror}", level=WARNING)

    def _try_failed(self, now: float, change: int) -> None:
        """The world has changed: what failed, or fails yet, is worth another try at once (at most one a second)."""
        self._due = 0.0
        self._overtaken = max(self._overtaken, change)
        for slot in self.tokens:
            self._try_again(slot, now, change)

    def _try_again(self, slot: Slot, now: float, change: int) -> None:
        """With another network, a server that has refused us, or told us to wait, would only say so again."""
        unheard = slot.outcome == schedule.FAILED and "retry_after" not in slot.failure
        if slot.failure and not self.leaving.said and (change == ALL or (change == NETWORK and unheard)):
            slot.try_now(now)

    # What callers ask for

    def _respond(self, request: Request, peer: allow.Peer, now: float, until: float) -> bytes | float:
        return api.respond(self, request, peer, now, until)

    def want(self, slot: Slot, now: float) -> None:
        """A caller needs a token that is good for longer. A back-off, and the spread after boot, are not cut short."""
        if (
            not slot.failure
            and not self.leaving.said
            and not (slot is self.tokens.default and slot.outcome == "starting")
        ):
            slot.try_now(now, pause=DEMAND_PAUSE)
            self._due = 0.0

    def renew(self, slot: Slot, peer: allow.Peer, now: float) -> None:
        """A caller needs another token than this one: its server refused it, or somebody wants to see it work.

        A back-off is cut short for root and for our own user only.
        """
        privileged = peer.uid in (0, self.uid)
        if privileged and self.leaving.said:
            self._sign_in(now)
        if not self.leaving.said and (privileged or (not slot.failure and now - slot.asked >= DEMAND_PAUSE)):
            slot.renewing = True
            slot.try_now(now)
            self._due = 0.0

    def _sign_in(self, now: float) -> None:
        if self.leaving.said:
            self.leaving.said, self.tokens.rest = "", now
        self._due = 0.0
        self._overtaken = ALL
        self.tokens.each(lambda slot: slot.try_now(now))

    def is_coming(self, slot: Slot, until: float) -> bool:
        """An attempt for this slot is on its way, or will be by ``until``."""
        return slot is self._in_flight or (slot.next <= until and not self.leaving.said)

    def sign_out(self, now: float) -> None:
        """Revoke every token at the server, forget them, and ask for none until told to."""
        self.leaving.begin(self.tokens, now)
        self.tokens.each(lambda slot: slot.clear(NEVER))
        self.tokens.rest = NEVER
        self._outlets.remove()
        self._revoke(now)

    def _revoke(self, now: float) -> None:
        """Have the next tokens revoked, if no worker is at it yet."""
        while tokens := self.leaving.next_batch():
            try:
                self._spawn("pi_agent.device.worker", {"action": "revoke", "tokens": tokens}, now, self.leaving)
                break
            except OSError as error:
                self.leaving.on_answer({"message": f"no worker: {error.strerror}"})
        if self.leaving.said and not self.is_signing_out():
            self._journal.say(f"signed out: {self.leaving.said}")
            self._doors.resume(now)

    def is_signing_out(self) -> bool:
        """Tokens are being revoked, or a worker that was under way may bring another."""
        return self.leaving.is_busy() or (bool(self.leaving.said) and self._in_flight is not None)

    # What it is like

    def clock_problem(self, now: float) -> str:
        return clock.sentence(time.time(), now, self._anchor, _day)

    def clock_offset(self, now: float) -> int | None:
        """The server's clock minus ours in seconds, None before the first answer."""
        return None if self._anchor is None else clock.offset(time.time(), now, self._anchor)

    def warnings(self, now: float) -> list[str]:
        found = [*self.settings["warnings"].split("\n"), self.clock_problem(now), self._outlets.problem, self._note]
        return [warning for warning in found if warning]

    def since_token(self, now: float) -> int:
        return int(now - self._refreshed) if self.refreshes else -1

    def is_busy(self, slot: Slot | None = None) -> bool:
        """A worker is out to get a token: any, or this one."""
        return self._in_flight is not None and slot in (None, self._in_flight)

    def connections(self) -> int:
        return len(self._doors)

    def refused_callers(self) -> int:
        return self._doors.refused

    # Around it

    def _listen(self, alarm: int | None) -> dict[int, Callable[[], None]]:
        """What else wakes us: signals, the network, the clock; each descriptor with what to do then."""
        signals = self._catch_signals()
        heard: dict[int, Callable[[], None]] = {signals: lambda: self._on_signals(os.read(signals, 64))}
        route = network.listen()
        if route:
            heard[route.fileno()] = lambda: self._on_route(route)
        if alarm is not None:
            os.set_inheritable(alarm, False)
            heard[alarm] = lambda: self._on_alarm(alarm)
        for handle in heard:
            self._poll.register(handle, select.EPOLLIN)
        return heard

    def _on_route(self, route: network.Network) -> None:
        if route.came_up():
            self._try_failed(boot_seconds(), NETWORK)

    def _on_alarm(self, alarm: int) -> None:
        self._due = 0.0
        try:
            os.read(alarm, 8)
        except OSError:
            return  # ECANCELED is how it tells

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGUSR1, _signal.SIGHUP):
            _signal.signal(number, lambda *_: None)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # where it is ignored, no child can be waited for
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        return reader

    def _on_signals(self, numbers: bytes) -> None:
        now = boot_seconds()
        self._due = 0.0
        if _signal.SIGTERM in numbers or _signal.SIGINT in numbers:
            self._running = False
        if _signal.SIGUSR1 in numbers:
            self._sign_in(now)
        if _signal.SIGHUP in numbers:
            self._reload(now)

    def _reload(self, now: float) -> None:
        """One reader at a time: of two, the one that read first might end last, and its settings would stay."""
        self._once_more = any(child.purpose == "reload" for child in self._children.values())
        if self._once_more:
            return
        try:
            self._adopt(children.settings_reader(self.settings, now + WORKER_DEADLINE))
        except OSError as error:
            self._journal.say(f"the settings were not read again: {error.strerror}", level=WARNING)

    def _on_reload(self, fields: dict[str, str], now: float) -> None:
        """New settings, or the reason why the old ones stay."""
        if fields["outcome"] != "settings" or fields["runtime"] != self.settings["runtime"]:
            why = fields.get("message") or "another runtime folder needs a restart"
            self._journal.say(f"the settings stay as they were: {why}", level=WARNING)
            return
        self.settings = fields
        self.rules = allow.unpack(fields["allow"])
        self._doors.asks_groups = any(rule.gid is not None for rule in self.rules)
        self._tell("socket", self._doors.let_in(_gid(fields)), now)
        self._outlets.change(fields, _gid(fields))
        self.tokens.change(fields["resource"], fields["scope"], now)
        self._journal.say("the settings were read again")
        self._try_failed(now, ALL)


def _gid(settings: dict[str, str]) -> int | None:
    """Whom the socket and the files are for: the group ``local.group``."""
    return int(settings["socket_gid"]) if settings["socket_gid"] else None


def _day(seconds: float) -> str:
    return "{}-{:02}-{:02}".format(*time.gmtime(min(max(seconds, 0), 2**31 - 1)))
