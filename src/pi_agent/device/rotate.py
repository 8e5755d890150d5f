"""Key rotation: a new key is signed in by the old one, proves itself, and retires the old one by its first use (F-04).

    begin      the identity names where the next key will be     (on disk before anything else)
    sign_in    the next key is made, and both keys sign it in    (from here on the server takes either)
    first use  a token is asked for with the next key            (from here on the server takes only that)
    finish     the identity names the next key as the key        (the one before stays until the next rotation)

A cut between any two steps leaves an identity that says where to go on, and every step can be done again: the server
answers the same to a key that it knows. When the server is not there, or takes no new key now, the old key goes on as if
nothing had been; when it says that this one will not do (another rotation retired it first), it is given up, and the
server asks for another in time. The key before is kept because a server that is restored from a backup may know no other
(``sign_back_in``).
Workers may run side by side: the identity is read again and changed under a lock, and only from what it was.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pi_agent import assertion, oauth
from pi_agent.device import files, identity
from pi_agent.device.discovery import discover
from pi_agent.device.enroll import post_over_nonce
from pi_agent.device.identity import Identity
from pi_agent.device.joining import load_key
from pi_agent.device.keys import KeyStore, stores
from pi_agent.device.transport import Transport
from pi_agent.errors import ConflictError, OAuthError, PiAgentError, TransportError

KEY_UNUSABLE = "invalid_client_metadata"  # RFC 7591 section 3.2.2: the server will never take this new key


def begin(state: Path, known: Identity, location: str) -> Identity:
    """Write down that the next key will be at ``location``. A rotation that is under way stays as it is.

    Raises ConflictError when the identity has changed since ``known`` was read, KeyFileError when it cannot be written.
    """
    with files.locked(state):
        found = identity.load(state)
        if found.next_key and found.key == known.key:
            return found
        return _change(state, found, known, replace(known, next_key=location))


def next_key(state: Path, known: Identity, transport: Transport, *, loopback_http: bool, now: int) -> KeyStore:
    """The key that is being rotated in, made if it is not there yet, and known to the server. ``now`` is in seconds since 1970.

    Raises KeyFileError when it cannot be made, and like ``sign_in``; the key in use is then still the key.
    """
    key = stores.load_or_create(known.next_key, state)
    try:
        sign_in(transport, known, load_key(state, known), key, loopback_http=loopback_http, now=now)
    except OAuthError as error:
        if error.error == KEY_UNUSABLE:  # another rotation has overtaken this one
            abandon(state, known)
        raise
    return key


def finish(state: Path, known: Identity, key: KeyStore) -> Identity:
    """``key`` has been used: it is the key now, and the one before the last is gone. Raises like ``begin``."""
    kid = key.public_key().kid
    done = replace(known, key=known.next_key, kid=kid, next_key="", previous_key=known.key)
    with files.locked(state):
        found = identity.load(state)
        if found == done:
            return done
        _change(state, found, known, done)
    if known.previous_key:
        stores.discard(known.previous_key, state)
    return done


def abandon(state: Path, known: Identity) -> Identity:
    """Give a rotation up whose key the server never saw, or never takes: the key in use stays. Raises like ``begin``."""
    with files.locked(state):
        kept = _change(state, identity.load(state), known, replace(known, next_key=""))
    stores.discard(known.next_key, state)
    return kept


def relocate(state: Path, known: Identity, location: str) -> Identity:
    """Write down that the key in use is at ``location`` from now on: the same key, in another place. Raises like ``begin``."""
    with files.locked(state):
        return _change(state, identity.load(state), known, replace(known, key=location))


def sign_back_in(state: Path, known: Identity, transport: Transport, *, loopback_http: bool, now: int) -> bool:
    """After a refusal: have the key before the present one sign it in again, for a server that has forgotten the rotation.

    True when the server took it. Harmless to a server that knows the key: it then changes nothing.
    """
    if not known.previous_key:
        return False
    try:
        old, key = stores.load(known.previous_key, state), load_key(state, known)
        sign_in(transport, known, old, key, loopback_http=loopback_http, now=now)
    except (PiAgentError, FileNotFoundError):
        return False
    return True


def sign_in(
    transport: Transport, known: Identity, old: KeyStore, key: KeyStore, *, loopback_http: bool, now: int
) -> None:
    """Make ``key`` known to the server as the successor of ``old``. Idempotent.

    Raises OAuthError when the server refuses, TransportError when it does not answer, or cannot rotate keys at all.
    """
    endpoint = _endpoint(transport, known.issuer, loopback_http=loopback_http)
    request = partial(_request, known, old, key, now)
    answer, members = post_over_nonce(transport, endpoint, request)
    if answer.status != 200:
        raise oauth.refusal(answer.status, members, answer.retry_after)
    if members.get("kid") != key.public_key().kid:
        raise TransportError("the server has signed in some other key", reason="answer")


def _request(known: Identity, old: KeyStore, key: KeyStore, now: int, nonce: str | None) -> dict[str, Any]:
    public = key.public_key()

    def statement(signer: KeyStore) -> str:
        claims = assertion.claims(
            issuer=known.client_id,
            audience=known.issuer,
            now=now,
            jti=secrets.token_urlsafe(16),
            nonce=nonce,
            jkt=public.kid,
        )
        kid = signer.public_key().kid
        return assertion.sign(claims, kind=assertion.ROTATION, alg=signer.alg, kid=kid, sign=signer.sign)

    return {
        "jwks": {"keys": [public.jwk | {"alg": key.alg}]},
        "signed_by_old": statement(old),
        "signed_by_new": statement(key),
    }


def _endpoint(transport: Transport, issuer: str, *, loopback_http: bool) -> str:
    url = discover(transport, issuer, loopback_http=loopback_http, which="oauth").key_rotation_endpoint
    if not url:
        raise TransportError(f"{issuer} cannot rotate keys", reason="rotation", hint="only a pi-fleet server can")
    return url


def _change(state: Path, found: Identity, known: Identity, wanted: Identity) -> Identity:
    if found != known:
        raise ConflictError("the identity has changed in the meantime", hint="pi-agent key show")
    identity.store(state, wanted)
    return wanted
