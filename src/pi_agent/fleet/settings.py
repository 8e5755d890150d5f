"""What an operator can set, and Django set up from it.

A setting is taken from the first place that has it: the command line, the environment (``PI_FLEET_ISSUER``), the file
``DATA/fleet.toml``, the default. A ``Settings`` that exists is valid. Everything the fleet keeps lies below ``data``,
a folder that only its owner can enter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pi_agent.catalogue import nearest
from pi_agent.errors import ConfigError
from pi_agent.fleet.options import LOOPBACK, OPTIONS
from pi_agent.fleet.place import SOCKET, default_data

ENVIRONMENT = "PI_FLEET_"
LOOPBACK_ADDRESSES = ("127.0.0.1", "::1")
DATABASE_URL = "DATABASE_URL"  # where hosting platforms put it
KEY_SECRET_CREDENTIAL = "pi-fleet-key-secret"  # noqa: S105  # the name of a systemd credential


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; what each means stands in ``options.OPTIONS``.

    ``issuer`` is empty until ``with_port`` has seen which port was bound.
    """

    data: Path
    bind: str = "127.0.0.1:8080"
    issuer: str = ""
    audience: str = ""
    scopes: str = "device"
    token_lifetime: int = 1800
    database_url: str = field(default="", repr=False)
    busy_timeout: float = 5.0
    key_days: int = 90
    key_secret: str = field(default="", repr=False)
    device_key_days: int = 365
    clone_policy: str = "alarm"
    rate_limit: bool = True
    request_rate: float = 500
    request_burst: int = 2000
    device_rate: float = 1
    device_burst: int = 60
    registration_rate: float = 2
    registration_burst: int = 200
    trusted_proxy: tuple[str, ...] = ()
    tls_cert: Path | None = None
    tls_key: Path | None = None
    max_connections: int = 10_000
    address_connections: int = 2_000
    header_seconds: float = 10
    body_seconds: float = 20
    idle_seconds: float = 20
    log: str = "text"

    @property
    def host(self) -> str:
        return self.bind.rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.bind.rpartition(":")[2])

    @property
    def database(self) -> Path:
        return self.data / "fleet.sqlite3"

    @property
    def shares_database(self) -> bool:
        """Whether other servers may work with the same database."""
        return bool(self.database_url)

    @property
    def behind_proxy(self) -> bool:
        """Whether somebody else speaks TLS for this server, so that every peer may be a proxy on this machine."""
        return self.issuer.startswith("https:") and self.tls_cert is None

    @property
    def database_name(self) -> str:
        """The database as it may be shown, and given to ``psql``: without a password."""
        if not self.database_url:
            return str(self.database)
        parts = urlsplit(self.database_url)
        user, at, place = parts.netloc.rpartition("@")
        query = urlencode([pair for pair in parse_qsl(parts.query) if "password" not in pair[0]], safe="/,")
        return f"postgresql://{user.partition(':')[0]}{at}{place}{parts.path}{'?' if query else ''}{query}"

    @property
    def socket(self) -> Path:
        return self.data / SOCKET

    @property
    def lock(self) -> Path:
        return self.data / "fleet.lock"

    @property
    def token_audience(self) -> str:
        return self.audience or self.issuer

    def with_port(self, port: int) -> Settings:
        """These settings once ``port`` is bound: on loopback the issuer may be left to us. Raises ConfigError."""
        bound = replace(self, bind=f"{self.host}:{port}")
        if bound.issuer:
            return bound
        if self.host not in LOOPBACK or self.tls_cert:
            raise ConfigError(
                f"the server listens on {self.host}, so devices need its name",
                key="issuer",
                hint="pi-fleet serve --issuer https://fleet.example.org (the address in front of it, with TLS)",
            )
        return replace(bound, issuer=f"http://{self.host}:{port}")


def setup_command(issuer: str) -> str:
    """What to type on a device so that it enrolls here."""
    return f"sudo pi-agent setup {issuer}{' --loopback-http' if issuer.startswith('http:') else ''}"


def load(flags: Mapping[str, Any], environ: Mapping[str, str], *, config: Path | None = None) -> Settings:
    """The settings in force. ``flags`` holds what the command line said, None where it said nothing.

    ``config`` replaces ``DATA/fleet.toml`` and must exist. Raises ConfigError naming the place and the setting.
    """
    data = flags.get("data") or default_data(environ)
    path = config or Path(data) / "fleet.toml"
    places = [
        ("the command line", {name: value for name, value in flags.items() if name in OPTIONS and value is not None}),
        ("the environment", _from_environment(environ)),
        (str(path), _from_file(path, required=config is not None)),
        ("the systemd credential", _from_credential(environ)),
    ]
    found: dict[str, Any] = {}
    for place, values in places:
        found = {name: _parse(place, name, value) for name, value in values.items()} | found
    return Settings(data=Path(data).absolute(), **found)


