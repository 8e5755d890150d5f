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

from pi_agent.device import frames, schedule
from pi_agent.device.doors import Doors
from pi_agent.device.local import Request, answer, problem, write_json
from pi_agent.device.systemd import notify

WORKER_DEADLINE = 40.0  # the worker ends its own attempt after 30
LONGEST_NAP = 10.0  # a suspended board wakes up in the middle of a nap, and boot time has gone on
MIN_VALID = 60
HOUR = 3600.0

TOKEN, BOARD, STATUS = "/v1/token", "/v1/board", "/v1/status"


def main(settings_fd: int) -> None:
    """Run until SIGTERM or SIGINT. ``settings_fd`` is a pipe that holds the settings as a frame."""
    with os.fdopen(settings_fd, "rb") as pipe:
        settings = frames.unpack(pipe.read(frames.MAX_FRAME))
    Agent(settings).run()


def boot_seconds() -> float:
    """Seconds since boot, sleep included (CLOCK_BOOTTIME), so that no clock step and no suspend stretches a token."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Agent:
    """``settings`` are the fields that ``commands/run.py`` packs."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._poll = select.epoll()
        self._doors = Doors(settings["runtime"], self._poll, self._respond)
        self._worker: Worker | None = None
        self._running = True
        now = boot_seconds()
        self._next = schedule.first_attempt(now, phase=float(settings["phase"]), spread=float(settings["spread"]))
        self._head = self._tail = ""
        self._expires = self._asked = 0.0
        self._attempts = self._refreshes = self._failures = 0
        self._outcome = "starting"
        self._failure: dict[str, str] = {}
        self._logged = ("", 0.0)

    def run(self) -> None:
        signals = self._catch_signals()
        self._say(f"listening on {self._settings['runtime']}/agent.sock")
        notify("READY=1", "STATUS=" + self._sentence(boot_seconds()))
        while self._running:
            now = boot_seconds()
            for handle, events in self._poll.poll(self._nap(now)):
                if handle == signals:
                    self._on_signals(os.read(signals, 64))
                elif self._worker and handle == self._worker.output:
                    self._on_worker()
                else:
                    self._doors.on_event(handle, events, boot_seconds())
            self._on_time(boot_seconds())
        notify("STOPPING=1")
        if self._worker:
            self._worker.end()
        self._doors.close()

    def _nap(self, now: float) -> float:
        until = min(self._next if not self._worker else self._worker.deadline, now + LONGEST_NAP)
        return max(0.0, min(until - now, self._doors.nap(now)))

    def _on_time(self, now: float) -> None:
        notify("WATCHDOG=1")
        self._doors.sweep(now)
        if self._worker and now >= self._worker.deadline:
            self._worker.end()
            self._finish({"outcome": "failed", "reason": "timeout", "message": "the worker did not end in time"}, now)
        if not self._worker and now >= self._next:
            self._start(now)

    def _start(self, now: float) -> None:
        self._attempts += 1
        self._asked = now
        try:
            self._worker = Worker(self._settings, now + WORKER_DEADLINE)
        except OSError as error:  # no process, memory or descriptor to be had: as good as a failed attempt
            self._finish({"outcome": "failed", "reason": "resources", "message": f"no worker: {error.strerror}"}, now)
            return
        self._poll.register(self._worker.output, select.EPOLLIN)

    def _on_worker(self) -> None:
        assert self._worker is not None
        if self._worker.read():
            return
        self._worker.end()
        try:
            fields = frames.unpack(bytes(self._worker.received))
            fields["outcome"]
        except (ValueError, KeyError):
            fields = {"outcome": "failed", "reason": "worker", "message": "the worker broke off"}
        self._finish(fields, boot_seconds())

    def _finish(self, fields: dict[str, str], now: float) -> None:
        self._worker = None
        self._outcome = fields["outcome"]
        chance = int.from_bytes(os.urandom(4), "big") / 2**32
        if self._outcome == "token":
            self._keep(fields, chance)
        else:
            self._failures += 1
            self._failure = fields
            retry_after = float(fields["retry_after"]) if fields.get("retry_after", "").isdigit() else None
            self._next = schedule.retry_at(now, self._outcome, self._failures, chance=chance, retry_after=retry_after)
        self._log(now)
        notify("STATUS=" + self._sentence(now))

    def _keep(self, fields: dict[str, str], chance: float) -> None:
        self._head, self._tail = fields["head"], fields["tail"]
        self._expires = self._asked + int(fields["expires_in"])
        self._next = schedule.refresh_at(self._asked, int(fields["expires_in"]), chance=chance)
        self._refreshes += 1
        self._failures = 0
        self._failure = {}

    # What a caller gets

    def _respond(self, request: Request, uid: int) -> bytes:
        now = boot_seconds()
        if request.path == TOKEN:
            return self._respond_token(request, now)
        if request.path == STATUS:
            return answer(200, self._status(now), keep_alive=request.keep_alive)
        if request.path == BOARD:
            return answer(200, self._settings["board_document"].encode(), keep_alive=request.keep_alive)
        body = problem(404, f"the agent answers {TOKEN}, {BOARD} and {STATUS}")
        return answer(404, body, keep_alive=request.keep_alive, content_type="application/problem+json")

    def _respond_token(self, request: Request, now: float) -> bytes:
        wanted = request.query.get("min_valid", str(MIN_VALID))
        if not wanted.isascii() or not wanted.isdigit() or len(wanted) > 6:
            return self._refuse(request, 400, "min_valid is a whole number of seconds")
        for name, setting in (("audience", "resource"), ("scope", "scope")):
            if request.query.get(name, self._settings[setting]) != self._settings[setting]:
                return self._refuse(request, 403, f"this agent fetches no token for another {name}")
        left = int(self._expires - now)
        if left > 0 and left >= int(wanted):
            body = (self._head + str(left) + self._tail).encode()
            return answer(200, body, keep_alive=request.keep_alive)
        if not self._failure:
            self._next = min(self._next, max(now, self._asked + schedule.SHORTEST_PAUSE))
        status = 403 if self._outcome in (schedule.REFUSED, schedule.PENDING) else 503
        return self._refuse(request, status, self._sentence(now), retry_after=max(1, int(self._next - now) + 1))

    def _refuse(self, request: Request, status: int, detail: str, *, retry_after: int | None = None) -> bytes:
        body = problem(status, detail, hint=self._failure.get("hint", ""), reason=self._failure.get("reason", ""))
        return answer(
            status,
            body,
            keep_alive=request.keep_alive,
            content_type="application/problem+json",
            retry_after=retry_after,
        )

    def _status(self, now: float) -> bytes:
        left = int(self._expires - now)
        return write_json(
            {
                "schema": "pi-agent.status/1",
                "state": self._state(now),
                "sentence": self._sentence(now),
                "issuer": self._settings["issuer"],
                "client_id": self._settings["client_id"],
                "board": self._settings["board"].encode(),
                "token_expires_in": left if left > 0 else None,
                "next_attempt_in": None if self._worker else max(0, int(self._next - now)),
                "attempts": self._attempts,
                "refreshes": self._refreshes,
                "failures": self._failures,
                "failure": {name: self._failure.get(name, "") for name in ("reason", "message", "hint")}
                if self._failure
                else None,
            }
        )

    def _state(self, now: float) -> str:
        if self._failure:
            return self._outcome
        return "ok" if self._expires > now else "starting"

    def _sentence(self, now: float) -> str:
        left, wait = self._expires - now, max(0.0, self._next - now)
        token = f"token ok, {_length(left)} left" if left > 0 else "no token"
        if not self._failure:
            what = "next refresh" if left > 0 else "first request"
            return f"{token}, {what} in {_length(wait)}"
        word = {schedule.PENDING: "waiting for an operator's approval", schedule.REFUSED: "refused"}.get(
            self._outcome, "last attempt failed"
        )
        return f"{token}; {word} ({self._failure.get('message', '')}); next attempt in {_length(wait)}"

    # Around it

    def _catch_signals(self) -> int:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGUSR1):
            _signal.signal(number, lambda *_: None)
        _signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._poll.register(reader, select.EPOLLIN)
        return reader

    def _on_signals(self, numbers: bytes) -> None:
        if _signal.SIGTERM in numbers or _signal.SIGINT in numbers:
            self._running = False
        if _signal.SIGUSR1 in numbers and not self._worker:
            self._next = min(self._next, max(boot_seconds(), self._asked + schedule.SHORTEST_PAUSE))

    def _log(self, now: float) -> None:
        """A line when something changes, and once an hour while it does not get better (G-09)."""
        what = self._outcome + self._failure.get("reason", "")
        last, at = self._logged
        if what != last or (self._failure and now - at >= HOUR):
            self._logged = (what, now)
            self._say(self._sentence(now), level=4 if self._failure else 6)

    def _say(self, sentence: str, *, level: int = 6) -> None:
        prefix = f"<{level}>" if "JOURNAL_STREAM" in os.environ else "pi-agent: "
        clean = "".join(character if character.isprintable() else "?" for character in sentence)
        sys.stderr.write(f"{prefix}{clean}\n")
        sys.stderr.flush()


