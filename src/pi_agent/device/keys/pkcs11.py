"""The key store ``pkcs11``: a P-256 key in a TPM or any other PKCS #11 token, named by an RFC 7512 URI.

    pkcs11:token=pi-agent;object=device?module-path=/usr/lib/.../libtpm2_pkcs11.so&pin-source=file:/etc/pi-agent/pin

Needs PyKCS11 (Debian: python3-pykcs11; PyPI: the extra ``pkcs11``). Rules kept here:

* the PIN comes from a private file, never from the URI, and is tried once: a token counts wrong ones and locks itself;
* a key is made inside the token, sensitive and not extractable; one that could be taken out is not called protected;
* the token is told the SHA-256 digest (CKM_ECDSA), which every token can sign, and what it answers is checked;
* a module is code, and the location that names it is a file of the agent's user: root runs only modules of root's;
* a key is destroyed only if it says that we made it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey

from pi_agent import jws
from pi_agent.device import files
from pi_agent.errors import ConfigError, KeyFileError, KeyStoreError
from pi_agent.jwk import PublicKey, public_key

SCHEME = "pkcs11:"
P256 = bytes.fromhex("06082a8648ce3d030107")  # CKA_EC_PARAMS: the curve's object identifier (RFC 5480 section 2.1.1.1)
UNCOMPRESSED = 4
POINT_LENGTH = 65
PATH_ATTRIBUTES = ("token", "serial", "manufacturer", "model", "object")
QUERY_ATTRIBUTES = ("module-path", "pin-source")
OURS = b"pi-agent"  # how CKA_ID of a key begins that we made
NOT_LOADED = -1  # PyKCS11's own code beside those of PKCS #11
TPM_LIBRARIES = ("tpm2-software",)  # how tpm2-pkcs11 names its maker
INSTALL = "sudo apt install python3-pykcs11, or: pip install 'pi-identity-agent[pkcs11]'"
EXAMPLE = "pkcs11:token=pi-agent?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/pi-agent/pin"


@dataclass(frozen=True, slots=True)
class Uri:
    """Where a key is (RFC 7512). ``token``, ``serial`` and so on are empty when any will do."""

    module: str
    pin_file: str
    token: str = ""
    serial: str = ""
    manufacturer: str = ""
    model: str = ""
    object: str = ""

    def __str__(self) -> str:
        named = ((name, getattr(self, name)) for name in PATH_ATTRIBUTES)
        path = ";".join(f"{name}={quote(value, safe='')}" for name, value in named if value)
        return f"{SCHEME}{path}?module-path={quote(self.module)}&pin-source=file:{quote(self.pin_file)}"


def parse(text: str) -> Uri:
    """The parts of an RFC 7512 URI. Raises ConfigError for any attribute that would not be obeyed."""
    path, _, query = text.removeprefix(SCHEME).partition("?")
    named, asked = _attributes(path, ";"), _attributes(query, "&")
    if "pin-value" in asked or "pin-value" in named:
        raise _wrong("the PIN must not stand in it; put it into a file of mode 0600, and name that with pin-source")
    if unknown := (named.keys() - set(PATH_ATTRIBUTES)) | (asked.keys() - set(QUERY_ATTRIBUTES)):
        raise _wrong(f"{', '.join(sorted(unknown))} is not understood")
    module, pin_file = asked.get("module-path", ""), asked.get("pin-source", "").removeprefix("file:")
    if not text.startswith(SCHEME) or not module.startswith("/") or not pin_file.startswith("/"):
        raise _wrong("it needs module-path and pin-source, both absolute paths")
    return Uri(module=module, pin_file=pin_file, **named)


def _attributes(text: str, separator: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in text.split(separator) if part)
    return {name: unquote(value) for name, _, value in pairs}


def _wrong(why: str) -> ConfigError:
    return ConfigError(f"the pkcs11: URI cannot be used: {why}", key="key.store", hint=f"for example {EXAMPLE}")


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key in a token, in a session that is logged in. ``library`` is kept alive with it."""

    protection: str
    public: PublicKey
    library: Any = field(repr=False)
    session: Any = field(repr=False)
    handle: Any = field(repr=False)

    alg = "ES256"

    def public_key(self) -> PublicKey:
        return self.public

    def sign(self, signing_input: bytes) -> bytes:
        """The 64 bytes r || s, which is how a token gives them (PKCS #11 section 6.3.1). Raises KeyStoreError."""
        digest = hashlib.sha256(signing_input).digest()
        mechanism = self.library.api.Mechanism(self.library.api.CKM_ECDSA, None)
        signature = bytes(_call(self.library, lambda: self.session.sign(self.handle, digest, mechanism)))
        _check(signature, signing_input, self.public)
        return signature


