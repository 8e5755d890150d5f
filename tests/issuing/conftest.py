"""Servers in processes of their own, on each of the two databases, and the fleet of ``fleet.conftest`` for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.conftest import app as fleet_app  # noqa: F401  # a fixture
from fleet.conftest import authority, pi, shared_app  # noqa: F401  # fixtures
from fleet.live import LiveFleet
from issuing.cluster import Cluster, missing
from pi_agent.fleet import models
from pi_agent.fleet.asgi import Application


@pytest.fixture
def app(fleet_app: Application) -> Application:  # noqa: F811  # the fixture of that name, with more tables emptied
    for model in (models.AccessRule, models.ResourceServer, models.RevokedToken):
        model.objects.all().delete()
    return fleet_app


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A real PostgreSQL."""
    if why := missing():
        pytest.skip(why)
    found = Cluster()
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """The URL of a database with no row in its tables; none for SQLite."""
    if request.param == "sqlite":
        return ""
    found: Cluster = request.getfixturevalue("cluster")
    return found.database()


def start(data: Path, database: str, *options: str, bind: str = "127.0.0.1:0") -> LiveFleet:
    """A server on that database."""
    more = ["--database", database] if database else []
    return LiveFleet(data, "--no-rate-limit", *more, *options, bind=bind)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveFleet]:
    """One server on SQLite for the tests of a file, one of which may end it."""
    found = start(tmp_path_factory.mktemp("server") / "data", "")
    yield found
    if found.process.poll() is None:
        found.stop()


@pytest.fixture
def live(tmp_path: Path, database: str) -> Iterator[LiveFleet]:
    """A server, on each database in turn."""
    server = start(tmp_path / "data", database)
    yield server
    if server.process.poll() is None:
        server.stop()