def configure(settings: Settings) -> None:
    """Set Django up for this fleet; once in the life of a process. The data folder must be prepared."""
    import logging  # a command that only talks to a server must not pay for what the server needs

    import django  # the same
    from django.conf import settings as django_settings  # the same

    # One line for every stranger's mistake would fill a disk; what is our own fault is still told, with a traceback.
    logging.getLogger("django.request").setLevel(logging.ERROR)
    logging.getLogger("django.security").setLevel(logging.CRITICAL)
    django_settings.configure(**_django(settings), PI_FLEET=settings)
    django.setup()


def migrate() -> None:
    """Bring the database to this version of the program. Raises ConfigError or TransportError."""
    from pi_agent.fleet import database  # as above

    database.migrate(current())


def current() -> Settings:
    """The settings that ``configure`` was given."""
    from django.conf import settings as django_settings  # as above

    settings: Settings = django_settings.PI_FLEET
    return settings


def _django(settings: Settings) -> dict[str, Any]:
    from pi_agent.fleet import folder  # as above
    from pi_agent.fleet.database import database_settings  # it needs the Settings of this file

    issuer = urlsplit(settings.issuer)
    secure = issuer.scheme == "https"
    prefix = "__Host-" if secure else ""
    return {
        "SECRET_KEY": folder.secret(settings.data, "django").hex(),
        "DEBUG": False,
        "ALLOWED_HOSTS": [*LOOPBACK, *filter(None, [issuer.hostname])],
        "CSRF_TRUSTED_ORIGINS": [settings.issuer] if secure else [],
        "DATABASES": {"default": database_settings(settings)},
        "INSTALLED_APPS": [
            "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions", "pi_agent.fleet",
        ],
        "MIDDLEWARE": [
            "django.middleware.security.SecurityMiddleware",
            "pi_agent.fleet.pages.headers.security_headers",
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.middleware.common.CommonMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "pi_agent.fleet.rest.methods.methods",
        ],
        "ROOT_URLCONF": "pi_agent.fleet.urls",
        "TEMPLATES": [
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "DIRS": [Path(__file__).parent / "pages" / "templates"],
                "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
            }
        ],
        "CSRF_FAILURE_VIEW": "pi_agent.fleet.pages.views.forbidden",
        "LOGGING_CONFIG": None,
        "USE_TZ": True,
        "APPEND_SLASH": False,
        "SECURE_REFERRER_POLICY": "same-origin",
        "SESSION_COOKIE_NAME": f"{prefix}pi-fleet-session",
        "SESSION_COOKIE_SECURE": secure,
        "SESSION_COOKIE_SAMESITE": "Strict",
        "SESSION_COOKIE_AGE": 12 * 3600,
        "CSRF_COOKIE_NAME": f"{prefix}pi-fleet-csrf",
        "CSRF_COOKIE_SECURE": secure,
        "CSRF_COOKIE_HTTPONLY": True,
        "CSRF_COOKIE_SAMESITE": "Strict",
        "DATA_UPLOAD_MAX_MEMORY_SIZE": 64 * 1024,
        "DATA_UPLOAD_MAX_NUMBER_FIELDS": 200,  # a page has 50 devices; it is read before it is known who sends it
        "LOGIN_URL": "/sign-in",
    }  # fmt: skip


assert {field.name for field in fields(Settings)} == {"data", *OPTIONS}


def _parse(place: str, name: str, value: Any) -> Any:
    if name not in OPTIONS:
        near = nearest(name, OPTIONS)
        hint = f"did you mean {near}?" if near else f"the settings are {', '.join(OPTIONS)}"
        raise ConfigError(f"{place}: there is no setting {name!r}", path=place, key=name, hint=hint)
    try:
        return OPTIONS[name].read(value)
    except ValueError as error:
        raise ConfigError(f"{place}: {name} must be {error}", path=place, key=name) from error


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    named = {
        name.removeprefix(ENVIRONMENT).lower(): value for name, value in environ.items() if name.startswith(ENVIRONMENT)
    }
    found = {name: value for name, value in named.items() if name != "data" and value}
    return ({"database_url": environ[DATABASE_URL]} if environ.get(DATABASE_URL) else {}) | found


def _from_credential(environ: Mapping[str, str]) -> dict[str, Any]:
    """The secret that systemd hands over (LoadCredential=pi-fleet-key-secret:..., systemd.exec(5)).

    Raises ConfigError for one that cannot be read: whoever has set it believes that it seals the keys.
    """
    path = Path(environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / KEY_SECRET_CREDENTIAL
    try:
        return {"key_secret": path.read_text("utf-8").strip()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        hint = f"openssl rand -hex 32 | systemd-creds encrypt --name={KEY_SECRET_CREDENTIAL} - FILE"
        raise ConfigError(
            f"cannot read the systemd credential {KEY_SECRET_CREDENTIAL}: {why}", path=str(path), hint=hint
        ) from error


def _from_file(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        if required:
            raise ConfigError(f"there is no file {path}", path=str(path)) from error
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except UnicodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", path=str(path)) from error
    import tomllib  # most commands have no file to read

    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}", path=str(path)) from error
