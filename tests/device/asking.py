"""Asking for a token as the tests do: with an assertion that must not turn up anywhere but at the server."""

from __future__ import annotations

from typing import Any

import pytest

from device.servers import TOKEN, Script, serving
from pi_agent import oauth
from pi_agent.device.transport import Transport
from pi_agent.errors import TransportError

ASSERTION = "canary-assertion.4711.0815"


def fetch(url: str, *, scope: str = "", **settings: Any) -> oauth.Token:
    return Transport(loopback_http=True, **settings).buy(
        url, lambda: oauth.grant_form(ASSERTION, scope=scope), scope=scope
    )


def failed(url: str, **settings: Any) -> TransportError:
    with pytest.raises(TransportError) as caught:
        fetch(url, **settings)
    for secret in (ASSERTION, TOKEN):
        assert secret not in f"{caught.value} {caught.value.hint}"
    return caught.value


def failing(script: Script, **settings: Any) -> TransportError:
    with serving(script) as server:
        return failed(server.url, **settings)
