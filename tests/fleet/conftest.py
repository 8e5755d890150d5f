"""One fleet for all tests of a run, since Django can be set up once in a process. Each test begins with empty tables.

It is on SQLite, or on the PostgreSQL whose URL is in ``PI_FLEET_TESTS_DATABASE`` (``issuing/test_two_servers.py`` sets it).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fleet.browser import Browser, link, take
from fleet.support import ISSUER, Pi, register
from pi_agent.fleet import folder, settings

_FOLDER = tempfile.TemporaryDirectory(prefix="fleet-")  # before the tests are read, since they import the models
SETTINGS = settings.Settings(
    data=Path(_FOLDER.name),
    issuer=ISSUER,
    rate_limit=False,
    busy_timeout=0.2,
    database_url=os.environ.get("PI_FLEET_TESTS_DATABASE", ""),
)
folder.prepare(SETTINGS.data)
settings.configure(SETTINGS)

from pi_agent.fleet import models  # noqa: E402  # Django had to be set up first
from pi_agent.fleet.asgi import Application  # noqa: E402  # the same
from pi_agent.fleet.tokens import Authority, load_authority  # noqa: E402  # the same


@pytest.fixture(scope="session")
def authority(django_db_blocker: Any) -> Iterator[Authority]:
    """The authority over a migrated database. pytest-django guards the database when it was in time to see it."""
    with django_db_blocker.unblock() if django_db_blocker else nullcontext():
        settings.migrate()
        yield load_authority(SETTINGS, now=int(time.time()))
    _FOLDER.cleanup()


@pytest.fixture(scope="session")
def shared_app(authority: Authority) -> Iterator[Application]:
    application = Application(authority)
    yield application
    application.close()


@pytest.fixture
def app(shared_app: Application) -> Application:
    """The application on an empty registry; its signing keys stay."""
    from django.contrib.auth.models import User
    from django.contrib.sessions.models import Session

    for model in (
        models.Device, models.EnrollmentToken, models.UsedAssertion, models.AuditEvent, models.SignInLink,
        models.Operator, models.View, models.Webhook, models.RememberedAnswer, User, Session,
    ):  # fmt: skip
        model._default_manager.all().delete()
    return shared_app


@pytest.fixture
def pi(app: Application) -> Pi:
    """An approved device."""
    return approve(app, Pi())


def approve(app: Application, pi: Pi) -> Pi:
    assert register(app, pi).status == 201
    models.Device.objects.filter(client_id=pi.client_id).update(status="approved")
    return pi


@pytest.fixture
def browser(app: Application) -> Browser:
    """A browser in which alice is signed in."""
    browser = Browser(app)
    assert take(browser, link(app)).status == 302
    return browser
