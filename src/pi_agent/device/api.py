"""What a caller gets: the paths of the local API and their answers. Pure but for the hall it asks (``House``).

A token is never handed out empty or expired as success, a refusal says which rule it was, and an answer never waits for
the network longer than the caller asked it to (``wait=SECONDS``). Errors are problem documents (RFC 9457) with the
next step as ``hint`` (requirements E-02, E-03, E-05).
"""

from __future__ import annotations

from pi_agent.device import allow, clock, metrics, schedule, tokens
from pi_agent.device.local import answer, refusal, write_json

MIN_VALID = 60
LONGEST_WAIT = 300.0
TOKEN, BOARD, STATUS, METRICS = "/v1/token", "/v1/board", "/v1/status", "/metrics"
REFRESH, SIGN_OUT = "/v1/refresh", "/v1/sign-out"
METHODS = {TOKEN: "GET", BOARD: "GET", STATUS: "GET", METRICS: "GET", REFRESH: "POST", SIGN_OUT: "POST"}
PARAMETERS = ("audience", "scope", "min_valid", "wait")
ALLOW_HINT = "add a [[local.allow]] table to the settings, then: systemctl reload pi-agent"

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from pi_agent.device.agent import Agent
    from pi_agent.device.allow import Peer
    from pi_agent.device.local import Request
    from pi_agent.device.tokens import Slot


class Wish:
    """What a caller says of the token that it wants. ``problem`` is a sentence when that makes no sense."""

    __slots__ = ("audience", "min_valid", "problem", "scope", "wait")

    def __init__(self, query: dict[str, str]) -> None:
        self.problem = ""
        unknown = [name for name in query if name not in PARAMETERS]
        if unknown:  # ?resource=URI would else get the configured token, for somebody else than URI
            self.problem = f"there is no parameter {unknown[0]!r}; there are {', '.join(PARAMETERS)}"
            return
        self.audience = query.get("audience")  # None: the configured one
        self.scope = query.get("scope")
        seconds = query.get("min_valid", str(MIN_VALID)), query.get("wait", "0")
        if not all(text.isascii() and text.isdigit() and len(text) <= 6 for text in seconds):
            self.problem = "min_valid and wait are whole numbers of seconds"
            return
        self.min_valid, self.wait = int(seconds[0]), min(int(seconds[1]), LONGEST_WAIT)
        audience, scope = self.audience or "", self.scope or ""
        if len(audience) > 512 or len(scope) > 512 or any(character.isspace() for character in audience):
            self.problem = "audience is one name without spaces; audience and scope have at most 512 characters"


def in_order(scope: str) -> str:
    """The same for the same scopes, in whatever order and however often they are named (RFC 6749 section 3.3)."""
    return " ".join(sorted(set(scope.split())))


def chosen(configured: tuple[str, str], audience: str | None, scope: str | None) -> tuple[str, str]:
    """Audience and scope of the slot that a caller means: what it does not name is as configured."""
    is_configured = scope is None or in_order(scope) == in_order(configured[1])
    return configured[0] if audience is None else audience, configured[1] if is_configured else in_order(scope or "")


def respond(agent: Agent, request: Request, peer: Peer, now: float, until: float) -> bytes | float:
    """The bytes of the answer; or the time until which the caller is willing to wait for one, the next call's ``until``."""
    method = METHODS.get(request.path)
    if method is None:
        return _refuse(request, 404, "the agent answers " + ", ".join(METHODS))
    if request.method != method:
        return _refuse(request, 405, f"{request.path} is asked with {method}")
    if request.path in (TOKEN, REFRESH):
        return _respond_token(agent, request, peer, now, until)
    if request.path == SIGN_OUT:
        return _respond_sign_out(agent, request, peer, now, until)
    if request.path == METRICS:
        return answer(200, metrics.write(agent, now), keep_alive=request.keep_alive, content_type=metrics.CONTENT_TYPE)
    body = agent.settings["board_document"].encode() if request.path == BOARD else write_json(status(agent, now))
    return answer(200, body, keep_alive=request.keep_alive)


def _respond_token(agent: Agent, request: Request, peer: Peer, now: float, until: float) -> bytes | float:
    wish = request.wish
    if wish is None:
        wish = request.wish = Wish(request.query)
    if wish.problem:
        return _refuse(request, 400, wish.problem)
    default = agent.tokens.default
    configured = (default.audience, default.scope)
    audience, scope = chosen(configured, wish.audience, wish.scope)
    if why := allow.refusal(agent.rules, peer, audience, scope, default=configured, own_uid=agent.uid):
        return _refuse(request, 403, why, hint=ALLOW_HINT, reason="local.allow")
    slot = agent.tokens.find(audience, scope, now, peer.uid)
    if slot is None:
        return _refuse(request, 503, f"the agent keeps {tokens.MAX_SLOTS} tokens, and all are in use", retry_after=60)
    if not until:
        until = now + wish.wait
        if request.path == REFRESH:
            agent.renew(slot, peer, now)
    is_awaited = request.path == REFRESH and slot.renewing and now < until
    left = slot.left(now)
    if left > 0 and left >= wish.min_valid and not is_awaited:
        return answer(200, slot.answer(left), keep_alive=request.keep_alive)
    agent.want(slot, now)
    if now < until and agent.is_coming(slot, until):
        return until
    return _no_token(agent, request, slot, now, wish.min_valid)


