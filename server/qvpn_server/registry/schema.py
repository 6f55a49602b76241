"""The registry's tables as the newest migration leaves them, in SQLite and in PostgreSQL.

Addresses, keys and hashes are bytes, whose order is that of their numbers in either database. Lists
of prefixes and addresses are JSON lists of strings, read and written whole.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
)

metadata = MetaData()

_JSON = JSON(none_as_null=True)


def _id() -> Column[int]:
    return Column("id", Integer, primary_key=True)


def _device(*, index: bool = False) -> Column[int]:
    reference = ForeignKey("devices.id", ondelete="CASCADE")
    return Column("device", Integer, reference, nullable=False, index=index)


def _group(*, index: bool = False) -> Column[int]:
    reference = ForeignKey("groups.id", ondelete="CASCADE")
    return Column("group", Integer, reference, nullable=False, index=index)


#: A device has a key or a token.
devices = Table(
    "devices",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger),
    Column("token_hash", LargeBinary, unique=True),
    Column("key_id", LargeBinary, unique=True),
    Column("public_key", LargeBinary),
    CheckConstraint("(key_id IS NULL) = (public_key IS NULL)", name="whole_key"),
    CheckConstraint("(key_id IS NULL) <> (token_hash IS NULL)", name="one_credential"),
    sqlite_autoincrement=True,  # a live session knows its device by this number
)

leases = Table(
    "leases",
    metadata,
    Column("family", SmallInteger, CheckConstraint("family IN (4, 6)"), nullable=False),
    Column("address", LargeBinary, nullable=False),
    _device(index=True),
    PrimaryKeyConstraint("family", "address"),
)

#: NULL leaves a matter to the gateway's configuration.
groups = Table(
    "groups",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, unique=True),
    Column("routes", _JSON),
    Column("destinations", _JSON),
    Column("dns", _JSON),
    Column("max_sessions", Integer),
    Column("services", _JSON),
)

memberships = Table(
    "memberships",
    metadata,
    _device(),
    _group(index=True),
    PrimaryKeyConstraint("device", "group"),
)

#: Only the public half of the key that follows from an invite's secret.
invites = Table(
    "invites",
    metadata,
    _id(),
    Column("name", String(63), nullable=False, index=True),
    Column("key_id", LargeBinary, nullable=False, unique=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("used", BigInteger),
    Column("revoked", BigInteger),
    Column("device", Integer, ForeignKey("devices.id", ondelete="SET NULL"), index=True),
    Column("routes", _JSON, nullable=False),
)

invite_groups = Table(
    "invite_groups",
    metadata,
    Column("invite", Integer, ForeignKey("invites.id", ondelete="CASCADE"), nullable=False),
    _group(),
    PrimaryKeyConstraint("invite", "group"),
)

#: Its highest id also tells gateways that share the registry that something changed.
audit = Table(
    "audit",
    metadata,
    _id(),
    Column("at", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("detail", Text, nullable=False),
    sqlite_autoincrement=True,
)
