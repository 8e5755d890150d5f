"""The worker: started for one refresh, it reads the key, signs, fetches, hands back the ready answer, and exits.

It gets its settings as a frame on standard input and answers with a frame on standard output (``frames.py``):
``outcome`` is ``token``, ``pending``, ``refused``, ``failed`` or ``revoked``. With ``token`` come ``expires_in`` and the
answer's JSON in two halves, ``head`` and ``tail``, between which the resident writes how many seconds are left.
Otherwise ``message``, ``hint``, ``reason`` and ``retry_after``. ``anchor`` is what the server's Date told (``clock.py``),
``note`` what is wrong with keeping keys, and ``rotates`` is there when another key was begun, which takes the request's
``may_rotate``. ``left`` are the numbers, from 0, of the tokens that were not revoked. Whatever goes wrong is an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import ssl
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pi_agent import __version__, oauth
from pi_agent.device import clock, discovery, files, frames, hearsay, identity, joining, request, rotate
from pi_agent.device.keys import KeyStore, stores
from pi_agent.device.transport import Transport
from pi_agent.errors import ConfigError, OAuthError, PiAgentError, TransportError
from pi_agent.jws import b64url

PENDING_ERROR = "authorization_pending"  # RFC 8628 section 3.5
BUSY_ERRORS = ("slow_down", "temporarily_unavailable", "server_error")  # RFC 8628 section 3.5, RFC 6749 section 4.1.2.1
CLOCK_ERRORS = ("invalid_grant", "invalid_client", "invalid_request", "unauthorized_client")
POSTPONED = "the key is not rotated yet"

Fields = dict[str, str | int]


def main() -> None:
    """One request. Leaves through ``os._exit``: nothing here is worth tearing down, and a thread may still hang."""
    settings = frames.unpack(sys.stdin.buffer.read(frames.MAX_FRAME))
    os.environ.update(json.loads(settings["key_variables"]))
    answer = frames.pack(refresh(settings))
    with contextlib.suppress(OSError):  # nobody waits for it any more
        sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
    os._exit(0)


def refresh(settings: dict[str, str]) -> Fields:
    """The fields of the answer to one request under ``settings`` (see ``preparation.py`` for what they are)."""
    attempt = Attempt(settings)
    try:
        answer = attempt.revoke() if settings.get("action") == "revoke" else attempt.token()
    except PiAgentError as error:
        answer = attempt.failure(error)
    except Exception as error:  # noqa: BLE001  # the resident must learn of a fault in here too; details could hold secrets
        text = f"unexpected {type(error).__name__} in the worker"
        answer = {"outcome": "failed", "reason": "bug", "message": text, "hint": "pi-agent --version; please report it"}
    return answer | attempt.learned()


class Attempt:
    """One worker's work, with what it learns about the time on the way."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self._anchor = float(settings["anchor"]) if settings.get("anchor") else None
        self._transport = transport(settings)
        self._forgotten = self._rotates = False
        self._state = Path(settings["state"])
        self._known: identity.Identity
        self._note = ""
        self._loopback_http = settings["server_loopback_http"] == "True"

    def token(self) -> Fields:
        """A token, by the refresh token if there is one, else by the grant. Raises PiAgentError."""
        profile, key = self._profile_and_key()
        if held := self._settings.get("refresh_token", ""):
            try:
                return _answer(self._buy(profile, key, held))
            except OAuthError as error:
                if error.error != "invalid_grant":
                    raise
                self._forgotten = True
        now = self._now(profile.issuer)
        try:
            return _answer(self._buy(profile, key))
        except OAuthError as error:
            if not (error.error in CLOCK_ERRORS and (self._is_off(now) or self._is_back_in())):
                raise
        return _answer(self._buy(profile, key))  # once more, with a new assertion that carries the server's time

    def revoke(self) -> Fields:
        """Tell the server that the tokens are done with (RFC 7009): each of them, whatever it says to the one before."""
        profile, key = self._profile_and_key()
        url = self._settings["server_revocation_endpoint"]
        if not url:
            url = discovery.discover(
                self._transport,
                profile.issuer,
                loopback_http=self._loopback_http,
                which=self._settings["server_discovery"],
            ).revocation_endpoint
        if not url:
            return {"outcome": "revoked", "message": "the server cannot revoke; the token ends by itself"}
        left, problem = [], None
        for number, token in enumerate(self._settings["tokens"].split(" ")):
            form = request.revocation_form(profile, key, token, now=self._now(profile.issuer))
            try:
                answer = self._transport.post_form(url, form, authorization=request.authorization(profile))
                if answer.status != 200:
                    raise TransportError(f"the server answered {answer.status}", reason="answer")
            except TransportError as error:
                left.append(str(number))
                problem = error
        if problem:
            return self.failure(problem) | {"left": " ".join(left)}
        return {"outcome": "revoked", "message": "revoked at the server"}

    def failure(self, error: PiAgentError) -> Fields:
        answer: Fields = {"outcome": "failed", "reason": "local", "message": str(error), "hint": error.hint or ""}
        if isinstance(error, OAuthError):
            answer |= {"outcome": _outcome(error), "reason": error.error}
        elif isinstance(error, TransportError):
            answer["reason"] = error.reason
            if error.reason == "tls" and (wrong := self._wrong_clock(str(error))):
                answer |= {"reason": "clock", "hint": hearsay.CLOCK_HINT, "message": f"{wrong}, so {error}"}
        if isinstance(error, OAuthError | TransportError) and error.retry_after is not None:
            answer["retry_after"] = error.retry_after
        return answer

    def learned(self) -> Fields:
        """What the resident is to remember."""
        self._learn()
        learned: Fields = {"forget_refresh_token": "1"} if self._forgotten else {}
        learned["note"] = self._note or identity.obstacle(self._state)
        learned |= {"rotates": "1"} if self._rotates else {}
        return learned | ({} if self._anchor is None else {"anchor": repr(self._anchor)})

    def _wrong_clock(self, failure: str) -> str:
        """Why TLS may have failed because of our clock, or ""."""
        url = self._settings["server_token_endpoint"] or self._known.token_endpoint
        return hearsay.wrong_clock(url, failure, proxied=bool(self._settings["server_proxy"]))

    def _profile_and_key(self) -> tuple[request.Profile, KeyStore]:
        known = self._known = identity.load(self._state)
        board: dict[str, Any] = json.loads(self._settings["board"])
        known.check_board(board.get("serial") or "")
        key = self._next_key(known) if known.next_key else joining.load_key(self._state, known)
        return profile(self._settings, known, key, board), key

    def _next_key(self, known: identity.Identity) -> KeyStore:
        """The key that is being rotated in; the one in use as long as that is not to be had."""
        now = self._now(known.issuer)
        try:
            return rotate.next_key(self._state, known, self._transport, loopback_http=self._loopback_http, now=now)
        except PiAgentError as error:
            self._note = f"{POSTPONED}: {error}"
            return joining.load_key(self._state, known)

    def _is_back_in(self) -> bool:
        """The server did not know the key, and does now (``rotate.sign_back_in``)."""
        return rotate.sign_back_in(
            self._state,
            self._known,
            self._transport,
            loopback_http=self._loopback_http,
            now=self._now(self._known.issuer),
        )

    def _turn_keys(self, key: KeyStore, token: oauth.Token) -> None:
        """After the first use of a new key, or when the server asks for one. The token is good, whatever becomes of this."""
        known = self._known
        try:
            if known.next_key and key.public_key().kid != known.kid:
                self._known = rotate.finish(self._state, known, key)
            elif token.key_rotation and not known.next_key:
                self._begin_rotation(known)
        except PiAgentError as error:
            self._note = f"{POSTPONED}: {error}"

    def _begin_rotation(self, known: identity.Identity) -> None:
        if self._settings.get("may_rotate"):
            self._known = rotate.begin(self._state, known, stores.successor(known.key))
            self._rotates = True
        else:
            self._note = f"{POSTPONED}: the server asks for another, and the last is not a day old"

    def _buy(self, profile: request.Profile, key: KeyStore, refresh_token: str = "") -> oauth.Token:
        scope = self._settings["scope"]

        def form() -> str:
            return request.token_form(
                profile,
                key,
                now=self._now(profile.issuer),
                audience=self._settings["audience"],
                scope=scope,
                refresh_token=refresh_token,
            )

        token = self._transport.buy(
            profile.token_endpoint, form, scope=scope, authorization=request.authorization(profile)
        )
        self._turn_keys(key, token)
        return token

    def _now(self, issuer: str) -> int:
        """The time to sign with. A clock that cannot be right is not signed with: the server is asked for its time first."""
        self._learn()
        now = clock.signing_time(time.time(), _boot(), self._anchor)
        if now is None:
            self._transport.get_json(discovery.metadata_urls(issuer)[0])
            self._learn()
            now = clock.signing_time(time.time(), _boot(), self._anchor)
        if now is None:
            said = time.strftime("%Y-%m-%d", time.gmtime(max(0.0, min(time.time(), 2.0**31 - 1))))
            raise TransportError(
                f"the clock is wrong (it says {said}), and the server told no time",
                reason="clock",
                hint=hearsay.CLOCK_HINT,
            )
        return now

    def _is_off(self, signed_with: int) -> bool:
        """The answer told that the assertion did not carry the server's time."""
        self._learn()
        return self._anchor is not None and abs(_boot() + self._anchor - signed_with) > clock.TOLERANCE

    def _learn(self) -> None:
        if self._transport.seen:
            learned = clock.anchor(*self._transport.seen)
            self._anchor = self._anchor if learned is None else learned