def load(text: str) -> TokenKey:
    """The key that the URI names. Raises FileNotFoundError when the token has none by that name, else KeyStoreError."""
    return _load(_session(parse(text)), parse(text))


def load_or_create(text: str) -> TokenKey:
    """The key that the URI names, made inside the token first if there is none."""
    uri = parse(text)
    opened = _session(uri)
    try:
        return _load(opened, uri)
    except FileNotFoundError:
        _generate(opened, uri)
        return _load(opened, uri)


def remove(text: str) -> bool:
    """Destroy the key that the URI names, if the token has it. False when somebody else made it: then it stays."""
    uri = parse(text)
    opened = _session(uri)
    api = opened.library.api
    found = [each for kind in (api.CKO_PRIVATE_KEY, api.CKO_PUBLIC_KEY) for each in _objects(opened, kind, uri)]
    ours = [each for each in found if _is_ours(opened, each)]
    for each in ours:
        _call(opened.library, lambda each=each: opened.session.destroyObject(each))
    return ours == found


# The token.


class _Library:
    """A loaded module: ``api`` is PyKCS11, ``lib`` the module through it."""

    def __init__(self, module: str) -> None:
        try:
            self.api: Any = importlib.import_module("PyKCS11")
        except ImportError:
            raise KeyStoreError(
                "the key is in a token, and PyKCS11 is not installed", path=module, hint=INSTALL
            ) from None
        self.lib = self.api.PyKCS11Lib()
        self.module = module
        path = os.path.realpath(module)  # once: a link of somebody else's leads elsewhere the next time
        if os.getuid() == 0:  # also while root works as somebody else: a module could take root back
            _check_is_roots(path)
        try:
            self.lib.load(path)
        except self.api.PyKCS11Error as error:
            if error.value == NOT_LOADED:
                raise KeyStoreError(f"{module} is no PKCS #11 module", path=module, hint=f"ls -l {module}") from None
            hint = "is its hardware there, and may this user open it? For a TPM: ls -l /dev/tpmrm0"
            code = self.api.CKR.get(error.value, error.value)
            raise KeyStoreError(f"{module} does not start: {code}", path=module, hint=hint) from None


def _check_is_roots(module: str) -> None:
    """Raise KeyFileError unless root alone can say what the module holds. ``module`` is a path without links."""
    for each in (Path(module), *Path(module).parents):
        try:
            found = each.stat()
        except OSError as error:
            text = f"{module} is no PKCS #11 module: {error.strerror}"
            raise KeyStoreError(text, path=module, hint=f"ls -l {module}") from None
        if found.st_uid != 0 or found.st_mode & 0o022:
            raise KeyFileError(
                f"{module} is not run as root, since others can change {each}",
                path=module,
                hint=f"ls -ld {each}; a package puts it below /usr/lib, where root alone can",
            )


@functools.cache  # a module is initialised once in a process; the PyKCS11 of Debian 12 does not count its users
def _library(module: str) -> _Library:
    return _Library(module)


@dataclass(frozen=True, slots=True)
class _Opened:
    library: _Library
    session: Any
    slot: int


def _session(uri: Uri) -> _Opened:
    pin = _pin(Path(uri.pin_file))
    library = _library(uri.module)
    api, lib = library.api, library.lib
    slot = _slot(library, uri)
    flags = _call(library, lambda: lib.getTokenInfo(slot)).flags
    if flags & (api.CKF_USER_PIN_FINAL_TRY | api.CKF_USER_PIN_LOCKED):
        raise KeyStoreError(
            "the token's PIN was wrong too often; it is not tried again", path=uri.pin_file, hint="reset the PIN"
        )
    session = _call(library, lambda: lib.openSession(slot, api.CKF_SERIAL_SESSION | api.CKF_RW_SESSION))
    try:
        session.login(pin)
    except api.PyKCS11Error as error:
        if error.value != api.CKR_USER_ALREADY_LOGGED_IN:
            raise _refused(library, error) from None
    return _Opened(library, session, slot)


def _pin(path: Path) -> str:
    try:
        return files.read_private(path, limit=256).decode("utf-8").strip()
    except FileNotFoundError:
        raise KeyStoreError(f"the PIN file {path} is missing", path=str(path), hint=f"ls -l {path}") from None
    except UnicodeDecodeError:
        raise KeyStoreError(f"the PIN file {path} is not text", path=str(path)) from None


