"""Registries for tests: SQLite files, and databases of one PostgreSQL server for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from qvpn_server.registry import Registry
from tests.unit.server import postgres

_NUMBERS = count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A URL with a place for the database's name."""
    if reason := postgres.unavailable():
        pytest.skip(reason)
    with postgres.server() as url:
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A fresh SQLite registry, to be copied: quicker than making one for each test."""
    path = tmp_path_factory.mktemp("template") / "registry.sqlite3"
    Registry.open(path).close()
    return path.read_bytes()


@pytest.fixture(scope="session")
def migrated_server(postgres_server: str) -> str:
    """The server's URL, with a fresh registry to be copied in the database `template`."""
    Registry.open(new_database(postgres_server, "template")).close()
    return postgres_server


def new_database(server: str, name: str, template: str = "template1") -> str:
    """Create a database as a copy of another one; returns its URL."""
    import psycopg
    from psycopg.sql import SQL, Identifier

    address = server.format("postgres").replace("+psycopg", "", 1)
    command = SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template))
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(command)
    return server.format(name)


@pytest.fixture
def empty_postgres(postgres_server: str) -> str:
    """The URL of an empty database."""
    return new_database(postgres_server, f"empty{next(_NUMBERS)}")


@pytest.fixture
def postgres_url(migrated_server: str) -> str:
    """The URL of a fresh registry."""
    return new_database(migrated_server, f"test{next(_NUMBERS)}", "template")


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a fresh registry is, in either kind of database."""
    if request.param == "sqlite":
        path = tmp_path / "registry.sqlite3"
        path.touch(0o600)
        path.write_bytes(request.getfixturevalue("migrated_file"))
        return path
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def registry(where: Path | str) -> Iterator[Registry]:
    """A fresh registry."""
    with Registry.open(where) as opened:
        yield opened
