"""What is wrong, layer by layer, from the board up to a real token: each check names its cause and the command to run.

The order is that of causes: whatever is wrong further down would make everything above it look wrong, so the first
cross is the cause, and what hangs on it is not tried. Nothing is changed, nothing secret is printed, and each step has
a few seconds.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pi_agent import client
from pi_agent.board import Board
from pi_agent.device import clock, config, discovery, files, hearsay, identity, joining, mounts, preparation, worker
from pi_agent.device.probe import probe
from pi_agent.device.transport import within
from pi_agent.errors import AgentError, PiAgentError, TransportError

PATIENCE = 5.0
NOT_AT_THIS_TIME = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL's x509_vfy.h
SYNCHRONISED = Path("/run/systemd/timesync/synchronized")
AS_THE_AGENT = ("identity", "key", "token")  # with its rights, in a folder that is its own
OK, WARNING, BAD, SKIPPED = "ok", "warning", "bad", "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """``hint`` is a command to run, or ""."""

    name: str
    verdict: str
    text: str
    hint: str = ""


class StopHere(Exception):  # noqa: N818  # no error: the way ends, and says why
    """A check has failed on which the next ones hang."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.text)
        self.finding = finding


class Doctor:
    """One visit. ``flags`` are those of the command line."""

    def __init__(self, flags: dict[str, Any]) -> None:
        self._flags = flags
        self.settings: config.Settings
        self.board: Board | None = None
        self.known: identity.Identity
        self._address: tuple[str, int] = ("", 0)
        self._clock_is_wrong = False

    def findings(self) -> Iterator[Finding]:
        """Every check in order; those that hang on one that failed are told as skipped."""
        broken = ""
        for name, needed, check in self._checks():
            if broken == "config" or (broken and needed):
                yield Finding(name, SKIPPED, f"not tried: {broken} comes first")
                continue
            try:
                with files.as_owner_of(self.settings.state) if name in AS_THE_AGENT else nullcontext():
                    finding = check()
            except StopHere as stop:
                broken, finding = broken or stop.finding.name, stop.finding
            except PiAgentError as error:
                finding = Finding(name, BAD, str(error), error.hint or "")
                broken = broken or (name if needed else "")
            yield finding

    def _checks(self) -> tuple[tuple[str, bool, Callable[[], Finding]], ...]:
        """Name, whether the next needed ones hang on it, and the check."""
        return (
            ("config", True, self._config),
            ("board", True, self._board),
            ("identity", True, self._identity),
            ("key", True, self._key),
            ("clock", False, self._clock),
            ("dns", True, self._dns),
            ("tcp", True, self._tcp),
            ("tls", True, self._tls),
            ("metadata", True, self._metadata),
            ("token", True, self._token),
            ("socket", False, self._socket),
            ("sandbox", False, self._sandbox),
            ("flash", False, self._flash),
        )

    # This machine

    def _config(self) -> Finding:
        self.settings = config.load(self._flags)
        for rule in self.settings.allow:
            preparation.resolve(rule)
        preparation.socket_gid(self.settings)
        return Finding("config", OK, f"{self.settings.config}: {_count(self.settings)}")

    def _board(self) -> Finding:
        self.board = probe(str(self.settings.root))
        return Finding("board", OK, f"{self.board.model}, serial {self.board.serial or 'unknown'}")

    def _identity(self) -> Finding:
        self.known = identity.load(self.settings.state)
        assert self.board is not None
        self.known.check_board(self.board.serial or "")
        return Finding("identity", OK, f"{self.known.client_id} at {self.known.issuer}")

    def _key(self) -> Finding:
        try:
            key = joining.load_key(self.settings.state, self.known)
        except FileNotFoundError:
            text = f"there is no key in {self.settings.state}"
            raise StopHere(Finding("key", BAD, text, "sudo pi-agent setup " + self.known.issuer)) from None
        return Finding("key", OK, f"{key.alg}, kept in: {key.protection}")

    def _clock(self) -> Finding:
        now = time.time()
        said = hearsay.written(now)
        url = self.settings.server_token_endpoint or self.settings.server_issuer
        if not clock.is_plausible(now):
            wrong = f"it says {said}, which cannot be"
        else:
            wrong = "" if self.settings.server_proxy else hearsay.difference(url)
        if wrong:
            self._clock_is_wrong = True
            return Finding("clock", BAD, wrong, hearsay.CLOCK_HINT)
        if not SYNCHRONISED.exists():
            return Finding("clock", OK, f"{said}, not known to be synchronised", "timedatectl timesync-status")
        return Finding("clock", OK, f"{said}, synchronised")

    # The way to the server

    def _dns(self) -> Finding:
        url = self.known.token_endpoint
        proxy = self.settings.server_proxy if url.startswith("https:") else ""  # as in transport.py
        parts = urlsplit(proxy or url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        who = "the proxy" if proxy else "the server"
        try:
            found = within(PATIENCE, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            text = f"the name of {who}, {host}, cannot be found: {error.strerror}"
            raise StopHere(Finding("dns", BAD, text, f"resolvectl query {host}")) from None
        except TransportError:
            text = f"no answer about the name of {who}, {host}, within {PATIENCE:g} s"
            raise StopHere(Finding("dns", BAD, text, "resolvectl status")) from None
        self._address = host, port
        addresses = sorted({str(each[4][0]) for each in found})
        return Finding("dns", OK, f"{host}: {', '.join(addresses[:3])}")

    def _tcp(self) -> Finding:
        host, port = self._address
        try:
            socket.create_connection(self._address, PATIENCE).close()
        except OSError as error:
            why = error.strerror or "no answer"
            raise StopHere(Finding("tcp", BAD, f"{host} port {port}: {why}", f"nc -vz {host} {port}")) from None
        return Finding("tcp", OK, f"{host} port {port} answers")

    def _tls(self) -> Finding:
        parts = urlsplit(self.known.token_endpoint)
        if parts.scheme == "http":
            return Finding("tls", WARNING, "plain http, to this machine")
        if self.settings.server_proxy:
            return Finding("tls", OK, "through the proxy: seen with the next check")
        try:
            context = ssl.create_default_context(cafile=self.settings.server_ca_file or None)
        except OSError as error:
            path = self.settings.server_ca_file
            raise StopHere(
                Finding("tls", BAD, f"cannot use {path}: {error.strerror or error}", f"ls -l {path}")
            ) from None
        try:
            with (
                socket.create_connection(self._address, PATIENCE) as plain,
                context.wrap_socket(plain, server_hostname=parts.hostname) as secured,
            ):
                return Finding("tls", OK, f"{secured.version()}, trusted")
        except ssl.SSLCertVerificationError as error:
            hint = f"openssl s_client -connect {self._address[0]}:{self._address[1]}"
            if self._clock_is_wrong and error.verify_code in NOT_AT_THIS_TIME:
                hint = hearsay.CLOCK_HINT
            raise StopHere(Finding("tls", BAD, f"the certificate: {error.verify_message}", hint)) from None
        except OSError as error:
            raise StopHere(Finding("tls", BAD, f"the handshake failed: {error.strerror or error}")) from None

    def _metadata(self) -> Finding:
        fields = self._fields()
        try:
            found = discovery.discover(
                worker.transport(fields),
                self.known.issuer,
                loopback_http=self.settings.server_loopback_http,
                which=self.settings.server_discovery,
            )
        except TransportError:
            if not self.settings.server_token_endpoint:
                raise
            return Finding("metadata", OK, "none; the token endpoint stands in the settings")
        endpoint = self.settings.server_token_endpoint or self.known.token_endpoint
        if found.token_endpoint != endpoint:
            text = f"the server's token endpoint is {found.token_endpoint}, ours is {endpoint}"
            return Finding("metadata", WARNING, text, f"sudo pi-agent setup {self.known.issuer}")
        return Finding("metadata", OK, f"{found.issuer} is who we think")

    def _token(self) -> Finding:
        answer = worker.refresh(self._fields() | {"action": "token"})
        if answer["outcome"] == "token":
            return Finding("token", OK, f"the server gives one for {answer['expires_in']} s")
        text, hint = str(answer["message"]), str(answer.get("hint", ""))
        if answer["outcome"] == "pending":
            hint = hint or f"an operator runs: pi-fleet approve {self.known.client_id}"
        elif answer["outcome"] == "refused":
            hint = hint or f"an operator sees why: pi-fleet device {self.known.client_id}"
        return Finding("token", BAD, text, hint)

    # The running agent

    def _socket(self) -> Finding:
        try:
            status = client.ask("/v1/status", runtime=str(self.settings.runtime))
        except AgentError as error:
            return Finding("socket", BAD, str(error), error.hint or "")
        return Finding("socket", OK, f"the agent says: {status['sentence']}")

    def _sandbox(self) -> Finding:
        try:
            warnings = client.ask("/v1/status", runtime=str(self.settings.runtime))["warnings"]
        except PiAgentError:
            return Finding("sandbox", SKIPPED, "not seen: no agent is running")
        if warnings:
            return Finding("sandbox", WARNING, warnings[0])
        return Finding("sandbox", OK, "the agent sees what it needs")

    def _flash(self) -> Finding:
        sinks = (self.settings.sinks_token_file, self.settings.sinks_environment_file)
        for folder in (self.settings.state, *(Path(path).parent for path in sinks if path)):
            if folder == self.settings.state and not folder.exists():
                return Finding("flash", SKIPPED, f"there is no {folder} yet; setup makes it")
            if trouble := files.trouble(folder):
                return Finding("flash", BAD, trouble, f"df -h {folder}; findmnt -T {folder}")
        warnings = preparation.warnings(self.settings)
        if warnings:
            return Finding("flash", WARNING, warnings[0])
        kind = mounts.kind_of(mounts.read(), self.settings.state)
        return Finding("flash", OK, f"{self.settings.state} is on {kind or 'a disk'}; tokens stay in memory")

    def _fields(self) -> dict[str, str]:
        """What a worker needs, as the resident would hand it over."""
        assert self.board is not None
        return preparation.for_worker(self.settings, self.board) | {"audience": self.settings.token_resource}


def _count(settings: config.Settings) -> str:
    if not settings.config.exists():
        return "not there yet; setup writes it"
    changed = sum(origin != config.BUILT_IN for origin in settings.origins.values())
    return "1 setting is not as built in" if changed == 1 else f"{changed} settings are not as built in"
