"""One fleet for all tests of a run: Django can be set up once in a process. Each test begins with empty tables."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from fleet.support import ISSUER, Pi, register
from pi_agent.fleet import folder, settings

if TYPE_CHECKING:
    from pi_agent.fleet.asgi import Application
    from pi_agent.fleet.tokens import Authority


@pytest.fixture(scope="session")
def fleet_settings(tmp_path_factory: pytest.TempPathFactory) -> settings.Settings:
    """Settings of the fleet under test, with Django set up and the database migrated."""
    data = tmp_path_factory.mktemp("fleet", numbered=True)
    chosen = settings.Settings(data=data, issuer=ISSUER, rate_limit=False, busy_timeout=0.2)
    folder.prepare(data)
    settings.configure(chosen)
    settings.migrate()
    return chosen


@pytest.fixture(scope="session")
def authority(fleet_settings: settings.Settings) -> Authority:
    from pi_agent.fleet.tokens import load_authority  # models exist only once Django is set up

    return load_authority(fleet_settings, now=int(time.time()))


@pytest.fixture(scope="session")
def shared_app(authority: Authority) -> Iterator[Application]:
    from pi_agent.fleet.asgi import Application

    application = Application(authority)
    yield application
    application.close()


@pytest.fixture
def app(shared_app: Application) -> Application:
    """The application on an empty registry; its signing keys stay."""
    from django.contrib.auth.models import User
    from django.contrib.sessions.models import Session

    from pi_agent.fleet import models

    for model in (
        models.Device, models.EnrollmentToken, models.UsedAssertion, models.AuditEvent, models.SignInLink, User, Session,
    ):  # fmt: skip
        model.objects.all().delete()
    return shared_app


@pytest.fixture
def pi(app: Application) -> Pi:
    """An approved device."""
    return approved(app)


def approved(app: Any, **more: Any) -> Pi:
    from pi_agent.fleet.models import Device

    pi = Pi(**more)
    assert register(app, pi).status == 201
    Device.objects.filter(client_id=pi.client_id).update(status="approved")
    return pi
