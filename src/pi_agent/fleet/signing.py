"""The keys that sign access tokens: made here, published before they are used, and kept after (requirement F-07).

A key is published when it is made, and signs from ``signs_from`` on, PUBLISH_SECONDS later: by then every resource
server has seen it, and every server of the fleet has loaded it. The youngest key that may sign does; the one before it
stays published until the last token that it signed has ended. Which key signs follows from the table and the clock, so
servers that share the table are in step without a word. A retired key is gone at once, and its tokens with it.

Private keys lie in the database. With a secret from outside (``key_secret``) they are sealed by AES-256-GCM.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from django.db import transaction

from pi_agent import jws
from pi_agent.errors import ConflictError, KeyFileError, UsageError
from pi_agent.fleet import database
from pi_agent.fleet.models import SharedSecret, SigningKey
from pi_agent.fleet.options import MAX_LIFETIME
from pi_agent.fleet.settings import Settings
from pi_agent.fleet.web import compact_json
from pi_agent.jwk import PublicKey, public_key

JWKS_SECONDS = 300
PUBLISH_SECONDS = 2 * JWKS_SECONDS
KEEP_SECONDS = MAX_LIFETIME + 2 * 60  # the longest token, and clocks that are a little apart
SEALED = "sealed:1:"
FOREVER = 1 << 62


@dataclass(frozen=True, slots=True)
class RingKey:
    """A key as this server uses it, from ``signs_from`` to ``signs_until``.

    ``sign`` makes a raw JWS signature (ES256), ``head`` is the first segment of every access token under this key.
    """

    public: PublicKey
    head: str
    sign: Callable[[bytes], bytes] = field(repr=False)
    created_at: int
    signs_from: int
    signs_until: int = FOREVER

    @property
    def kid(self) -> str:
        return self.public.kid

    @property
    def published_until(self) -> int:
        return self.signs_until + KEEP_SECONDS

    def state(self, now: int) -> str:
        """``next``, ``signing``, ``kept`` (for the tokens that it signed) or ``past``."""
        if now < self.signs_from:
            return "next"
        if now < self.signs_until:
            return "signing"
        return "kept" if now < self.published_until else "past"

    def jwk(self) -> dict[str, str]:
        """The public half as it is published: nothing private, nothing symmetric, for signatures only (requirement C-13)."""
        return {**self.public.jwk, "kid": self.kid, "alg": "ES256", "use": "sig"}


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All keys that are not retired, oldest first."""

    keys: tuple[RingKey, ...]

    def signing(self, now: int) -> RingKey:
        """The key that signs now. With a clock that went back it is the oldest."""
        return next((key for key in reversed(self.keys) if key.signs_from <= now), self.keys[0])

    def published(self, now: int) -> list[RingKey]:
        return [key for key in self.keys if now < key.published_until]

    def find(self, kid: object, now: int) -> RingKey | None:
        return next((key for key in self.published(now) if key.kid == kid), None)


def load_ring(settings: Settings, *, now: int) -> KeyRing:
    """The keys of this fleet; the first is made here. Raises KeyFileError for one that cannot be read."""
    rows = _rows()
    # Only then, as this is asked every few seconds, and a lock keeps tokens waiting.
    if not rows or _unsealed(rows, settings):
        with transaction.atomic():
            database.lock("signing keys")
            rows = _rows() or [_make(settings, now=now, signs_from=now)]
            for row in _unsealed(rows, settings):
                row.private_key = seal(row.private_key.encode(), settings, row.kid)
                row.save(update_fields=["private_key"])
    return _ring(rows, settings)


def _unsealed(rows: Sequence[SigningKey], settings: Settings) -> list[SigningKey]:
    """The keys that lie open, although there is a secret to seal them with."""
    return [row for row in rows if settings.key_secret and not row.private_key.startswith(SEALED)]


def rotate(settings: Settings, *, now: int, at_once: bool = False) -> SigningKey:
    """A new key, which signs after it has been published for PUBLISH_SECONDS, or ``at_once``.

    Raises ConflictError when another one waits for its turn already.
    """
    with transaction.atomic():
        database.lock("signing keys")
        waiting = [row for row in _rows() if row.signs_from > now]
        if waiting and not at_once:
            raise ConflictError(f"the key {waiting[-1].kid} is new, and does not sign yet", hint="pi-fleet keys list")
        return _make(settings, now=now, signs_from=now if at_once else now + PUBLISH_SECONDS)