def _slot(library: _Library, uri: Uri) -> int:
    """The slot of the token that fits the URI: exactly one must."""
    wanted = {
        "label": uri.token,
        "serialNumber": uri.serial,
        "manufacturerID": uri.manufacturer,
        "model": uri.model,
    }
    found = []
    for slot in _call(library, lambda: library.lib.getSlotList(tokenPresent=True)):
        token = _call(library, lambda slot=slot: library.lib.getTokenInfo(slot))
        if all(not value or getattr(token, name).strip("\0 ") == value for name, value in wanted.items()):
            found.append(slot)
    if len(found) != 1:
        name = uri.token or "that the URI names"
        count = "no token" if not found else f"{len(found)} tokens"
        raise KeyStoreError(f"there is {count} {name}", path=uri.module, hint=f"pkcs11-tool --module {uri.module} -L")
    return int(found[0])


def _objects(opened: _Opened, kind: int, uri: Uri) -> list[Any]:
    wanted = [(opened.library.api.CKA_CLASS, kind), (opened.library.api.CKA_LABEL, uri.object)]
    return list(_call(opened.library, lambda: opened.session.findObjects(wanted)))


def _is_ours(opened: _Opened, handle: Any) -> bool:
    wanted = [opened.library.api.CKA_ID]
    (name,) = _call(opened.library, lambda: opened.session.getAttributeValue(handle, wanted))
    return bytes(name or b"").startswith(OURS)


def _load(opened: _Opened, uri: Uri) -> TokenKey:
    api, session = opened.library.api, opened.session
    private, public = (_objects(opened, kind, uri) for kind in (api.CKO_PRIVATE_KEY, api.CKO_PUBLIC_KEY))
    if not private and not public:
        raise FileNotFoundError(uri.object)
    if len(private) != 1 or len(public) != 1:
        raise KeyStoreError(f"the token has no single key pair called {uri.object}", path=uri.module)
    wanted = [api.CKA_EC_PARAMS, api.CKA_EC_POINT]
    curve, point = _call(opened.library, lambda: session.getAttributeValue(public[0], wanted))
    protection = _call(opened.library, lambda: _protection(opened, private[0]))
    return TokenKey(protection, _public_key(curve, point, uri), opened.library, session, private[0])


def _public_key(curve: Any, point: Any, uri: Uri) -> PublicKey:
    """CKA_EC_POINT is an OCTET STRING around the point; some tokens leave the wrapping out."""
    data = bytes(point or b"")
    data = data[2:] if len(data) == POINT_LENGTH + 2 else data
    try:
        if bytes(curve or b"") != P256 or len(data) != POINT_LENGTH or data[0] != UNCOMPRESSED:
            raise ValueError
        return public_key(EllipticCurvePublicKey.from_encoded_point(SECP256R1(), data))
    except ValueError:
        raise KeyStoreError(f"the token's key {uri.object} is not on P-256", path=uri.module) from None


def _protection(opened: _Opened, handle: Any) -> str:
    """Honest: a key that can be taken out, or a token that is itself software, is no better than a file."""
    api, lib = opened.library.api, opened.library.lib
    names = [api.CKA_SENSITIVE, api.CKA_EXTRACTABLE]
    sensitive, extractable = opened.session.getAttributeValue(handle, names)
    hardware = lib.getSlotInfo(opened.slot).flags & api.CKF_HW_SLOT
    if not hardware or not sensitive or extractable:
        return "file"
    maker = lib.getInfo().manufacturerID.strip("\0 ").lower()
    return "tpm" if maker.startswith(TPM_LIBRARIES) else "token"


def _generate(opened: _Opened, uri: Uri) -> None:
    api = opened.library.api
    identity = [(api.CKA_TOKEN, True), (api.CKA_LABEL, uri.object), (api.CKA_ID, OURS + secrets.token_bytes(8))]
    public = [*identity, (api.CKA_EC_PARAMS, P256), (api.CKA_VERIFY, True)]
    private = [
        *identity,
        (api.CKA_PRIVATE, True),
        (api.CKA_SENSITIVE, True),
        (api.CKA_EXTRACTABLE, False),
        (api.CKA_SIGN, True),
    ]
    mechanism = api.Mechanism(api.CKM_EC_KEY_PAIR_GEN, None)
    _call(opened.library, lambda: opened.session.generateKeyPair(public, private, mechanism))


def _check(signature: bytes, signed: bytes, public: PublicKey) -> None:
    assert isinstance(public.key, EllipticCurvePublicKey)
    if not jws.Es256().verify(signed, public.key, signature):
        raise KeyStoreError("the token's signature does not fit its own public key", path="pkcs11")


def _call(library: _Library, call: Any) -> Any:
    try:
        return call()
    except library.api.PyKCS11Error as error:
        raise _refused(library, error) from None


def _refused(library: _Library, error: Any) -> KeyStoreError:
    code = library.api.CKR.get(error.value, str(error.value))
    hint = "put the right PIN into the file that pin-source names" if str(code).startswith("CKR_PIN") else None
    return KeyStoreError(f"the token refuses: {code}", path=library.module, hint=hint)
