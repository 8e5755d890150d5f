"""django-oauth-toolkit as an authorization server for a fleet: its own token view and models, with a JWT-bearer grant added.

DOT_PORT=8000 DOT_DATABASE=x.sqlite3 python dot.py, and then gunicorn --threads 4 dot:wsgi
"""

from __future__ import annotations

import json
import os
import secrets
import time

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings

GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
PORT, DATABASE = os.environ["DOT_PORT"], os.environ["DOT_DATABASE"]
ISSUER = f"http://127.0.0.1:{PORT}"
KEY = ec.generate_private_key(ec.SECP256R1())

settings.configure(
    SECRET_KEY="bench",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="dot",
    USE_TZ=True,
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "oauth2_provider"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATABASE,
            "CONN_MAX_AGE": None,
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
            },
        }
    },
    OAUTH2_PROVIDER={
        "OAUTH2_SERVER_CLASS": "dot.Server",
        "ACCESS_TOKEN_GENERATOR": "dot.access_token",
        "SCOPES": {"device": ""},
    },
)

import django  # noqa: E402

django.setup()

from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.urls import path  # noqa: E402
from oauth2_provider.models import Application  # noqa: E402
from oauth2_provider.views import TokenView  # noqa: E402
from oauthlib.oauth2 import Server as BaseServer  # noqa: E402
from oauthlib.oauth2.rfc6749 import errors  # noqa: E402
from oauthlib.oauth2.rfc6749.grant_types.base import GrantTypeBase  # noqa: E402


def access_token(request, refresh_token=False):  # type: ignore[no-untyped-def]  # as oauthlib calls it
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": ISSUER,
        "sub": request.device,
        "client_id": request.device,
        "iat": now,
        "exp": now + 1800,
    }
    return jwt.encode(
        claims | {"jti": secrets.token_urlsafe(16), "scope": "device"}, KEY, "ES256", {"typ": "at+jwt", "kid": "k1"}
    )


class JwtBearerGrant(GrantTypeBase):
    def create_token_response(self, request, token_handler):  # type: ignore[no-untyped-def]  # the same
        headers = self._get_default_headers()
        try:
            request.device = self.authenticate(request.assertion)
        except (errors.OAuth2Error, jwt.PyJWTError) as error:
            return headers, json.dumps({"error": "invalid_grant", "error_description": str(error)}), 400
        request.client, request.user, request.scopes = application(), None, ["device"]
        token = token_handler.create_token(request, refresh_token=False)
        self.request_validator.save_token(token, request)
        return headers, json.dumps(token), 200

    def authenticate(self, assertion):  # type: ignore[no-untyped-def]  # the same
        device = jwt.decode(assertion, options={"verify_signature": False})["iss"]
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT payload FROM client WHERE id = %s", [device])
            row = cursor.fetchone()
            if row is None:
                raise errors.InvalidGrantError("unknown")
            key = jwt.PyJWK(json.loads(row[0])["jwks"]["keys"][0])
            require = ["exp", "iat", "jti", "iss", "aud", "sub"]
            claims = jwt.decode(
                assertion, key, algorithms=["ES256"], audience=ISSUER, issuer=device, options={"require": require}
            )
            cursor.execute(
                "INSERT INTO used VALUES (%s, %s) ON CONFLICT DO NOTHING", [f"{device}:{claims['jti']}", claims["exp"]]
            )
            if cursor.rowcount != 1:
                raise errors.InvalidGrantError("replayed")
            cursor.execute("UPDATE client SET last_seen = %s WHERE id = %s", [int(time.time()), device])
        return device


_application = []


def application():  # type: ignore[no-untyped-def]  # the same
    if not _application:
        _application.append(Application.objects.get())
    return _application[0]


class Server(BaseServer):
    def __init__(self, request_validator, *args, **kwargs):  # type: ignore[no-untyped-def]  # the same
        super().__init__(request_validator, *args, **kwargs)
        self._grant_types[GRANT] = JwtBearerGrant(request_validator)


urlpatterns = [path("oauth/token", TokenView.as_view())]

wsgi = get_wsgi_application()

if __name__ == "__main__":
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS used (id TEXT PRIMARY KEY, expires INTEGER) WITHOUT ROWID")
    Application.objects.get_or_create(name="fleet", client_type="public", authorization_grant_type="client-credentials")
