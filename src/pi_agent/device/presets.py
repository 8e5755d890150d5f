"""Real authorization servers, each as the settings it needs. A preset only changes what is built in: a setting in a
file, a variable or a flag wins over it. What to set on the server's side stands in ``docs/device/presets/``.
"""

from __future__ import annotations

from collections.abc import Mapping

Values = Mapping[str, str | int | bool]

_ASSERTION: dict[str, str | int | bool] = {"server.assertion_type": "JWT", "server.device_claims": False}
_CLIENT = _ASSERTION | {"server.grant": "client_credentials", "server.client_auth": "private_key_jwt"}

PRESETS: Mapping[str, Values] = {
    "pi-fleet": {},
    "keycloak": _CLIENT,
    "hydra": _CLIENT | {"server.assertion_audience": "token_endpoint", "server.audience_parameter": "audience"},
    "zitadel": _ASSERTION,
    "authentik": _CLIENT | {"server.client_id_parameter": True, "server.discovery": "oidc"},
    "auth0": _CLIENT | {"server.audience_parameter": "audience", "server.discovery": "oidc", "key.algorithm": "RS256"},
    "okta": _CLIENT | {"server.assertion_audience": "token_endpoint"},
    "entra": _CLIENT
    | {
        "server.assertion_audience": "token_endpoint",
        "server.audience_parameter": "none",
        "server.client_id_parameter": True,
        "server.discovery": "oidc",
        "key.algorithm": "PS256",
    },
    "google": _ASSERTION
    | {
        "server.assertion_audience": "token_endpoint",
        "server.audience_parameter": "none",
        "server.scope_in": "assertion",
        "server.token_endpoint": "https://oauth2.googleapis.com/token",
        "key.algorithm": "RS256",
    },
    "oidc-provider": _CLIENT,
    "glewlwyd": _CLIENT
    | {"server.assertion_audience": "token_endpoint", "server.client_id_parameter": True, "server.discovery": "oidc"},
}