def transport(settings: dict[str, str]) -> Transport:
    return Transport(
        ca_file=settings["server_ca_file"],
        proxy=settings["server_proxy"],
        loopback_http=settings["server_loopback_http"] == "True",
        one_attempt=True,
    )


def profile(
    settings: dict[str, str], known: identity.Identity, key: KeyStore, board: dict[str, Any]
) -> request.Profile:
    """How this server wants to be asked. Raises ConfigError, KeyFileError for a secret or certificate that is not there."""
    claims: dict[str, Any] = {}
    if settings["server_device_claims"] == "True":
        claims = {
            "board": board,
            "boot": boot_claim(Path(settings["root"]), known.issuer),
            "agent": agent_claims(key, simulated=settings["root"] != "/", flags=settings["board_flags"].split()),
        }
    return request.Profile(
        issuer=known.issuer,
        client_id=known.client_id,
        token_endpoint=settings["server_token_endpoint"] or known.token_endpoint,
        grant=settings["server_grant"],
        client_auth=settings["server_client_auth"],
        client_id_parameter=settings["server_client_id_parameter"] == "True",
        subject=settings["server_subject"],
        assertion_audience=settings["server_assertion_audience"],
        assertion_type=settings["server_assertion_type"],
        key_id=settings["server_key_id"],
        certificate_thumbprint=_thumbprint(settings["server_certificate_file"]),
        audience_parameter=settings["server_audience_parameter"],
        scope_in=settings["server_scope_in"],
        lifetime=int(settings["token_assertion_lifetime"]),
        secret=_secret(settings["server_client_secret_file"]),
        device_claims=claims,
    )


