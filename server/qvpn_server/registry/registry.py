"""The registry: which devices exist and which addresses they lease, on SQLite.

A small class with a narrow interface, so that another database can take its place. Every method is
one transaction, short enough for the event loop; the command line and a running gateway may use
the same file at once (write-ahead log). Times are UNIX seconds and passed in. It refuses to hold
tokens: only their hashes reach it.
"""

from __future__ import annotations

import hmac
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from qvpn_core.errors import QvpnError, UsageError
from qvpn_server.pool import IPAddress, Pool, PoolExhausted

#: Schema changes in order; `PRAGMA user_version` counts those applied. Append only.
MIGRATIONS = (
    """
    CREATE TABLE devices (
        id         INTEGER PRIMARY KEY,
        name       TEXT NOT NULL UNIQUE,
        token_hash BLOB NOT NULL UNIQUE,
        created    INTEGER NOT NULL,
        revoked    INTEGER
    ) STRICT;
    CREATE TABLE leases (
        family     INTEGER NOT NULL CHECK (family IN (4, 6)),
        address    BLOB NOT NULL,
        device     INTEGER NOT NULL REFERENCES devices (id) ON DELETE CASCADE,
        PRIMARY KEY (family, address),
        UNIQUE (device, family)
    ) STRICT;
    """,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_BUSY_TIMEOUT = 5.0  # seconds to wait for another process's transaction


class RegistryUnavailable(QvpnError):
    """The registry cannot be opened, read or written."""

    reason = "registry"


@dataclass(frozen=True, slots=True)
class Device:
    """One enrolled client identity."""

    id: int
    name: str
    created: int
    #: When it was revoked, or None while it may connect.
    revoked: int | None
    #: Its leases, IPv4 first; empty before its first connection and after its revocation.
    addresses: tuple[IPAddress, ...] = ()


class Registry:
    """Devices and leases. Open with :meth:`open`; a context manager."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the registry, creating or migrating it. Raises RegistryUnavailable."""
        with _translated(path):
            if not path.exists():
                # SQLite would create it with the umask's mode.
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA foreign_keys = ON")
                _migrate(connection, path)
            except BaseException:
                connection.close()
                raise
        return cls(connection)

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def add_device(self, name: str, token_hash: bytes, now: int) -> Device:
        """Create a device. The name of a revoked one may be used again, which forgets the old one.

        Raises UsageError for a bad name or one in use.
        """
        check_name(name)
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT id, revoked FROM devices WHERE name = ?", (name,)
            ).fetchone()
            if row is not None and row[1] is None:
                raise UsageError(
                    f"a device named {name} exists", "choose another name, or revoke that one first"
                )
            if row is not None:
                connection.execute("DELETE FROM devices WHERE id = ?", (row[0],))
            cursor = connection.execute(
                "INSERT INTO devices (name, token_hash, created) VALUES (?, ?, ?)",
                (name, token_hash, now),
            )
            assert cursor.lastrowid is not None
            return Device(cursor.lastrowid, name, now, None)

    def device_by_token(self, token_hash: bytes) -> Device | None:
        """The device that holds the token with this hash, unless it is unknown or revoked."""
        with self._transaction("DEFERRED") as connection:
            row = connection.execute(
                "SELECT id, name, created, revoked, token_hash FROM devices WHERE token_hash = ?",
                (token_hash,),
            ).fetchone()
            # The index compared a hash of what the caller sent, which tells him nothing he can
            # steer; the comparison that decides is constant-time all the same.
            if row is None or not hmac.compare_digest(row[4], token_hash) or row[3] is not None:
                return None
            return _device(connection, row[:4])

    def devices(self) -> list[Device]:
        """All devices by name, the revoked ones too."""
        with self._transaction("DEFERRED") as connection:
            rows = connection.execute(
                "SELECT id, name, created, revoked FROM devices ORDER BY name"
            ).fetchall()
            return [_device(connection, row) for row in rows]

    def revoke(self, name: str, now: int) -> Device:
        """Bar a device for good and free its leases. Raises UsageError for an unknown name.

        Revoking a revoked device changes nothing.
        """
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT id, name, created, revoked FROM devices WHERE name = ?", (name,)
            ).fetchone()
            if row is None:
                raise UsageError(f"no device is named {name}", "see: qvpn-server list")
            device = _device(connection, row)
            if device.revoked is None:
                connection.execute("UPDATE devices SET revoked = ? WHERE id = ?", (now, device.id))
                connection.execute("DELETE FROM leases WHERE device = ?", (device.id,))
                device = Device(device.id, device.name, device.created, now)
            return device

    def lease(self, device: Device, pools: Iterable[Pool]) -> tuple[IPAddress, ...]:
        """The addresses of `device`, one per pool, the same ones every time.

        A lease that the pool does not offer (after a change of pools) is replaced. Raises
        PoolExhausted, and leases nothing then.
        """
        with self._transaction() as connection:
            held: dict[int, IPAddress] = {
                address.version: address for address in _addresses(connection, device.id)
            }
            result = []
            for pool in pools:
                address = held.get(pool.version)
                if address is None or not pool.offers(address):
                    address = self._new_lease(connection, device, pool)
                result.append(address)
            return tuple(result)

    def _new_lease(self, connection: sqlite3.Connection, device: Device, pool: Pool) -> IPAddress:
        connection.execute(
            "DELETE FROM leases WHERE device = ? AND family = ?", (device.id, pool.version)
        )
        # Blobs compare bytewise, so the order is numeric. The cursor must not outlive the scan.
        with closing(
            connection.execute(
                "SELECT address FROM leases WHERE family = ? ORDER BY address", (pool.version,)
            )
        ) as rows:
            address = pool.next_free(ip_address(packed) for (packed,) in rows)
        connection.execute(
            "INSERT INTO leases (family, address, device) VALUES (?, ?, ?)",
            (pool.version, address.packed, device.id),
        )
        return address

    @contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
        """IMMEDIATE: two processes must not both choose the same free address. A reader takes
        DEFERRED, which waits for nobody and sees one state throughout."""
        with _translated(None):
            self._connection.execute(f"BEGIN {kind}")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def check_name(name: str) -> None:
    """Refuse a device name that would be awkward in a file, a log or a shell. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a device",
            "use up to 63 letters, digits and . _ -, starting with a letter or digit",
        )


def _device(connection: sqlite3.Connection, row: tuple[int, str, int, int | None]) -> Device:
    number, name, created, revoked = row
    return Device(number, name, created, revoked, _addresses(connection, number))


def _addresses(connection: sqlite3.Connection, device: int) -> tuple[IPAddress, ...]:
    rows = connection.execute(
        "SELECT address FROM leases WHERE device = ? ORDER BY family", (device,)
    ).fetchall()
    return tuple(ip_address(packed) for (packed,) in rows)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise RegistryUnavailable(
            f"{path} was written by a newer qvpn-server", "upgrade this one, or restore a backup"
        )
    for number in range(version, len(MIGRATIONS)):
        # executescript() commits what is open, so the transaction is part of the script. Should
        # another process migrate at the same moment, one of the two fails and nothing is half done.
        connection.executescript(
            f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT;"
        )


@contextmanager
def _translated(path: Path | None) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        where = f"the registry {path}" if path else "the registry"
        raise RegistryUnavailable(
            f"cannot use {where}: {error}",
            "check the state directory's free space, owner and permissions",
        ) from error


__all__ = [
    "MIGRATIONS",
    "Device",
    "PoolExhausted",
    "Registry",
    "RegistryUnavailable",
    "check_name",
]
