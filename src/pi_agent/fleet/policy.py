"""What a device may have: from its row in the registry, the board it says it is, and the rules of the operators.

A device may ask for its own scopes at the fleet's own audience, and for what an access rule gives it: a rule is a query
for devices, an audience and scopes. The audience of a token comes from here and never from an assertion
(requirement C-03). Whatever is not given by a rule is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pi_agent import query
from pi_agent.assertion import BOARD_CLAIMS, VerifiedAssertion
from pi_agent.catalogue import lower
from pi_agent.errors import OAuthError, QueryError
from pi_agent.fleet.ledger import DeviceRow, Rule
from pi_agent.fleet.models import Device
from pi_agent.fleet.selection import condition

MAX_SCOPE = 1536  # a token that has it, the longest audience and a board is still below 4 kB (requirement C-10)
WAITING = "this device waits for an operator's approval"
TURNED_AWAY = {
    "rejected": "this device was rejected by an operator",
    "quarantined": "this device is in quarantine; an operator can release it",
    "revoked": "this device was revoked",
}


@dataclass(frozen=True, slots=True)
class Admitted:
    """What an admitted device gets: audience and scope, and the board it enrolled as (None when it named none).

    ``key_rotation`` tells it to make a new key.
    """

    audience: str
    scope: str
    board: dict[str, Any] | None
    key_rotation: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """The access rules in force, and ``audience``, the fleet's own. Ages in their queries are counted from ``now``."""

    audience: str
    rules: Sequence[Rule]
    now: int

    def scopes(self, client_id: str, own: str, audience: str) -> list[str] | None:
        """The scopes that a device may have at an audience; None when it may have no token for it at all."""
        given = [own] if audience == self.audience else []
        given += [
            rule.scopes for rule in self.rules if rule.audience == audience and _applies(rule, client_id, self.now)
        ]
        return list(dict.fromkeys(" ".join(given).split())) if given else None


def _applies(rule: Rule, client_id: str, now: int) -> bool:
    """Whether a rule is for a device. A rule that can no longer be read is for none."""
    try:
        parsed = query.parse(rule.query, now)
    except QueryError:
        return False
    return Device.objects.filter(condition(parsed), client_id=client_id).exists()


def decide(
    verified: VerifiedAssertion, device: DeviceRow, rules: Rules, *, scope: str, resource: str
) -> Admitted | OAuthError:
    """What a device gets for an assertion; or why it gets nothing."""
    if device.status == "pending":
        return OAuthError("authorization_pending", WAITING)  # RFC 8628 section 3.5 has the code for it
    if device.status != "approved":
        return OAuthError("invalid_grant", TURNED_AWAY[device.status])
    if changed := board_changes(device.board, verified.board):
        return OAuthError("invalid_grant", f"the board is not the one that enrolled: {' and '.join(changed)} changed")
    audience = resource or rules.audience
    allowed = rules.scopes(verified.issuer, device.scopes, audience)
    if allowed is None:  # RFC 8707 section 2
        return OAuthError("invalid_target", "no rule gives this device tokens for that resource: pi-fleet rule list")
    wanted = dict.fromkeys(scope.split() or allowed)
    if not wanted.keys() <= set(allowed):
        return OAuthError("invalid_scope", "no rule gives this device that scope: pi-fleet rule list")
    if len(given := " ".join(wanted)) > MAX_SCOPE:
        return OAuthError("invalid_scope", f"the scopes are longer than {MAX_SCOPE} characters in all; ask for fewer")
    return Admitted(audience, given, device.board if any(device.board.values()) else None)


def normal_board(claimed: dict[str, Any] | None) -> dict[str, Any]:
    """The ``board`` claim as the registry keeps it: hexadecimal in lower case, unknown (or empty) as None."""
    board: dict[str, Any] = {name: (claimed or {}).get(name) or None for name in BOARD_CLAIMS}
    return board | {name: lower(board[name]) for name in ("serial", "revision") if board[name]}


def board_changes(enrolled: dict[str, Any], claim: dict[str, Any] | None) -> dict[str, tuple[Any, Any]]:
    """Members of the board that differ, as (enrolled, claimed). What either side does not know is no difference."""
    if claim is None or claim == enrolled:
        return {}
    claimed = normal_board(claim)
    pairs = {name: (enrolled[name], claimed[name]) for name in BOARD_CLAIMS}
    return {name: pair for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
