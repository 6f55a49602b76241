"""One database, SQLite or PostgreSQL, as the registry needs it: opened, migrated, in transactions.

A writer has the database to itself, in either kind: SQLite's BEGIN IMMEDIATE, PostgreSQL's advisory
lock. So what a transaction has read stays true until it commits, and no caller retries. Every wait
is bounded, since a gateway's event loop waits with us. Whatever the database says against it
becomes a RegistryUnavailable of one line; passwords do not get into it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from qvpn_core.errors import UsageError
from qvpn_server.config import REGISTRY_SCHEME
from qvpn_server.registry.records import RegistryUnavailable

#: Migrations in order; the last one is what this program works with.
REVISIONS = ("0001", "0002", "0003")

#: Seconds to wait for another process's transaction. The packet path waits with us.
_BUSY_TIMEOUT = 2.0
_CONNECT_TIMEOUT = 3
_STATEMENT_TIMEOUT = 2000  # milliseconds
#: Seconds for which a server that did not answer is not asked again.
_PAUSE = 2.0
#: Of PostgreSQL's advisory locks, those that writers of a qvpn registry take: "qvpn" in ASCII.
_WRITERS = 0x7176706E

_WRITE = "qvpn_write"


class Database:
    """An open database of the newest schema. Make one with :meth:`open`."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._down: tuple[float, RegistryUnavailable] | None = None

    @classmethod
    def open(cls, where: Path | str) -> Self:
        """Open a SQLite file (created when missing) or the PostgreSQL database of a URL, migrated.

        Raises UsageError for a URL that is none of ours, RegistryUnavailable otherwise.
        """
        if isinstance(where, Path):
            url, name = URL.create("sqlite", database=str(where)), str(where)
        else:
            url = _parse(where)
            name = f"{url.database} on {url.host or url.query.get('host') or 'this host'}"
        database = cls(_engine(url), name)
        try:
            if isinstance(where, Path):
                with database._translated():
                    _create(where)
            with database.transaction() as connection:
                revision = _revision(connection)
            if revision != REVISIONS[-1]:
                database._migrate(url)
        except BaseException:
            database.close()
            raise
        return database

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._engine.dispose()

    @property
    def shared(self) -> bool:
        """Whether other gateways may use it at the same time."""
        return self._engine.dialect.name == "postgresql"

    @contextmanager
    def transaction(self, *, write: bool = False) -> Iterator[Connection]:
        """One transaction, committed at the end, rolled back by an exception.

        While a server is down only one caller in `_PAUSE` seconds waits for it; with strangers'
        requests, a gateway would do nothing else.
        """
        if self._down is not None:
            until, error = self._down
            if time.monotonic() < until:
                raise RegistryUnavailable(error.what, error.hint)
            self._down = None
        with self._translated():
            with self._engine.connect() as fresh:
                connection = fresh.execution_options(**{_WRITE: write})
                with connection.begin():
                    if write and self.shared:
                        connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITERS})"))
                    yield connection

    def _migrate(self, url: URL) -> None:
        # Alembic is some ten megabytes that a gateway does not need on other days.
        from qvpn_server.registry.migrations.run import upgrade

        # A database of its own: what a migration does to foreign keys must not outlive it.
        engine = _engine(url, foreign_keys=False)
        migrating = Database(engine, self._name)
        try:
            with migrating.transaction(write=True) as connection:
                revision = _revision(connection)  # another process may have been quicker
                if revision is not None and revision not in REVISIONS:
                    raise RegistryUnavailable(
                        f"the registry {self._name} was written by a newer qvpn-server",
                        "upgrade this one, or restore a backup",
                    )
                if revision != REVISIONS[-1]:
                    upgrade(connection, revision)
        finally:
            migrating.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, OSError) as error:
            cause = error.orig if isinstance(error, DBAPIError) else error
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            hint = (
                "check that PostgreSQL runs, and the registry's URL in gateway.toml"
                if self.shared
                else "check the state directory's free space, owner and permissions"
            )
            if "locked" in lines[0]:
                hint = "another program holds it; try again when that has ended"
            failure = RegistryUnavailable(f"cannot use the registry {self._name}: {lines[0]}", hint)
            if self.shared and isinstance(error, DBAPIError):
                if error.connection_invalidated or error.statement is None:
                    self._down = time.monotonic() + _PAUSE, failure
            raise failure from error


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        url = None
    if url is None or url.drivername != REGISTRY_SCHEME:
        raise UsageError("that is not the URL of a registry", "correct it in gateway.toml")
    return url


def _engine(url: URL, *, foreign_keys: bool = True) -> Engine:
    if url.drivername == REGISTRY_SCHEME:
        try:
            return create_engine(
                url,
                pool_size=1,
                max_overflow=1,  # the gateway's watch for changes has a thread of its own
                pool_pre_ping=True,  # the server may have been restarted
                hide_parameters=True,
                connect_args={
                    "connect_timeout": _CONNECT_TIMEOUT,
                    "tcp_user_timeout": _STATEMENT_TIMEOUT,
                    "options": f"-c statement_timeout={_STATEMENT_TIMEOUT}",
                },
            )
        except ImportError:
            raise UsageError(
                "this qvpn-server has no driver for PostgreSQL", "install psycopg, version 3"
            ) from None
    engine = create_engine(
        url, pool_size=1, hide_parameters=True, connect_args={"timeout": _BUSY_TIMEOUT}
    )

    # Transactions are ours, not those that Python's sqlite3 begins when it sees fit.
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if foreign_keys:
            connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A reader waits for nobody and sees one state throughout.
        write = connection.get_execution_options().get(_WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")

    return engine


def _create(path: Path) -> None:
    """A file for its owner only; SQLite would create it with the umask's mode."""
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _revision(connection: Connection) -> str | None:
    """Which migration the database is at; None for an empty one.

    Before there were migrations by Alembic, SQLite's user_version counted them.
    """
    tables = inspect(connection)
    if tables.has_table("alembic_version"):
        return str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
    return "0001" if tables.has_table("devices") else None
