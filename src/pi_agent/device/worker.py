"""The worker: started for one refresh, it reads the key, signs, fetches, hands back the ready answer, and exits.

It gets its settings as a frame on standard input and answers with a frame on standard output (``frames.py``):
``outcome`` is ``token``, ``pending``, ``refused`` or ``failed``. With ``token`` come ``expires_in`` and ``asked_at``
(boot seconds) and the answer's JSON in two halves, ``head`` and ``tail``, between which the resident writes how many
seconds are left. Otherwise ``message``, ``hint``, ``reason`` and ``retry_after``. Whatever goes wrong is an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from pi_agent import __version__, assertion
from pi_agent.device import frames, identity
from pi_agent.device.keys import KeyStore, file
from pi_agent.device.transport import Transport
from pi_agent.errors import OAuthError, PiAgentError, TransportError
from pi_agent.jws import b64url

PENDING_ERROR = "authorization_pending"  # RFC 8628 section 3.5
BUSY_ERRORS = ("slow_down", "temporarily_unavailable", "server_error")  # RFC 8628 section 3.5, RFC 6749 section 4.1.2.1


def main() -> None:
    """One refresh. Leaves through ``os._exit``: nothing here is worth tearing down, and a thread may still hang."""
    settings = frames.unpack(sys.stdin.buffer.read(frames.MAX_FRAME))
    answer = frames.pack(refresh(settings))
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)


def refresh(settings: dict[str, str]) -> dict[str, str | int]:
    """The fields of the answer to one refresh under ``settings`` (see ``commands/run.py`` for what they are)."""
    try:
        return _token(settings)
    except PiAgentError as error:
        return _failure(error)
    except Exception as error:  # noqa: BLE001  # the resident must learn of a fault in here too; details could hold secrets
        return {"outcome": "failed", "reason": "bug", "message": f"unexpected {type(error).__name__} in the worker"}


def _token(settings: dict[str, str]) -> dict[str, str | int]:
    state = Path(settings["state"])
    known = identity.load(state)
    board: dict[str, Any] = json.loads(settings["board"])
    known.check_board(board.get("serial") or "")
    key = file.load(state)
    agent = agent_claims(key, simulated=settings["root"] != "/")
    claims = assertion.claims(
        issuer=known.client_id,
        audience=known.issuer,
        now=int(time.time()),
        jti=secrets.token_urlsafe(16),
        lifetime=int(settings["assertion_lifetime"]),
        board=board,
        boot=boot_claim(Path(settings["root"]), known.issuer),
        agent=agent,
    )
    transport = Transport(
        ca_file=settings["ca_file"], proxy=settings["proxy"], loopback_http=settings["loopback_http"] == "True"
    )
    asked_at = time.clock_gettime(time.CLOCK_BOOTTIME)
    token, _ = transport.fetch_token(
        known.token_endpoint,
        lambda: assertion.sign(claims, kind=assertion.GRANT, alg=key.alg, kid=key.public_key().kid, sign=key.sign),
        scope=settings["scope"],
        resource=settings["resource"],
    )
    members = {"access_token": token.access_token, "token_type": "Bearer"}
    head = json.dumps(members | ({"scope": token.scope} if token.scope else {}))[:-1] + ', "expires_in": '
    return {
        "outcome": "token",
        "expires_in": token.expires_in,
        "asked_at": str(asked_at),
        "head": head,
        "tail": "}",
    }


def agent_claims(key: KeyStore, *, simulated: bool) -> dict[str, Any]:
    """The ``agent`` claim: which program speaks, how its key is kept, and whether the board is a replayed one."""
    return {"version": __version__, "key": key.protection} | ({"simulated": True} if simulated else {})


def boot_claim(root: Path, issuer: str) -> str | None:
    """What names this boot to ``issuer`` and to nobody else, or None where the kernel's boot id cannot be read.

    base64url(SHA-256(boot id + issuer)): 43 characters. The same until the next boot, then never again.
    """
    try:
        boot_id = (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return b64url(hashlib.sha256((boot_id + issuer).encode()).digest())


def _outcome(error: OAuthError) -> str:
    """``refused`` is about this device and is asked about slowly; a server that is only busy is a failed attempt."""
    if error.error == PENDING_ERROR:
        return "pending"
    return "failed" if error.status == 429 or error.error in BUSY_ERRORS else "refused"


def _failure(error: PiAgentError) -> dict[str, str | int]:
    answer: dict[str, str | int] = {
        "outcome": "failed",
        "reason": "local",
        "message": str(error),
        "hint": error.hint or "",
    }
    if isinstance(error, OAuthError):
        answer |= {"outcome": _outcome(error), "reason": error.error}
    elif isinstance(error, TransportError):
        answer["reason"] = error.reason
    if isinstance(error, OAuthError | TransportError) and error.retry_after is not None:
        answer["retry_after"] = error.retry_after
    return answer
