"""The fleet: authorization server, registry of devices, and everything an operator works with.

One ASGI process (``asgi``): the OAuth endpoints are plain functions of values (``grants``, ``enrollment``), ahead of
Django, which does the registry (``models``, ``registry``), the REST interface (``api``) and the pages (``pages``).
May import the hall, never the device wing.
"""

from __future__ import annotations

__all__ = [
    "AccessToken",
    "InsufficientScopeError",
    "InvalidTokenError",
    "MissingTokenError",
    "verify_access_token",
    "verify_authorization",
]

TYPE_CHECKING = False  # typing.TYPE_CHECKING without importing typing
if TYPE_CHECKING:
    from pi_agent.fleet.resource import (
        AccessToken,
        InsufficientScopeError,
        InvalidTokenError,
        MissingTokenError,
        verify_access_token,
        verify_authorization,
    )


def __getattr__(name: str) -> object:
    """What services that devices call need; it comes when it is first used, and brings no Django."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pi_agent.fleet import resource

    return getattr(resource, name)
