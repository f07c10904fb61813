"""Databases for the coordinator's state: a SQLite file, and a PostgreSQL server started here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from postgresql_server import PostgreSQL, running, server_programs

_NUMBERS = count()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = server_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    with running(programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of a new database at every call."""
    if request.param == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        return server.fresh
    return lambda: f"sqlite:///{tmp_path}/state{next(_NUMBERS)}.db"


@pytest.fixture
def url(fresh_url: Callable[[], str]) -> str:
    """The URL of a new database."""
    return fresh_url()