def _no_token(agent: Agent, request: Request, slot: Slot, now: float, min_valid: int) -> bytes:
    if slot.left(now) > 0 and slot.life < min_valid:
        detail = f"the server's tokens live {int(slot.life)} s; min_valid={min_valid} is more than that"
        return _refuse(request, 400, detail)
    status = 403 if slot.is_refused() else 503
    wait = max(1, int(slot.next - now) + 1)
    hint, reason = slot.failure.get("hint", ""), slot.failure.get("reason", "")
    if agent.leaving.said:
        reason = "signed-out"
    return _refuse(request, status, sentence(agent, now, slot), hint=hint, reason=reason, retry_after=wait)


def _respond_sign_out(agent: Agent, request: Request, peer: Peer, now: float, until: float) -> bytes | float:
    if peer.uid not in (0, agent.uid):
        return _refuse(request, 403, f"signing out is for root and for the agent's own user, not for uid {peer.uid}")
    if not until:
        until = now + LONGEST_WAIT
        agent.sign_out(now)
    if agent.is_signing_out() and now < until:
        return until
    is_revoked = agent.leaving.is_done() and not agent.is_signing_out()
    document = {
        "schema": "pi-agent.sign-out/1",
        "sentence": sentence(agent, now, agent.tokens.default),
        "revoked": is_revoked,
    }
    return answer(200, write_json(document), keep_alive=request.keep_alive)


def status(agent: Agent, now: float) -> dict[str, object]:
    """The document behind ``pi-agent status``; its names are the protocol's."""
    slot = agent.tokens.default
    left = slot.left(now)
    failure = {name: slot.failure.get(name, "") for name in ("reason", "message", "hint")} if slot.failure else None
    return {
        "schema": "pi-agent.status/1",
        "state": state(agent, now),
        "sentence": sentence(agent, now, slot),
        "issuer": agent.settings["issuer"],
        "client_id": agent.settings["client_id"],
        "board": agent.settings["board"].encode(),
        "key": agent.settings["key"],
        "token_expires_in": left if left > 0 else None,
        "next_attempt_in": None if agent.is_busy() else max(0, int(slot.next - now)),
        "attempts": agent.attempts,
        "refreshes": agent.refreshes,
        "failures": slot.failures,
        "failure": failure,
        "clock": {"problem": agent.clock_problem(now), "offset": agent.clock_offset(now)},
        "tokens": [_token_status(each, now) for each in agent.tokens],
        "warnings": agent.warnings(now),
    }


def state(agent: Agent, now: float) -> str:
    slot = agent.tokens.default
    if agent.leaving.said:
        return "signed-out"
    if slot.failure:
        return slot.outcome
    return "ok" if slot.left(now) > 0 else "starting"


def sentence(agent: Agent, now: float, slot: Slot) -> str:
    """How a token is, in one line; with the clock's trouble where that is the cause."""
    left, wait = slot.left(now), max(0.0, slot.next - now)
    when = "under way" if agent.is_busy(slot) else f"in {clock.length(wait)}"
    which = "" if slot is agent.tokens.default else _which(slot)
    token = f"token{which} ok, {clock.length(left)} left" if left > 0 else f"no token{which}"
    if agent.leaving.said:
        return f"signed out ({agent.leaving.said}); sign in again with: sudo pi-agent refresh"
    if not slot.failure:
        what = "next refresh" if left > 0 else "first request"
        return f"{token}, {what} {when}"
    cause = slot.failure.get("message", "")
    return f"{token}; {word_for(slot.outcome)} ({cause}); next attempt {when}"


def _which(slot: Slot) -> str:
    audience = f" for {slot.audience}" if slot.audience else ""
    return audience + (f" with scope {slot.scope}" if slot.scope else "")


def _token_status(slot: Slot, now: float) -> dict[str, object]:
    return {
        "audience": slot.audience,
        "scope": slot.scope,
        "outcome": slot.outcome,
        "expires_in": max(0, slot.left(now)),
        "next_attempt_in": max(0, int(slot.next - now)),
        "message": slot.failure.get("message", ""),
    }


def _refuse(
    request: Request, status: int, detail: str, *, hint: str = "", reason: str = "", retry_after: int | None = None
) -> bytes:
    return refusal(status, detail, keep_alive=request.keep_alive, hint=hint, reason=reason, retry_after=retry_after)


def word_for(outcome: str) -> str:
    """What an attempt came to, as part of a sentence."""
    if outcome == schedule.PENDING:
        return "waiting for an operator's approval"
    return "refused" if outcome == schedule.REFUSED else "last attempt failed"
