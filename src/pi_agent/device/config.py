"""The agent's settings: from flags, then ``PI_AGENT_*``, then ``config.d/*.toml``, then the TOML file, then the preset
of the server, then what is built in.

One table names every setting once; the dataclass, the reader, the variables and the file follow it. Every value knows
where it came from. An unknown key is an error that names the nearest one, with file and line.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from pi_agent.device.presets import PRESETS
from pi_agent.device.toml_file import RULES, Found, read_all
from pi_agent.device.urls import check_url
from pi_agent.errors import ConfigError

DEFAULT_CONFIG = "/etc/pi-agent/config.toml"
BUILT_IN = "built in"


@dataclass(frozen=True, slots=True)
class Setting:
    """``name`` as in the file (``table.key``); the variable is ``PI_AGENT_`` and the same name in capitals."""

    name: str
    default: str | int | bool
    help: str
    choices: tuple[str, ...] = ()

    @property
    def attribute(self) -> str:
        return self.name.replace(".", "_")

    @property
    def variable(self) -> str:
        return "PI_AGENT_" + self.attribute.upper()


SETTINGS = (
    Setting("state", "/var/lib/pi-agent", "folder of the key and the identity"),
    Setting("runtime", "/run/pi-agent", "folder of the socket (memory, not the card)"),
    Setting("root", "/", "where /proc is read; another folder replays a recorded board"),
    Setting(
        "name",
        "",
        "what people call this board, shown to operators; without it the host name, unless that is the image's",
    ),
    Setting("server.issuer", "", "the authorization server's issuer identifier (an https URL)"),
    Setting("server.preset", "pi-fleet", "the kind of server; gives the other settings their values", tuple(PRESETS)),
    Setting("server.ca_file", "", "one CA file to trust instead of the system's bundle"),
    Setting("server.proxy", "", "an http:// or https:// proxy for https servers; the environment's is never used"),
    Setting("server.loopback_http", False, "allow plain http to 127.0.0.0/8 and ::1, for trying things out"),
    Setting("server.discovery", "both", "which metadata is asked for", ("both", "oauth", "oidc")),
    Setting("server.token_endpoint", "", "token endpoint; wins over the server's metadata"),
    Setting("server.revocation_endpoint", "", "revocation endpoint (RFC 7009); wins over the server's metadata"),
    Setting("server.grant", "jwt-bearer", "how a token is asked for", ("jwt-bearer", "client_credentials")),
    Setting(
        "server.client_auth",
        "none",
        "how the client authenticates",
        ("none", "private_key_jwt", "client_secret_basic", "client_secret_post"),
    ),
    Setting("server.client_id", "", "our name at a server where nobody enrolls; else enrollment gives it"),
    Setting("server.client_id_parameter", False, "send client_id as a parameter, too"),
    Setting("server.client_secret_file", "", "file of mode 0600 with the client secret"),
    Setting("server.subject", "", "sub of the grant assertion, where it is not the client"),
    Setting("server.assertion_audience", "issuer", "aud of assertions: issuer, token_endpoint, or any text"),
    Setting("server.assertion_type", "", 'typ of assertions; "" is our own type, other servers want JWT'),
    Setting("server.device_claims", True, "tell the server about the board, this boot and the agent"),
    Setting("server.key_id", "", "kid of assertions, where it is not the key's thumbprint"),
    Setting(
        "server.certificate_file", "", "certificate whose x5t#S256 goes into assertions, where a server wants that"
    ),
    Setting(
        "server.audience_parameter",
        "resource",
        "the parameter that names the audience",
        ("resource", "audience", "none"),
    ),
    Setting("server.scope_in", "form", "where the scope goes", ("form", "assertion")),
    Setting("token.scope", "", "scopes to ask for, separated by spaces"),
    Setting("token.resource", "", "the audience the token is for, where the server wants one (RFC 8707)"),
    Setting("token.assertion_lifetime", 60, "seconds an assertion is good for (10 to 300)"),
    Setting("token.spread", 60, "seconds over which a fleet's first requests after boot are spread"),
    Setting("local.group", "", "group that may use the socket, and read the token file"),
    Setting("sinks.token_file", "", "file below /run that always holds the current token"),
    Setting("sinks.environment_file", "", "file below /run with PI_AGENT_TOKEN=, for EnvironmentFile="),
    Setting("sinks.hooks", "", "folder with on-token.d, on-refused.d, on-failed.d and on-pending.d"),
    Setting("key.store", "file", "where a new key is: file, credential, firmware, firmware:SLOT or a pkcs11: URI"),
    Setting("key.algorithm", "ES256", "algorithm of a new key", ("ES256", "EdDSA", "RS256", "PS256")),
)
_BY_NAME = {setting.name: setting for setting in SETTINGS}

RANGES = {"token.assertion_lifetime": (10, 300), "token.spread": (0, 3600)}


@dataclass(frozen=True, slots=True)
class AllowRule:
    """One ``[[local.allow]]`` table; ``label`` says where it stands."""

    label: str
    user: str
    group: str
    audiences: tuple[str, ...]
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, checked. ``config`` is the file that was read (it need not exist).

    ``origins`` says of each setting where its value came from.
    """

    config: Path
    state: Path
    runtime: Path
    root: Path
    name: str
    server_issuer: str
    server_preset: str
    server_ca_file: str
    server_proxy: str
    server_loopback_http: bool
    server_discovery: str
    server_token_endpoint: str
    server_revocation_endpoint: str
    server_grant: str
    server_client_auth: str
    server_client_id: str
    server_client_id_parameter: bool
    server_client_secret_file: str
    server_subject: str
    server_assertion_audience: str
    server_assertion_type: str
    server_device_claims: bool
    server_key_id: str
    server_certificate_file: str
    server_audience_parameter: str
    server_scope_in: str
    token_scope: str
    token_resource: str
    token_assertion_lifetime: int
    token_spread: int
    local_group: str
    sinks_token_file: str
    sinks_environment_file: str
    sinks_hooks: str
    key_store: str
    key_algorithm: str
    allow: tuple[AllowRule, ...] = ()
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)


