"""Who may have which token: the rules of ``[[local.allow]]``, and what they say to a caller. Pure.

A rule names a user, a group, both or neither (then it speaks of everybody), and the audiences and scopes it grants; an
empty list means the configured one, ``*`` means any. Root and the agent's own user may have what any rule grants or
the server gives: they could read this process's memory anyway. Without a rule, whoever reaches the socket may have the
configured token and no other. Users and groups were turned into numbers before (``commands/run.py``), since looking
them up may go over the network.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing: the resident reads this
if TYPE_CHECKING:
    from collections.abc import Iterable

ANY = "*"


class Peer:
    """A caller as the kernel describes it. ``groups`` holds the primary and the supplementary group ids."""

    __slots__ = ("groups", "uid")

    def __init__(self, uid: int, groups: Iterable[int] = ()) -> None:
        self.uid = uid
        self.groups = frozenset(groups)


class Rule:
    """``label`` is how the rule is called in a refusal; ``uid`` and ``gid`` are None where it names none."""

    def __init__(self, label: str, uid: int | None, gid: int | None, audiences: list[str], scopes: list[str]) -> None:
        self.label = label
        self.uid = uid
        self.gid = gid
        self.audiences = audiences
        self.scopes = scopes

    def speaks_of(self, peer: Peer) -> bool:
        return self.uid in (None, peer.uid) and (self.gid is None or self.gid in peer.groups)

    def grants(self, audience: str, scope: str, default: tuple[str, str]) -> bool:
        audiences, scopes, asked = self.audiences or [default[0]], self.scopes or default[1].split(), scope.split()
        if ANY not in audiences and audience not in audiences:
            return False
        if not asked and scopes:  # the server then gives all that it may, which is more than the rule says
            return ANY in scopes
        return ANY in scopes or set(asked) <= set(scopes)


def pack(rules: Iterable[Rule]) -> str:
    """Rules as lines for a frame; ``unpack`` reads them back. Audiences and scopes hold no white space."""
    return "\n".join(
        "\t".join((rule.label, _number(rule.uid), _number(rule.gid), " ".join(rule.audiences), " ".join(rule.scopes)))
        for rule in rules
    )


def unpack(text: str) -> list[Rule]:
    rules = []
    for line in text.split("\n") if text else []:
        label, uid, gid, audiences, scopes = line.split("\t")
        rules.append(Rule(label, _id(uid), _id(gid), audiences.split(), scopes.split()))
    return rules


def refusal(rules: list[Rule], peer: Peer, audience: str, scope: str, *, default: tuple[str, str], own_uid: int) -> str:
    """Why ``peer`` may not have this token, or "" when it may. ``default`` is the configured (audience, scope)."""
    if peer.uid in (0, own_uid):
        return ""
    if not rules and (audience, scope) == default:
        return ""
    scopes = f"scope {scope}" if scope else "whatever scopes the server gives"
    what = f"a token{f' for {audience}' if audience else ''} with {scopes}"
    if not rules:
        return f"uid {peer.uid} may have the configured token only, not {what}: there is no [[local.allow]] rule"
    own = [rule for rule in rules if rule.speaks_of(peer)]
    if any(rule.grants(audience, scope, default) for rule in own):
        return ""
    if not own:
        return f"no [[local.allow]] rule speaks of uid {peer.uid}"
    return f"{', '.join(rule.label for rule in own)} does not grant uid {peer.uid} {what}"


def _number(value: int | None) -> str:
    return ANY if value is None else str(value)


def _id(text: str) -> int | None:
    return None if text == ANY else int(text)
