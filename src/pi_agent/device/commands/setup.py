"""``pi-agent setup URL``: make a key, enroll at the server, and write down where it is."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pi_agent import words
from pi_agent.errors import ConfigError, TransportError, UsageError

if TYPE_CHECKING:
    from pi_agent.board import Board
    from pi_agent.device.config import Settings
    from pi_agent.device.discovery import Metadata
    from pi_agent.device.enroll import Registration
    from pi_agent.device.identity import Identity
    from pi_agent.device.keys import KeyStore
    from pi_agent.device.transport import Transport

HELP = "enroll this board at a server"
PENDING = "pending"
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  # ProtectHome= and PrivateTmp= of the unit
POLL = 3.0
NEXT = {
    "rejected": "an operator who thinks better of it runs: pi-fleet approve {id}",
    "quarantined": "an operator looks, and ends it with: pi-fleet release {id}",
    "revoked": "that is for good; as a new device: sudo pi-agent wipe-identity --yes && sudo pi-agent setup {server}",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="the server's address, for example https://fleet.example")
    parser.add_argument("--name", help="what people call this board (default: its host name)")
    parser.add_argument(
        "--enrollment-token-file",
        metavar="FILE",
        help="file with an enrollment token, - for standard input (or $PI_AGENT_ENROLLMENT_TOKEN)",
    )
    parser.add_argument("--ca-file", dest="server_ca_file", metavar="FILE", help="one CA file to trust for this server")
    parser.add_argument(
        "--loopback-http",
        dest="server_loopback_http",
        action="store_true",
        default=None,
        help="allow plain http to a server on this machine",
    )
    parser.add_argument(
        "--preset", dest="server_preset", metavar="NAME", help="the kind of server, if it is not pi-fleet (docs/device)"
    )
    parser.add_argument(
        "--client-id",
        dest="server_client_id",
        metavar="ID",
        help="our name at a server where an operator enters the key",
    )
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="wait until an operator has approved the board")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.epilog = "example: sudo pi-agent setup https://fleet.example --name kitchen"


def run(args: argparse.Namespace) -> int:
    """0 when the board is approved, 4 while it waits for approval or was refused."""
    enrollment_token = _enrollment_token(args)
    args.server_ca_file = _ca_file(args.server_ca_file, args.config)
    return join(args, enrollment_token)


def join(args: argparse.Namespace, enrollment_token: str) -> int:
    """Enroll at ``args.url`` with the settings as they are, and those of ``args``. What it returns is the exit code."""
    from pi_agent.device import config, files, joining
    from pi_agent.device.probe import probe
    from pi_agent.device.transport import Transport

    settings = config.load(vars(args) | {"server_issuer": args.url})
    issuer = args.url.rstrip("/") if settings.server_preset == "pi-fleet" else args.url
    board = probe(str(settings.root))
    files.make_directory(settings.state, 0o700)
    with files.as_owner_of(settings.state):
        known, key = joining.begin(
            settings.state,
            issuer=issuer,
            serial=board.serial or "",
            store=settings.key_store,
            algorithm=settings.key_algorithm,
        )
    transport = Transport(
        ca_file=settings.server_ca_file, proxy=settings.server_proxy, loopback_http=settings.server_loopback_http
    )
    facts = {"board": f"{board.model}, {board.type}, serial {board.serial or 'unknown'}", "server": issuer}
    if settings.server_client_id:
        endpoint = settings.server_token_endpoint or discover(transport, settings, issuer).token_endpoint
        _keep(settings, known, key, settings.server_client_id, endpoint)
        return _show_key(args, facts | {"device id": settings.server_client_id}, key)
    metadata = discover(transport, settings, issuer)
    register = partial(
        _register, settings, transport, metadata, board=board, known=known, key=key, token=enrollment_token
    )
    registration = register()
    _keep(settings, known, key, registration.client_id, metadata.token_endpoint)
    deadline = time.monotonic() + (args.wait or 0)
    while registration.status == PENDING and time.monotonic() < deadline:
        time.sleep(min(POLL, max(0.0, deadline - time.monotonic())))
        registration = register()
    _show(args, facts, registration, key.public_key().kid)
    return 0 if registration.status == "approved" else 4


def _register(
    settings: Settings,
    transport: Transport,
    metadata: Metadata,
    *,
    board: Board,
    known: Identity,
    key: KeyStore,
    token: str,
) -> Registration:
    """Make the key known. At another server than ours once only: it would make another client of the same key."""
    from pi_agent.board import board_claims
    from pi_agent.device import enroll
    from pi_agent.device.discovery import signing_time
    from pi_agent.device.worker import agent_claims

    if settings.server_preset == "pi-fleet":
        simulated = is_simulated(settings)
        return enroll.register(
            transport,
            metadata,
            key,
            board=dict(board_claims(board)),
            agent=agent_claims(key, simulated=simulated, flags=board.flags),
            name=settings.name or ("" if simulated else enroll.host_name()),
            enrollment_token=token,
            now=signing_time(transport, metadata.issuer),
        )
    if not known.is_draft:
        return enroll.Registration(known.client_id, "approved")
    return enroll.register_client(
        transport,
        metadata,
        key,
        grant=settings.server_grant,
        client_auth=settings.server_client_auth,
        name=settings.name,
        initial_access_token=token,
    )


def is_simulated(settings: Settings) -> bool:
    """The board is not this machine, but a recording of one."""
    return str(settings.root) != "/"


def _keep(settings: Settings, known: Identity, key: KeyStore, client_id: str, token_endpoint: str) -> None:
    """Write down what the server calls us, and where it is."""
    from pi_agent.device import files, joining

    with files.as_owner_of(settings.state):
        joining.complete(settings.state, known, key, client_id=client_id, token_endpoint=token_endpoint)
    _write_config(settings, known.issuer)


def _ca_file(name: str | None, config: str | None) -> str | None:
    """The whole path of the authorities to trust, where the service will read them, too. Raises ConfigError.

    A link stays one: it may lead to another file when they are renewed.
    """
    from pi_agent.device.transport import check_ca_file

    if not name:
        return name
    path = os.path.abspath(name)  # noqa: PTH100  # resolve() would follow the link
    check_ca_file(path)
    hidden = [each for each in (Path(path), Path(path).resolve()) if any(map(each.is_relative_to, HIDDEN))]
    if hidden and not config and "PI_AGENT_CONFIG" not in os.environ:
        raise ConfigError(
            f"the service cannot read {hidden[0]}: it sees nothing below {', '.join(HIDDEN)}",
            key="server.ca_file",
            hint=f"sudo install -m 644 {path} /etc/pi-agent/ca.pem; and give --ca-file /etc/pi-agent/ca.pem",
        )
    return path


def _enrollment_token(args: argparse.Namespace) -> str:
    """From a file or the environment, never from the command line, which every user of the machine can read."""
    name = args.enrollment_token_file
    try:
        text = sys.stdin.readline() if name == "-" else Path(name).read_text(encoding="ascii") if name else ""
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read the enrollment token from {name}: {error}") from error
    return one_word(text or os.environ.get("PI_AGENT_ENROLLMENT_TOKEN", ""))


def one_word(text: str) -> str:
    """The enrollment token in ``text``, which may be empty. Raises UsageError for anything else."""
    token = text.strip()
    if token.split()[1:] or not token.isprintable():
        raise UsageError("an enrollment token is one word without spaces", hint="the file holds the token alone")
    return token


def discover(transport: Transport, settings: Settings, issuer: str) -> Metadata:
    """What the server says of itself; where TLS fails, our clock is looked at first."""
    from pi_agent.device import discovery, hearsay

    try:
        return discovery.discover(
            transport, issuer, loopback_http=settings.server_loopback_http, which=settings.server_discovery
        )
    except TransportError as error:
        proxied = bool(settings.server_proxy)
        wrong = hearsay.wrong_clock(issuer, str(error), proxied=proxied) if error.reason == "tls" else ""
        if not wrong:
            raise
        raise TransportError(f"{wrong}, so {error}", reason="clock", hint=hearsay.CLOCK_HINT) from error


def _write_config(settings: Settings, issuer: str) -> None:
    from pi_agent.device import toml_file

    given: dict[str, str | int | bool] = {
        "name": settings.name,
        "server.issuer": issuer,
        "server.preset": settings.server_preset if settings.server_preset != "pi-fleet" else "",
        "server.client_id": settings.server_client_id,
        "server.ca_file": settings.server_ca_file,
        "server.proxy": settings.server_proxy,
        "server.loopback_http": settings.server_loopback_http,
        "key.store": settings.key_store if settings.key_store != "file" else "",
    }
    toml_file.write(settings.config, {name: value for name, value in given.items() if value})


def _show_key(args: argparse.Namespace, facts: dict[str, str], key: KeyStore) -> int:
    """What an operator enters at a server that takes a client's key by hand."""
    public = key.public_key()
    jwk = public.jwk | {"kid": public.kid, "alg": key.alg, "use": "sig"}
    if args.json:
        print(json.dumps({"schema": "pi-agent.setup/1"} | facts | {"jwk": jwk}))
        return 0
    for name, value in facts.items():
        print(f"{name:<11}{value}")
    print(json.dumps({"keys": [jwk]}))
    sys.stderr.write(
        "next: enter these keys at the server as this client's JWKS, then: sudo systemctl restart pi-agent\n"
    )
    return 0


def _show(args: argparse.Namespace, facts: dict[str, str], registration: Registration, kid: str) -> None:
    document = {"client_id": registration.client_id, "status": registration.status, "kid": kid}
    document |= {"code": words.code(kid), "words": " ".join(words.words(kid))}
    if args.json:
        print(json.dumps({"schema": "pi-agent.setup/1"} | facts | document))
        return
    for name, value in (facts | {"device id": registration.client_id, "key": kid}).items():
        print(f"{name:<11}{value}")
    if registration.status == PENDING:
        print(f"{'code':<11}{words.code(kid)}")
        print(f"{'words':<11}{' '.join(words.words(kid))}")
        print(f"{'status':<11}waiting for approval. An operator who sees the same code and words approves it with:")
        print(f"{'':<11}pi-fleet approve {registration.client_id}")
    else:
        print(f"{'status':<11}{registration.status}")
    step = NEXT.get(registration.status, "sudo systemctl restart pi-agent    (without systemd: pi-agent run)")
    sys.stderr.write(f"next: {step.format(id=registration.client_id, server=facts['server'])}\n")
