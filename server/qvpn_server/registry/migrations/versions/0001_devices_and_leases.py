"""Devices with bearer tokens, and their leases."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(63), nullable=False, unique=True),
        sa.Column("token_hash", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("revoked", sa.BigInteger),
    )
    op.create_table(
        "leases",
        sa.Column("family", sa.SmallInteger, nullable=False),
        sa.Column("address", sa.LargeBinary, nullable=False),
        sa.Column(
            "device", sa.Integer, sa.ForeignKey("devices.id", ondelete="CASCADE"), nullable=False
        ),
        sa.PrimaryKeyConstraint("family", "address"),
        sa.UniqueConstraint("device", "family"),
    )
