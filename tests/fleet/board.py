"""A board with the agent's real code and a card in a folder, whose network is a function call into the real fleet.

Time is ``clock``, which a test turns. ``line`` is asked before and after each request and may raise: that is how answers
get lost and boards lose power.
"""

from __future__ import annotations

import json
import secrets
import shutil
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from pi_agent import oauth
from pi_agent.device import config, enroll, joining, worker
from pi_agent.device.discovery import discover
from pi_agent.device.transport import Answer
from pi_agent.fleet import enrollment, grants, rotation
from pi_agent.fleet.tokens import Authority
from pi_agent.fleet.web import Request

FORM, JSON = "application/x-www-form-urlencoded", "application/json"
START = 1_800_000_000
BOARD = {"revision": "a01041", "model": "2B", "memory_mib": 1024, "soc": "BCM2836", "pcb_revision": "1.1"}
ENDPOINTS = {"/oauth/token": grants.answer, "/oauth/register": enrollment.answer, "/oauth/rotate": rotation.answer}


@dataclass
class Clock:
    """Seconds since 1970, the same for everybody."""

    now: float = START

    def time(self) -> float:
        return self.now

    def clock_gettime(self, _: int) -> float:
        return self.now - START


@dataclass
class Network:
    """The fleet as a board reaches it from ``source``."""

    authority: Callable[[], Authority]
    clock: Clock
    source: str = "192.0.2.1"
    line: Callable[[str, str], None] = lambda moment, path: None
    seen: tuple[int, float] | None = None

    def get_json(self, url: str) -> Answer:
        assert url.endswith("/.well-known/oauth-authorization-server")
        self.line("before", url)
        body = self.authority().metadata.body
        self.line("after", url)
        return Answer(200, JSON, body, int(self.clock.now), None)

    def post_json(self, url: str, members: dict[str, Any], *, bearer: str = "") -> Answer:
        return self.post(url, JSON, json.dumps(members).encode(), f"Bearer {bearer}" if bearer else "")

    def buy(self, url: str, make_form: Callable[[], str], *, scope: str = "", authorization: str = "") -> oauth.Token:
        found = self.post(url, FORM, make_form().encode(), authorization)
        return oauth.read_answer(
            found.status, found.content_type, found.body, scope=scope, retry_after=found.retry_after
        )

    def post(self, url: str, content_type: str, body: bytes, authorization: str) -> Answer:
        path = "/" + url.split("/", 3)[3]
        self.line("before", path)
        request = Request("POST", body, content_type, authorization, self.source)
        found = ENDPOINTS[path](request, now=int(self.clock.now), authority=self.authority())
        self.line("after", path)
        retry_after = found.headers.get("retry-after")
        waits = int(retry_after) if retry_after else None
        self.seen = int(self.clock.now), self.clock.clock_gettime(0)
        return Answer(found.status, found.headers["content-type"], found.body, self.seen[0], waits)


@dataclass
class Board:
    """``home`` holds the card (``state``) and what the kernel says (``root``)."""

    home: Path
    network: Network
    serial: str = "00000000c0ffee01"
    more: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.home / "state").mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.home / "root/proc/sys/kernel/random").mkdir(parents=True, exist_ok=True)
        self.boot()

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def issuer(self) -> str:
        return self.network.authority().settings.issuer

    def boot(self) -> None:
        (self.home / "root/proc/sys/kernel/random/boot_id").write_text(secrets.token_hex(16))

    def copy(self, home: Path, *, serial: str = "", source: str = "198.51.100.7") -> Board:
        """The card copied as it is, in a board that may be another one, at another address."""
        shutil.copytree(self.state, home / "state", copy_function=shutil.copy2)
        network = Network(self.network.authority, self.network.clock, source)
        return Board(home, network, serial or self.serial)

    def setup(self, *, token: str = "", name: str = "") -> enroll.Registration:
        """What ``pi-agent setup`` does."""
        known, key = joining.begin(self.state, issuer=self.issuer, serial=self.serial, store="file", algorithm="ES256")
        network: Any = self.network
        metadata = discover(network, self.issuer)
        registration = enroll.register(
            network,
            metadata,
            key,
            board=BOARD | {"serial": self.serial},
            agent=worker.agent_claims(key, simulated=False),
            name=name,
            enrollment_token=token,
            now=int(self.network.clock.now),
        )
        joining.complete(
            self.state, known, key, client_id=registration.client_id, token_endpoint=metadata.token_endpoint
        )
        return registration

    def refresh(self) -> dict[str, str | int]:
        """What the worker does for one refresh."""
        clock = self.network.clock
        times = types.SimpleNamespace(
            time=clock.time, clock_gettime=clock.clock_gettime, CLOCK_BOOTTIME=0, strftime=None, gmtime=None
        )
        with patch.object(worker, "transport", lambda _: self.network), patch.object(worker, "time", times):
            return worker.refresh(self.settings())

    def settings(self) -> dict[str, str]:
        given = {setting.attribute: str(setting.default) for setting in config.SETTINGS}
        board = json.dumps(BOARD | {"serial": self.serial})
        own = {
            "state": str(self.state),
            "root": str(self.home / "root"),
            "board": board,
            "board_flags": "",
            "scope": "",
            "audience": "",
            "may_rotate": "1",
        }
        return given | own | self.more