class Worker:
    """One attempt in a process of its own: ``-I -S``, a clean environment, settings in, an answer out."""

    def __init__(self, settings: dict[str, str], deadline: float) -> None:
        self.deadline = deadline
        self.received = bytearray()
        code = f"import sys; sys.path[:0] = {settings['path'].split(os.pathsep)!r}; from pi_agent.device.worker import main; main()"
        command = [settings["python"], "-I", "-S", "-c", code]
        there, settings_end = os.pipe2(os.O_CLOEXEC)
        self.output, back = os.pipe2(os.O_CLOEXEC)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, there, 0), (os.POSIX_SPAWN_DUP2, back, 1)]
            environment = {"LANG": "C.UTF-8", "PATH": "/usr/bin:/bin"}
            self._pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
            os.write(settings_end, frames.pack(settings))
        except BaseException:
            os.close(self.output)
            raise
        finally:
            for handle in (there, settings_end, back):
                os.close(handle)

    def read(self) -> bool:
        """Take what has come; False when there is no more."""
        chunk = os.read(self.output, 65536)
        self.received += chunk
        return bool(chunk) and len(self.received) <= frames.MAX_FRAME

    def end(self) -> None:
        os.kill(self._pid, _signal.SIGKILL)  # it has said what it had to say, or never will
        os.waitpid(self._pid, 0)
        os.close(self.output)


def _length(seconds: float) -> str:
    whole = int(max(seconds, 0))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole // 3600} h"