def load(flags: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in force. ``flags`` maps names to values given on the command line (None: not given).

    Raises ConfigError naming the file or variable, the key, and what was expected.
    """
    path = Path(flags.get("config") or environ.get("PI_AGENT_CONFIG") or DEFAULT_CONFIG)
    in_files, rules = read_all(path, _BY_NAME, required=bool(flags.get("config")))
    given = {setting.name: _given(setting, flags, environ, in_files) for setting in SETTINGS}
    values: dict[str, Any] = {}
    preset = given["server.preset"].value
    for setting in SETTINGS:
        found = given[setting.name]
        if found.origin == BUILT_IN and setting.name in PRESETS[preset]:
            given[setting.name] = found = Found(PRESETS[preset][setting.name], f"preset {preset}")
        values[setting.attribute] = found.value
    for name in ("state", "runtime", "root"):
        values[name] = Path(values[name]).absolute()
    origins = {name: found.origin for name, found in given.items()}
    settings = Settings(config=path, allow=tuple(map(_rule, rules)), origins=origins, **values)
    _check(settings)
    return settings


def _given(
    setting: Setting, flags: Mapping[str, Any], environ: Mapping[str, str], in_files: Mapping[str, Found]
) -> Found:
    found = Found(setting.default, BUILT_IN)
    if setting.name in in_files:  # looked at even where something else wins: it would be in force tomorrow
        found = in_files[setting.name]
        found = Found(_value(setting, found.value, found.origin), found.origin)
    if (variable := environ.get(setting.variable)) is not None:
        found = Found(_value(setting, variable, setting.variable), setting.variable)
    if (flag := flags.get(setting.attribute)) is not None:
        found = Found(_value(setting, flag, "the command line"), "the command line")
    return found


def _value(setting: Setting, value: Any, origin: str) -> str | int | bool:
    wanted = type(setting.default)
    if isinstance(value, str) and wanted is bool and value.lower() in ("true", "1", "yes", "false", "0", "no"):
        return value.lower() in ("true", "1", "yes")
    if isinstance(value, str) and wanted is int and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    if isinstance(value, Path) and wanted is str:
        return str(value)
    if type(value) is not wanted:
        kind = {str: "text", int: "a whole number", bool: "true or false"}[wanted]
        raise ConfigError(f"{setting.name} in {origin} must be {kind}", path=origin, key=setting.name)
    if setting.choices and value not in setting.choices:
        choices = ", ".join(setting.choices)
        raise ConfigError(f"{setting.name} in {origin} must be one of {choices}", path=origin, key=setting.name)
    assert isinstance(value, str | int | bool)
    low, high = RANGES.get(setting.name, (0, 0))
    if high and not low <= int(value) <= high:
        raise ConfigError(f"{setting.name} in {origin} must be {low} to {high}", path=origin, key=setting.name)
    return value


def _rule(found: Found) -> AllowRule:
    """Raises ConfigError for a value of another kind, or with white space in a name."""
    values: dict[str, Any] = {"user": "", "group": "", "audiences": [], "scopes": []} | found.value
    for name in ("user", "group"):
        if not isinstance(values[name], str):
            raise ConfigError(f"{found.origin}: {name} must be text", path=found.origin, key=f"{RULES}.{name}")
    for name in ("audiences", "scopes"):
        value = values[name]
        if not isinstance(value, list) or not all(
            isinstance(word, str) and word.isprintable() and word.split() == [word] for word in value
        ):
            raise ConfigError(
                f"{found.origin}: {name} must be a list of names without spaces",
                path=found.origin,
                key=f"{RULES}.{name}",
            )
    label = f"rule {found.origin}"
    if not label.isprintable():
        raise ConfigError(
            f"{found.origin!r}: the file's name holds characters that cannot be printed", path=found.origin
        )
    return AllowRule(label, values["user"], values["group"], tuple(values["audiences"]), tuple(values["scopes"]))


def _check(settings: Settings) -> None:
    for name in ("server_issuer", "server_token_endpoint", "server_revocation_endpoint"):
        if url := getattr(settings, name):
            check_url(url, loopback_http=settings.server_loopback_http, what=name.replace("_", ".", 1))
    if settings.server_client_auth.startswith("client_secret") and not settings.server_client_secret_file:
        raise ConfigError(
            f"{settings.server_client_auth} needs server.client_secret_file",
            path=settings.origins["server.client_auth"],
            key="server.client_secret_file",
        )
    if settings.server_grant == "client_credentials" and settings.server_client_auth == "none":
        raise ConfigError(
            "client_credentials needs a client that authenticates",
            path=settings.origins["server.grant"],
            key="server.client_auth",
            hint='server.client_auth = "private_key_jwt"',
        )
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, str | Path) and not str(value).isprintable():
            key = each.name.replace("_", ".", 1)
            raise ConfigError(f"{key} holds characters that cannot be printed", path=settings.origins[key], key=key)