def agent_claims(key: KeyStore, *, simulated: bool, flags: Sequence[str] = ()) -> dict[str, Any]:
    """The ``agent`` claim: which program speaks, how its key is kept, whether the board is a replayed one.

    ``flags`` are the words of the board's state bits. They may change, so they stand here and not in ``board``.
    """
    claims = {"version": __version__, "key": key.protection, "flags": list(flags)}
    return claims | ({"simulated": True} if simulated else {})


def boot_claim(root: Path, issuer: str) -> str | None:
    """What names this boot to ``issuer`` and to nobody else, or None where the kernel's boot id cannot be read.

    base64url(SHA-256(boot id + issuer)): 43 characters. The same until the next boot, then never again.
    """
    try:
        boot_id = (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return b64url(hashlib.sha256((boot_id + issuer).encode()).digest())


def _answer(token: oauth.Token) -> Fields:
    members = {"access_token": token.access_token, "token_type": "Bearer"}
    head = json.dumps(members | ({"scope": token.scope} if token.scope else {}))[:-1] + ', "expires_in": '
    answer: Fields = {"outcome": "token", "expires_in": token.expires_in, "head": head, "tail": "}"}
    return answer | ({"refresh_token": token.refresh_token} if token.refresh_token else {})


def _outcome(error: OAuthError) -> str:
    """``refused`` is about this device and is asked about slowly; a server that is only busy is a failed attempt."""
    if error.error == PENDING_ERROR:
        return "pending"
    return "failed" if error.status == 429 or error.error in BUSY_ERRORS else "refused"


def _secret(path: str) -> str:
    if not path:
        return ""
    try:
        return files.read_private(Path(path), limit=4096).decode("ascii").strip()
    except (FileNotFoundError, ValueError):
        raise ConfigError(f"there is no client secret in {path}", path=path, key="server.client_secret_file") from None


def _thumbprint(path: str) -> str:
    """The x5t#S256 of a PEM certificate (RFC 7515 section 4.1.8), "" without one."""
    if not path:
        return ""
    try:
        der = ssl.PEM_cert_to_DER_cert(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        raise ConfigError(f"there is no PEM certificate in {path}", path=path, key="server.certificate_file") from None
    return b64url(hashlib.sha256(der).digest())


def _boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
