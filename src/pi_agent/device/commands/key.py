"""``pi-agent key show|rotate|move``: which key this board has, and how it gets another."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pi_agent.errors import AgentError, BoardError, ConflictError, KeyFileError, KeyStoreError, OAuthError

if TYPE_CHECKING:
    from pi_agent.device.config import Settings
    from pi_agent.device.identity import Identity
    from pi_agent.device.keys import KeyStore

HELP = "show this board's key, give it a new one, or move it to a better place"
EPILOG = """\
examples:
  sudo pi-agent key show
  sudo pi-agent key rotate
  sudo pi-agent key move --to firmware
  sudo pi-agent key move --to 'pkcs11:token=pi-agent?module-path=/usr/lib/libtpm2_pkcs11.so.1&pin-source=file:/etc/pi-agent/pin'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text in (
        ("show", "show where the key is, how it is protected, and its thumbprint in words"),
        ("rotate", "make a new key in the same place; the old one signs it in"),
        ("move", "make (or take) a key in another place; the old one signs it in"),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text)
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        if name == "move":
            action.add_argument(
                "--to",
                required=True,
                metavar="STORE",
                help="file, credential, firmware, firmware:SLOT or a pkcs11: URI",
            )


def run(args: argparse.Namespace) -> int:
    """0 when it is done. Raises ConfigError when the board is not set up, KeyFileError, OAuthError, TransportError."""
    from pi_agent.device import config, files

    settings = config.load(vars(args))
    with files.as_owner_of(settings.state):
        document = ACTIONS[args.action](args, settings)
    print(json.dumps({"schema": "pi-agent.key/1"} | document) if args.json else _lines(document))
    return 0


def _show(_: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    from pi_agent.device import identity, joining
    from pi_agent.device.probe import probe

    known = identity.load(settings.state)
    try:
        known.check_board(probe(str(settings.root)).serial or "")
    except KeyFileError as error:
        sys.stderr.write(f"note: {error}\nhint: {error.hint}\n")
    except BoardError:
        pass  # which board this is does not matter for showing a key
    return _describe(settings, known, joining.load_key(settings.state, known))


def _rotate(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    from pi_agent.device import identity
    from pi_agent.device.keys import stores

    known = identity.load(settings.state)
    return _replace(args, settings, known, known.next_key or stores.successor(known.key))


def _move(args: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """A store that holds the same key (a credential made from the file) only changes where the key is looked for."""
    from pi_agent.device import identity, joining, rotate
    from pi_agent.device.keys import stores

    known = identity.load(settings.state)
    target = stores.choose(args.to, settings.key_algorithm)
    try:
        there = stores.load(target, settings.state)
    except FileNotFoundError:
        there = None
    if there is not None and there.public_key().kid == known.kid:
        moved = rotate.relocate(settings.state, known, target)
        if known.key != target:
            sys.stderr.write(f"the same key is still at {known.key}; once the agent runs, remove it there\n")
        return _describe(settings, moved, joining.load_key(settings.state, moved))
    if known.next_key:
        known = _settle(args, settings, known)
    if known.key == target:  # it is what was under way
        return _describe(settings, known, joining.load_key(settings.state, known))
    return _replace(args, settings, known, target)


ACTIONS: dict[str, Callable[[argparse.Namespace, Settings], dict[str, Any]]] = {
    "show": _show,
    "rotate": _rotate,
    "move": _move,
}


def _settle(args: argparse.Namespace, settings: Settings, known: Identity) -> Identity:
    """Bring the rotation that is under way to its end. The server may take the next key alone by now: it is never dropped.

    Also not when it is not there now. Only a token that refuses to make it has never had it.
    """
    from pi_agent.device import identity, rotate
    from pi_agent.device.keys import stores
    from pi_agent.device.preparation import prepare

    try:
        _replace(args, settings, known, known.next_key)
    except OAuthError as error:
        if error.error != rotate.KEY_UNUSABLE:
            raise
    except KeyStoreError:
        prepare(vars(args))  # raises when it was not about the next key, but about the one in use
        try:
            stores.load(known.next_key, settings.state)
        except FileNotFoundError:  # it cannot even be made, so the server was never told
            return rotate.abandon(settings.state, known)
        raise
    return identity.load(settings.state)


def _replace(args: argparse.Namespace, settings: Settings, known: Identity, location: str) -> dict[str, Any]:
    """Sign the key at ``location`` in with the present one, and use it once, which retires the present one."""
    from pi_agent.device import identity, rotate, worker
    from pi_agent.device.discovery import signing_time
    from pi_agent.device.preparation import prepare

    fields = prepare(vars(args))  # also refuses another board's identity, and a key in use that cannot be used
    known = rotate.begin(settings.state, known, location)
    transport = worker.transport(fields)
    key = rotate.next_key(
        settings.state,
        known,
        transport,
        loopback_http=settings.server_loopback_http,
        now=signing_time(transport, known.issuer),
    )
    answer = worker.refresh(fields | {"audience": settings.token_resource})
    known = identity.load(settings.state)
    if known.next_key:
        why = answer.get("note") or answer.get("message") or "it was not used yet"
        hint = "the agent goes on with it at its next refresh; until then the old key is in use"
        raise AgentError(f"the new key is signed in, but {why}", status=409, hint=hint)
    if known.kid != key.public_key().kid:
        raise ConflictError("another rotation came in between", hint="pi-agent key show")
    return _describe(settings, known, key)


def _describe(settings: Settings, known: Identity, key: KeyStore) -> dict[str, Any]:
    from pi_agent import words
    from pi_agent.device import identity

    kid = key.public_key().kid
    return {
        "store": known.key.partition("?")[0],
        "protection": key.protection,
        "algorithm": key.alg,
        "kid": kid,
        "code": words.code(kid),
        "words": " ".join(words.words(kid)),
        "status": list(getattr(key, "status", ())),
        "client_id": known.client_id,
        "issuer": known.issuer,
        "serial": known.serial,
        "rotating_to": known.next_key.partition("?")[0],
        "set_aside": identity.set_aside(settings.state),
    }


def _lines(document: dict[str, Any]) -> str:
    from pi_agent.protection import PROTECTIONS

    protection = document["protection"]
    rows = [
        ("key", document["kid"]),
        ("code", document["code"]),
        ("words", document["words"]),
        ("store", document["store"] + (f" ({', '.join(document['status'])})" if document["status"] else "")),
        ("protection", f"{protection}: {PROTECTIONS[protection]}"),
        ("algorithm", document["algorithm"]),
        ("device id", f"{document['client_id']} at {document['issuer']}"),
        ("board", document["serial"] or "not bound to a serial"),
    ]
    rows += [("rotating", f"to {document['rotating_to']}")] if document["rotating_to"] else []
    rows += [("set aside", "the identities of boards " + ", ".join(document["set_aside"]))] * bool(
        document["set_aside"]
    )
    return "\n".join(f"{name:<12}{value}" for name, value in rows)