def rotate_when_due(settings: Settings, *, now: int) -> SigningKey | None:
    """A new key when the youngest is older than ``settings.key_days``; one server of the fleet makes it."""
    with transaction.atomic():
        database.lock("signing keys")
        rows = _rows()
        if not rows or rows[-1].created_at + settings.key_days * 86400 > now:
            return None
        return _make(settings, now=now, signs_from=now + PUBLISH_SECONDS)


def retire(kid: str, *, now: int) -> None:
    """Stop believing a key, and every token that it signed. Raises UsageError or ConflictError."""
    with transaction.atomic():
        database.lock("signing keys")
        rows = _rows()
        if kid not in {row.kid for row in rows}:
            raise UsageError(f"there is no key {kid!r} in use", hint="pi-fleet keys list")
        if not [row for row in rows if row.kid != kid and row.signs_from <= now]:
            raise ConflictError("no other key could sign", hint="pi-fleet keys rotate --now")
        SigningKey.objects.filter(kid=kid).update(retired_at=now, private_key="")


def shared_secret(settings: Settings, name: str) -> bytes:
    """32 secret bytes that all servers of the fleet have; whoever comes first makes them."""
    with transaction.atomic():
        database.lock("signing keys")
        row = SharedSecret.objects.filter(name=name).first()
        if row is None:
            made = base64.b64encode(secrets.token_bytes(32))
            value = seal(made, settings, name) if settings.key_secret else made.decode()
            row = SharedSecret.objects.create(name=name, value=value)
    return base64.b64decode(unseal(row.value, settings, name))


def seal(data: bytes, settings: Settings, name: str) -> str:
    """``data`` for nobody but who has the secret; ``name`` is sealed in, so that values cannot change places."""
    nonce = secrets.token_bytes(12)
    return SEALED + jws.b64url(nonce + _cipher(settings).encrypt(nonce, data, name.encode()))


def unseal(text: str, settings: Settings, name: str) -> bytes:
    """What ``seal`` was given. Raises KeyFileError."""
    if not text.startswith(SEALED):
        return text.encode()
    where = "the systemd credential pi-fleet-key-secret, or the variable PI_FLEET_KEY_SECRET"
    if not settings.key_secret:
        raise KeyFileError(
            "the signing keys are sealed, and the secret is not there", path=settings.database_name, hint=f"set {where}"
        )
    try:
        data = jws.b64url_decode(text.removeprefix(SEALED))
        return _cipher(settings).decrypt(data[:12], data[12:], name.encode())
    except (InvalidTag, ValueError, binascii.Error) as error:
        raise KeyFileError(
            "the signing keys are sealed with another secret", path=settings.database_name, hint=f"look at {where}"
        ) from error


def _cipher(settings: Settings) -> AESGCM:
    derived = HKDF(SHA256(), 32, salt=None, info=b"pi-fleet signing keys").derive(settings.key_secret.encode())
    return AESGCM(derived)


def _rows() -> list[SigningKey]:
    return list(SigningKey.objects.filter(retired_at=None).order_by("signs_from", "id"))


def _make(settings: Settings, *, now: int, signs_from: int) -> SigningKey:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    kid = public_key(key.public_key()).kid
    kept = seal(pem, settings, kid) if settings.key_secret else pem.decode("ascii")
    return SigningKey.objects.create(kid=kid, alg="ES256", private_key=kept, created_at=now, signs_from=signs_from)


def _ring(rows: list[SigningKey], settings: Settings) -> KeyRing:
    ends = [younger.signs_from for _, younger in pairwise(rows)] + [FOREVER]
    return KeyRing(tuple(_open(row, settings, until) for row, until in zip(rows, ends, strict=True)))


def _open(row: SigningKey, settings: Settings, until: int) -> RingKey:
    try:
        key = load_pem_private_key(unseal(row.private_key, settings, row.kid), password=None)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or (public := public_key(key.public_key())).kid != row.kid:
        raise KeyFileError(
            f"the signing key {row.kid} is damaged", path=settings.database_name, hint="restore the database"
        )
    head = jws.b64url(compact_json({"typ": "at+jwt", "alg": "ES256", "kid": row.kid}).encode())
    return RingKey(public, head, jws.signer(key, "ES256"), row.created_at, row.signs_from, until)
