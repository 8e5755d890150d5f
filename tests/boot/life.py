"""The life of a package under a real systemd: installed, set up, killed, upgraded, on a read-only card, removed, purged.

``steps`` gives the sentences and what makes each true, in order; a step that is not true raises AssertionError.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from board_files import OTHER_SERIAL, device_tree
from flash import TRACE, card_writes
from lab import Lab, Machine
from server import HOST, Fleet

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
UNIT = "pi-agent.service"
STATE, CONFIG = "/var/lib/pi-agent", "/etc/pi-agent/config.toml"
CA = "/etc/ssl/boot-test-ca.pem"
AT_ONCE = "\n[token]\nspread = 0\n"  # no waiting for a place among a fleet's boards
WATCHDOG = "/run/systemd/system/pi-agent.service.d/test.conf"
KEY_DROP_IN = "/etc/systemd/system/pi-agent.service.d/key.conf"
WITH_CREDENTIAL = (
    *("systemd-run", "--quiet", "--pipe", "--wait", "-p", "User=pi-agent"),
    *("-p", "LoadCredentialEncrypted=key.pem"),
)
PATIENCE = 30.0
REFRESHES = 96  # of a day: a token lives half an hour, and is renewed at the half of that
SINKS = """
[sinks]
token_file = "/run/pi-agent/token"
environment_file = "/run/pi-agent/environment"
hooks = "/etc/pi-agent/hooks"
"""
HOOK = "#!/bin/sh\necho $PI_AGENT_EVENT >>/run/pi-agent/hooked\n"
DAY = f"for _ in $(seq {REFRESHES}); do pi-agent refresh && pi-agent token && pi-agent status; done >/run/said"
EVERYTHING = range(256)

Step = tuple[str, Callable[[], object]]


@dataclass
class Life:
    """One Debian, from before the package to after it. ``old`` and ``new`` are two versions of it."""

    lab: Lab
    fleet: Fleet
    old: Path
    new: Path
    home: Path
    whole: bool = True

    def prepare(self) -> None:
        (self.lab.root / "opt/old.deb").write_bytes(self.old.read_bytes())
        (self.lab.root / "opt/new.deb").write_bytes(self.new.read_bytes())
        (self.lab.root / CA[1:]).write_bytes(self.fleet.ca.read_bytes())
        (self.lab.root / "etc/hosts").write_text(f"127.0.0.1 localhost {HOST}\n")
        device_tree(self.home / "firmware", "raspi2b")
        device_tree(self.home / "other-firmware", "raspi2b", OTHER_SERIAL)

    @property
    def board(self) -> list[str]:
        return [f"{self.home}/firmware:/sys/firmware"]

    def steps(self) -> Generator[Step, None, None]:
        self.prepare()
        with self.lab.boot(binds=self.board) as machine:
            yield from self._first_boot(machine)
        with self.lab.boot(binds=self.board) as machine:
            yield "cold boot: a token without anybody doing anything", lambda: self._token(machine)
            if self.whole:
                yield from self._accidents(machine)
            yield "the settings are read again while it runs", lambda: self._reload(machine)
            yield "doctor finds nothing wrong, for root and for the agent's user", lambda: self._doctor(machine)
            yield "the socket is for local.group, once the agent is in it", lambda: self._group(machine)
            yield "a unit that needs a token waits for it", lambda: self._online(machine)
            yield "with the socket, the first to ask starts the agent", lambda: self._socket(machine)
            yield from self._versions(machine)
        if self.whole:
            yield from self._other_cards()
        with self.lab.boot(binds=[*self.board, f"{self.home}/other-firmware:/mnt/firmware"]) as machine:
            yield from self._end(machine)

    def _first_boot(self, machine: Machine) -> Iterator[Step]:
        yield "installed: enabled, inert, nothing failed", lambda: self._install(machine)
        yield "set up: enrolled, waiting for approval", lambda: self._set_up(machine)
        yield "approved: first token", lambda: self._restart(machine)
        yield (
            "status line is a sentence; the journal warns of the overlay, and of nothing else",
            lambda: self._said(machine),
        )
        yield "set up once more: the same identity", lambda: self._set_up_again(machine)
        yield "a user of the group gets the token, another does not", lambda: self._callers(machine)
        yield "killed outright: started again, token", lambda: self._kill(machine, "9")

    def _accidents(self, machine: Machine) -> Iterator[Step]:
        yield "a day with everything on: nothing written to the card", lambda: self._flash(machine)
        yield "what a token costs a program", lambda: self._costs(machine)
        yield "a hung agent is ended by the watchdog, and comes back", lambda: self._watchdog(machine)
        yield "a wrong setting stops it for good, and says which", lambda: self._wrong_setting(machine)
        yield "the key as systemd keeps it, encrypted, and back again: token", lambda: self._credential(machine)

    def _versions(self, machine: Machine) -> Iterator[Step]:
        yield "upgraded: restarted, same identity, token", lambda: self._exchange(machine, "new")
        yield "downgraded: the same", lambda: self._exchange(machine, "old")

    def _other_cards(self) -> Iterator[Step]:
        yield "the same card in another board is refused, and says so", self._other_board
        yield "root read-only from the start: token", self._read_only
        yield "/var in memory, state on a volume of its own: token", self._volatile_with_state
        yield "/var in memory, state lost: not set up, and not restarted", self._volatile

    def _end(self, machine: Machine) -> Iterator[Step]:
        yield "removed: stopped, identity kept", lambda: self._remove(machine)
        yield "installed again: the same identity, token", lambda: self._again(machine)
        yield "purged with the answer no: identity kept", lambda: self._purge(machine, keep=True)
        yield "purged with nobody to ask: nothing is left", lambda: self._purge(machine, keep=False)
        yield (
            "set up by a file on the boot partition: token, and the file forgets",
            lambda: self._first_boot_file(machine),
        )

    # Parts of a life

    def _install(self, machine: Machine) -> None:
        machine.run("dpkg", "-i", "/opt/old.deb")
        same(machine.run("systemctl", "is-enabled", UNIT).strip(), "enabled")
        same(machine.show(UNIT, "ActiveState"), "inactive")
        same(machine.show(UNIT, "ConditionResult"), "no")
        contains(machine.run("systemctl", "--failed"), "0 loaded units")
        contains(machine.run("ls", "/usr/lib/python3/dist-packages/pi_agent/device/__pycache__"), "pyc")
        contains(machine.run("pi-agent", "board", "--json"), '"revision": "a21041"')

    def _set_up(self, machine: Machine) -> None:
        said = machine.run("pi-agent", "setup", self.fleet.url, "--ca-file", CA, "--name", "lab", codes=(4,))
        contains(said, "waiting for approval")
        machine.run("sh", "-c", f"cat >> {CONFIG}", text=AT_ONCE)
        self.fleet.approve(self._identity(machine)["client_id"])

    def _restart(self, machine: Machine) -> None:
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)
        owners = machine.run("stat", "-c", "%U %a %n", STATE, f"{STATE}/key.pem", "/run/pi-agent").split("\n")
        same(owners[:3], [f"pi-agent 700 {STATE}", f"pi-agent 600 {STATE}/key.pem", "pi-agent 755 /run/pi-agent"])

    def _said(self, machine: Machine) -> None:
        contains(machine.show(UNIT, "StatusText"), "token ok, ")
        warnings = machine.run("journalctl", "-b", "-u", UNIT, "-p", "warning", "-o", "cat", "-q").splitlines()
        same([line for line in warnings if "is gone after the next boot" not in line], [])
        same(len(warnings) > 0, True)  # this card is an overlay in memory, which the agent has noticed
        same(machine.run("systemd-analyze", "verify", "--man=no", UNIT, codes=EVERYTHING), "")

    def _set_up_again(self, machine: Machine) -> None:
        before = self._identity(machine)
        machine.run("pi-agent", "setup", self.fleet.url)
        same(self._identity(machine), before)
        same(machine.run("find", STATE, "-not", "-user", "pi-agent"), "")
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)

    def _reload(self, machine: Machine) -> None:
        pid = machine.show(UNIT, "MainPID")
        machine.run("systemctl", "reload", UNIT)
        self._token(machine)
        same(machine.show(UNIT, "MainPID"), pid)

    def _doctor(self, machine: Machine) -> None:
        machine.run("pi-agent", "doctor")
        machine.run("runuser", "-u", "pi-agent", "--", "pi-agent", "doctor")

    def _group(self, machine: Machine) -> None:
        drop_in = "/etc/pi-agent/config.d/group.toml"
        machine.run("groupadd", "api")
        machine.run("sh", "-c", f"mkdir -p /etc/pi-agent/config.d && cat >{drop_in}", text='[local]\ngroup = "api"\n')
        contains(machine.run("pi-agent", "config", "check", codes=(2,)), "usermod -aG api pi-agent")
        machine.run("usermod", "-aG", "api", "pi-agent")
        self._restart(machine)
        same(machine.run("stat", "-c", "%U %G %a", "/run/pi-agent/agent.sock").strip(), "pi-agent api 660")
        machine.run("rm", drop_in)
        self._restart(machine)

    def _online(self, machine: Machine) -> None:
        machine.run("systemctl", "stop", UNIT)
        machine.run("systemctl", "start", "pi-agent-online.target")
        same(machine.run("pi-agent", "token").count("."), 2)

    def _socket(self, machine: Machine) -> None:
        """What is at the other end of a connection is the agent that systemd starts for it."""
        machine.run("systemctl", "stop", "pi-agent-online.target", UNIT)
        machine.run("systemctl", "start", "pi-agent.socket")
        same(machine.show(UNIT, "ActiveState"), "inactive")
        same(machine.run("pi-agent", "token", "--timeout", "20").count("."), 2)
        self._kill(machine, "9")
        machine.run("systemctl", "stop", "pi-agent.socket", UNIT)
        machine.run("systemctl", "start", UNIT)
        self._token(machine)

    def _callers(self, machine: Machine) -> None:
        machine.run("useradd", "-G", "pi-agent", "friend")
        machine.run("useradd", "stranger")
        token = machine.run("runuser", "-u", "friend", "--", "pi-agent", "token")
        same(token.count("."), 2)
        contains(machine.run("runuser", "-u", "stranger", "--", "pi-agent", "token", codes=(4, 5)), "permission")

    def _kill(self, machine: Machine, signal: str) -> None:
        before = machine.show(UNIT, "MainPID")
        machine.run("sh", "-c", f"kill -{signal} {before}")
        self._until(lambda: machine.show(UNIT, "MainPID") not in ("0", before), "it was not started again")
        self._token(machine)

    def _flash(self, machine: Machine) -> str:
        """Every write of the agent, its workers and hooks in as many refreshes as a day has, as the system calls say."""
        machine.run("cp", CONFIG, "/run/config.toml")
        machine.run("sh", "-c", f"cat >>{CONFIG}", text=SINKS)
        machine.run("install", "-D", "/dev/stdin", "/etc/pi-agent/hooks/on-token.d/one", text=HOOK)
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)
        pid = machine.show(UNIT, "MainPID")
        machine.run("systemd-run", "-q", "--unit=trace", *TRACE.split(), "-o", "/run/trace", "-p", pid)
        self._until(lambda: "TracerPid:\t0" not in machine.run("cat", f"/proc/{pid}/status"), "strace did not attach")
        machine.run("touch", "/run/midnight")
        before, logged = self._refreshes(machine), self._log_lines(machine)
        machine.run("sh", "-c", DAY, timeout=600)
        same(self._refreshes(machine) - before, REFRESHES)
        machine.run("systemctl", "stop", "trace")
        calls = machine.run("cat", "/run/trace").splitlines()
        contains("\n".join(calls), "pi-agent/key.pem")  # or the trace has missed the workers
        same(int(machine.run("wc", "-l", "/run/pi-agent/hooked").split()[0]) >= REFRESHES, True)
        same(card_writes(calls), [])
        changed = machine.run("find", "/", "-xdev", "-newer", "/run/midnight", "-type", "f").splitlines()
        # The journal is systemd's, where it keeps one.
        same([path for path in changed if not path.startswith("/var/log/journal/")], [])
        lines = self._log_lines(machine) - logged
        machine.run("cp", "/run/config.toml", CONFIG)
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)
        return f"{REFRESHES} refreshes, {len(calls)} system calls, {lines} lines in the journal, 0 files, 0 bytes"

    def _log_lines(self, machine: Machine) -> int:
        return len(machine.run("journalctl", "-b", "-u", UNIT, "-o", "cat", "-q").splitlines())

    def _costs(self, machine: Machine) -> str:
        return machine.run("python3", "-", text=(HERE / "pair.py").read_text()).strip()

    def _refreshes(self, machine: Machine) -> int:
        return int(json.loads(machine.run("pi-agent", "status", "--json"))["refreshes"])

    def _read_only(self) -> str:
        with self.lab.boot("--read-only", binds=self.board) as machine:
            same(
                machine.run("touch", "/var/lib/probe", "/etc/probe", codes=EVERYTHING).count("Read-only file system"), 2
            )
            return self._token(machine)

    def _watchdog(self, machine: Machine) -> None:
        machine.run("mkdir", "-p", str(Path(WATCHDOG).parent))
        machine.run("sh", "-c", f"cat > {WATCHDOG}", text="[Service]\nWatchdogSec=12s\nRestartSec=1s\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", UNIT)
        self._kill(machine, "STOP")
        contains(machine.run("journalctl", "-u", UNIT, "-o", "cat").lower(), "watchdog")
        machine.run("rm", WATCHDOG)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", UNIT)

    def _wrong_setting(self, machine: Machine) -> str:
        machine.run("cp", CONFIG, "/run/config.toml")
        machine.run("sh", "-c", f"echo 'sprad = 1' >> {CONFIG}")
        machine.run("systemctl", "restart", UNIT, codes=(1,))
        time.sleep(6)
        same(machine.show(UNIT, "ActiveState"), "failed")
        same(machine.show(UNIT, "NRestarts"), "0")
        said = machine.run("journalctl", "-u", UNIT, "-o", "cat", "-n", "8")
        contains(said, f"{CONFIG}:")
        machine.run("cp", "/run/config.toml", CONFIG)
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)
        return next(line for line in said.splitlines() if "error:" in line)

    def _credential(self, machine: Machine) -> str:
        """The commands of docs/enrollment.md, to the letter; then the way back."""
        show = ("pi-agent", "key", "show", "--json")
        machine.run("mkdir", "-p", "/etc/credstore.encrypted", str(Path(KEY_DROP_IN).parent))
        wrapped = "/etc/credstore.encrypted/key.pem"
        machine.run("systemd-creds", "encrypt", "--name=key.pem", f"{STATE}/key.pem", wrapped)
        machine.run("sh", "-c", f"cat > {KEY_DROP_IN}", text="[Service]\nLoadCredentialEncrypted=key.pem\n")
        machine.run("systemctl", "daemon-reload")
        before = json.loads(machine.run(*show))
        machine.run(*WITH_CREDENTIAL, "pi-agent", "key", "move", "--to", "credential")
        machine.run("systemctl", "restart", UNIT)
        machine.run("shred", "-u", f"{STATE}/key.pem")
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)
        machine.run("systemctl", "reload", UNIT)
        self._token(machine)
        after = json.loads(machine.run(*WITH_CREDENTIAL, *show))
        same((after["store"], after["kid"], after["protection"]), ("credential:key.pem", before["kid"], "file"))
        same(machine.run("grep", "-rl", "PRIVATE KEY", STATE, "/etc", codes=EVERYTHING), "")
        contains(machine.run(*show, codes=(2,)), "LoadCredentialEncrypted=key.pem")
        mode = machine.run("stat", "-c", "%U %a", "/run/credentials/pi-agent.service/key.pem").strip()
        machine.run(*WITH_CREDENTIAL, "pi-agent", "key", "move", "--to", "file")
        machine.run("rm", KEY_DROP_IN, wrapped)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", UNIT)
        self._token(machine)
        return machine.run("systemctl", "--version").splitlines()[0] + f": handed over as {mode}"

    def _exchange(self, machine: Machine, version: str) -> None:
        before, pid = self._identity(machine), machine.show(UNIT, "MainPID")
        machine.run("dpkg", "-i", f"/opt/{version}.deb")
        same(machine.show(UNIT, "MainPID") in ("0", pid), False)
        self._token(machine)
        same(self._identity(machine), before)

    def _other_board(self) -> str:
        with self.lab.boot(binds=[f"{self.home}/other-firmware:/sys/firmware"]) as machine:
            said = machine.run("journalctl", "-u", UNIT, "-o", "cat")
            contains(said, "this identity belongs to the board")
            same(machine.show(UNIT, "ActiveState") == "active", False)
            return next(line for line in said.splitlines() if "belongs" in line)

    def _volatile_with_state(self) -> None:
        state = self.home / "state"
        state.mkdir()
        with self.lab.boot(binds=[*self.board, f"{state}:/mnt"]) as machine:
            machine.run("sh", "-c", f"cp -a {STATE}/. /mnt && chown pi-agent: /mnt && chmod 700 /mnt")
        with self.lab.boot("--volatile=state", binds=[*self.board, f"{state}:{STATE}"]) as machine:
            self._token(machine)
            contains(machine.run("grep", " / / ro,", "/proc/self/mountinfo", codes=EVERYTHING), " / / ro,")

    def _volatile(self) -> None:
        with self.lab.boot("--volatile=state", binds=self.board) as machine:
            said = machine.run("journalctl", "-u", UNIT, "-o", "cat")
            contains(said, "not set up")
            same(machine.show(UNIT, "NRestarts"), "0")

    def _remove(self, machine: Machine) -> None:
        machine.run("dpkg", "-r", "pi-agent")
        same(machine.run("systemctl", "is-active", UNIT, codes=EVERYTHING).strip(), "inactive")
        machine.run("sh", "-c", f"ls {STATE}/key*.pem")
        machine.run("test", "!", "-e", "/usr/lib/systemd/system/pi-agent.service.d")

    def _again(self, machine: Machine) -> None:
        before = self._identity(machine)
        machine.run("dpkg", "-i", "/opt/new.deb")
        self._token(machine)
        same(self._identity(machine), before)

    def _purge(self, machine: Machine, *, keep: bool) -> None:
        if keep:
            answer = "pi-agent pi-agent/purge-identity boolean false\n"
            machine.run("debconf-set-selections", text=answer)
        machine.run("dpkg", "-P", "pi-agent", timeout=20)
        for path in (STATE, "/etc/pi-agent"):
            machine.run("test", *(() if keep else ("!",)), "-e", path)
        machine.run("test", "!", "-e", "/run/pi-agent")
        if keep:
            machine.run("dpkg", "-i", "/opt/new.deb")
            self._token(machine)

    def _first_boot_file(self, machine: Machine) -> None:
        """The other board's way: a new identity, so a new serial, and a token that approves it."""
        machine.run("mount", "--bind", "/mnt/firmware", "/sys/firmware")
        machine.run("dpkg", "-i", "/opt/new.deb")
        secret = self.fleet.enrollment_token(1)
        wishes = f'[server]\nissuer = "{self.fleet.url}"\nca_file = "{CA}"\n[enrollment]\ntoken = "{secret}"\n'
        machine.run("sh", "-c", "mkdir -p /boot/firmware && cat > /boot/firmware/pi-agent.toml", text=wishes + AT_ONCE)
        machine.run("systemctl", "start", "pi-agent-first-boot.service")
        self._token(machine)
        same(machine.run("grep", "-r", secret, "/boot", "/etc/pi-agent", STATE, codes=EVERYTHING), "")

    # What is asked again and again

    def _identity(self, machine: Machine) -> dict[str, str]:
        return dict(json.loads(machine.run("cat", f"{STATE}/identity.json")))

    def _token(self, machine: Machine) -> str:
        self._until(lambda: machine.run("pi-agent", "token", codes=EVERYTHING).count(".") == 2, "no token")
        return f"{time.monotonic() - machine.started:.1f} s after power-on"

    def _until(self, happened: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not happened():
            if time.monotonic() > deadline:
                raise AssertionError(complaint)
            time.sleep(0.1)


def same(seen: object, wanted: object) -> None:
    if seen != wanted:
        raise AssertionError(f"{seen!r} instead of {wanted!r}")


def contains(text: str, part: str) -> None:
    if part not in text:
        raise AssertionError(f"{part!r} is not in {text[-1500:]!r}")
