"""Signing claims and having them believed or refused, and what a device says about itself when it says it well."""

from __future__ import annotations

from typing import Any

import pytest

from hall.material import ISSUER, NOW, PUBLIC, signed
from pi_agent import assertion, jws
from pi_agent.assertion import GRANT, Kind, VerifiedAssertion
from pi_agent.errors import InvalidAssertionError

BOARD = {
    "serial": "00000000c3a91e5f",
    "revision": "a01041",
    "model": "Raspberry Pi 2 Model B",
    "memory_mib": 1024,
    "soc": "BCM2836",
    "pcb_revision": "1.1",
}
BOOT = "A" * 43
AGENT = {"version": "0.1.0", "key": "file", "simulated": False, "flags": ["warranty"]}


def verified(
    claims: Any = None, header: Any = None, *, kind: Kind = GRANT, now: int = NOW, alg: str = "ES256"
) -> VerifiedAssertion:
    token = jws.parse(signed(header, claims, alg=alg))
    return assertion.verify(token, PUBLIC[alg], alg=alg, kind=kind, audience=ISSUER, now=now)


def refused(claims: Any = None, header: Any = None, *, kind: Kind = GRANT, now: int = NOW) -> str:
    with pytest.raises(InvalidAssertionError) as caught:
        verified(claims, header, kind=kind, now=now)
    return caught.value.claim
