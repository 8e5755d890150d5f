"""The agent's figures in Prometheus' text form. Labels come from short fixed lists (requirements G-06, G-08)."""

from __future__ import annotations

CONTENT_TYPE = "text/plain; version=0.0.4"
REASONS = (
    *("dns", "refused", "unreachable", "timeout", "tls", "proxy", "redirect", "answer", "issuer", "clock", "local"),
    *("worker", "resources", "bug", "invalid_client", "invalid_grant", "authorization_pending"),
)

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from pi_agent.device.agent import Agent


def write(agent: Agent, now: float) -> bytes:
    """All metrics at boot time ``now``."""
    slots = list(agent.tokens)
    figures = (
        ("pi_agent_up", "gauge", "the agent answers", 1),
        (
            "pi_agent_token_expires_in_seconds",
            "gauge",
            "life left of the configured token",
            max(0, agent.tokens.default.left(now)),
        ),
        ("pi_agent_tokens", "gauge", "tokens held that are still good", sum(slot.left(now) > 0 for slot in slots)),
        ("pi_agent_attempts_total", "counter", "token requests that were started", agent.attempts),
        ("pi_agent_refreshes_total", "counter", "token requests that brought a token", agent.refreshes),
        (
            "pi_agent_seconds_since_token",
            "gauge",
            "since the last token came, -1 before the first",
            agent.since_token(now),
        ),
        ("pi_agent_clock_wrong", "gauge", "1 while the system clock is wrong", int(bool(agent.clock_problem(now)))),
        (
            "pi_agent_clock_offset_seconds",
            "gauge",
            "the server's clock minus the system's",
            agent.clock_offset(now) or 0,
        ),
        ("pi_agent_clock_steps_total", "counter", "times that somebody set the system clock", agent.clock_steps),
        ("pi_agent_connections", "gauge", "open connections on the socket", agent.connections()),
        ("pi_agent_connections_refused_total", "counter", "callers turned away by a limit", agent.refused_callers()),
    )
    lines = [line for name, kind, words, value in figures for line in _metric(name, kind, words, value)]
    name = "pi_agent_failures_total"
    lines += [f"# HELP {name} attempts that brought none, by reason", f"# TYPE {name} counter"]
    lines += [f'{name}{{reason="{reason}"}} {count}' for reason, count in sorted(agent.failures.items())]
    return "".join(line + "\n" for line in lines).encode()


def label(reason: str) -> str:
    """``reason`` when it is one of ours, else ``other``: what a server says must not become a label."""
    return reason if reason in REASONS else "other"


def _metric(name: str, kind: str, words: str, value: int) -> tuple[str, str, str]:
    return f"# HELP {name} {words}", f"# TYPE {name} {kind}", f"{name} {value}"
