"""Processes that the resident starts: a worker, a reader of the settings, a hook. Each has a deadline and one pipe back.

``os.posix_spawn`` needs neither a fork of this process nor an import. A child gets a clean environment, so no variable
of ours can change what its libraries do. What it sends is bounded; whatever it does, the resident only ever reads a pipe.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # no stubs for it, but `signal` would bring enum and 0.7 MB
import os

from pi_agent.device import frames

# What systemd and the makers of PKCS #11 modules tell whoever uses a key, by the environment and no other way.
KEY_VARIABLES = ("CREDENTIALS_DIRECTORY", "SOFTHSM2_CONF", "TPM2_PKCS11_STORE", "TPM2_PKCS11_TCTI", "PKCS11_SQL_LOCK")

E2BIG = 7  # errno.h; the module `errno` is one more to import

_ended: list[int] = []  # killed, and not yet gone: a process that hangs in the kernel must not hang us


class Child:
    """``purpose`` says to the agent what an answer is about. Raises OSError when there is no process to be had."""

    def __init__(
        self,
        command: list[str],
        deadline: float,
        purpose: object,
        *,
        said: bytes = b"",
        variables: dict[str, str] | None = None,
    ) -> None:
        self.deadline = deadline
        self.purpose = purpose
        self.received = bytearray()
        opened: list[int] = []
        try:
            opened += os.pipe2(os.O_CLOEXEC)
            opened += os.pipe2(os.O_CLOEXEC)
            there, our_end, self.output, back = opened
            os.set_blocking(our_end, False)  # nobody reads yet: what it does not hold would be waited for for ever
            if os.write(our_end, said) < len(said):
                raise OSError(E2BIG, "more to say than a pipe holds")
            actions = [(os.POSIX_SPAWN_DUP2, there, 0), (os.POSIX_SPAWN_DUP2, back, 1)]
            environment = {"LANG": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"} | (variables or {})
            self._pid = os.posix_spawn(command[0], command, environment, file_actions=actions, setpgroup=0)
            opened.remove(self.output)  # the one that stays
        finally:
            for handle in opened:
                os.close(handle)

    def read(self) -> bool:
        """Take what has come; False when there is no more, or more than there may be."""
        chunk = os.read(self.output, 65536)
        self.received += chunk
        return bool(chunk) and len(self.received) <= frames.MAX_FRAME

    def fields(self) -> dict[str, str] | None:
        """The answer, or None when it broke off or makes no sense."""
        try:
            return frames.unpack_answer(bytes(self.received))
        except ValueError:
            return None

    def end(self) -> None:
        """It has said what it had to say, or never will: end it, and whatever it started."""
        try:  # noqa: SIM105  # contextlib is dear
            os.killpg(self._pid, _signal.SIGKILL)
        except OSError:
            pass  # gone by itself, or a hook that became another user: that is left to its own devices
        _ended.append(self._pid)
        os.close(self.output)
        reap()


def python(settings: dict[str, str], module: str) -> list[str]:
    """The command that runs ``main()`` of ``module`` in a bare interpreter that finds what we find."""
    code = f"import sys; sys.path[:0] = {settings['path'].split(os.pathsep)!r}; from {module} import main; main()"
    return [settings["python"], "-I", "-S", "-c", code]


def settings_reader(settings: dict[str, str], deadline: float) -> Child:
    """A process that reads the settings again, as ``pi-agent run`` did, and answers with the fields of ``preparation.py``."""
    kept = {name: os.environ[name] for name in os.environ if name.startswith("PI_AGENT_") or name in KEY_VARIABLES}
    command = python(settings, "pi_agent.device.preparation")
    return Child(command, deadline, "reload", said=frames.pack({"flags": settings["flags"]}), variables=kept)


def reap() -> None:
    """Let go of children that are gone by now."""
    for pid in list(_ended):
        try:
            is_gone = os.waitpid(pid, os.WNOHANG)[0]
        except ChildProcessError:
            is_gone = pid  # somebody else has taken note of it
        if is_gone:
            _ended.remove(pid)
