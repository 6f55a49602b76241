"""Keys beside tokens, invites, groups and the audit.

The two old tables are made anew: SQLite cannot loosen a column, and a device may now hold one lease
at each of several gateways. Every device of before joins the group `everyone`.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("CREATE TEMPORARY TABLE old_devices AS SELECT * FROM devices")
    op.execute("CREATE TEMPORARY TABLE old_leases AS SELECT * FROM leases")
    op.drop_table("leases")
    op.drop_table("devices")
    _create_devices()
    op.execute(
        "INSERT INTO devices (id, name, created, revoked, token_hash) "
        "SELECT id, name, created, revoked, token_hash FROM old_devices"
    )
    op.execute(
        "INSERT INTO leases (family, address, device) "
        "SELECT family, address, device FROM old_leases"
    )
    op.drop_table("old_leases")
    op.drop_table("old_devices")
    _create_groups()
    _create_invites()
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.execute("INSERT INTO groups (name) VALUES ('everyone')")
    op.execute(
        'INSERT INTO memberships (device, "group") '
        "SELECT devices.id, groups.id FROM devices, groups"
    )
    if op.get_bind().dialect.name == "sqlite":
        # The program that knew schema 1 only reads this number, and then refuses.
        op.execute("PRAGMA user_version = 2")
    else:
        op.execute(
            "SELECT setval(pg_get_serial_sequence('devices', 'id'), "
            "(SELECT max(id) FROM devices)) WHERE EXISTS (SELECT 1 FROM devices)"
        )


def _create_devices() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("revoked", sa.BigInteger),
        sa.Column("token_hash", sa.LargeBinary, unique=True),
        sa.Column("key_id", sa.LargeBinary, unique=True),
        sa.Column("public_key", sa.LargeBinary),
        sa.CheckConstraint("(key_id IS NULL) = (public_key IS NULL)", name="whole_key"),
        sa.CheckConstraint("(key_id IS NULL) <> (token_hash IS NULL)", name="one_credential"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "leases",
        sa.Column(
            "family", sa.SmallInteger, sa.CheckConstraint("family IN (4, 6)"), nullable=False
        ),
        sa.Column("address", sa.LargeBinary, nullable=False),
        _device(),
        sa.PrimaryKeyConstraint("family", "address"),
    )
    op.create_index("ix_leases_device", "leases", ["device"])


def _create_groups() -> None:
    op.create_table(
        "groups",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("routes", sa.JSON),
        sa.Column("destinations", sa.JSON),
        sa.Column("dns", sa.JSON),
        sa.Column("max_sessions", sa.Integer),
    )
    op.create_table("memberships", _device(), _group(), sa.PrimaryKeyConstraint("device", "group"))
    op.create_index("ix_memberships_group", "memberships", ["group"])


def _create_invites() -> None:
    op.create_table(
        "invites",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("key_id", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("public_key", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.Column("used", sa.BigInteger),
        sa.Column("revoked", sa.BigInteger),
        sa.Column("device", sa.Integer, sa.ForeignKey("devices.id", ondelete="SET NULL")),
        sa.Column("routes", sa.JSON, nullable=False),
    )
    op.create_index("ix_invites_name", "invites", ["name"])
    op.create_index("ix_invites_device", "invites", ["device"])
    op.create_table(
        "invite_groups",
        sa.Column(
            "invite", sa.Integer, sa.ForeignKey("invites.id", ondelete="CASCADE"), nullable=False
        ),
        _group(),
        sa.PrimaryKeyConstraint("invite", "group"),
    )


def _device() -> sa.Column[int]:
    reference = sa.ForeignKey("devices.id", ondelete="CASCADE")
    return sa.Column("device", sa.Integer, reference, nullable=False)


def _group() -> sa.Column[int]:
    reference = sa.ForeignKey("groups.id", ondelete="CASCADE")
    return sa.Column("group", sa.Integer, reference, nullable=False)
