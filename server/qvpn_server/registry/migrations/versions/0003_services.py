"""What devices of a group may use of the gateway's services; NULL leaves it to the destinations."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("groups", sa.Column("services", sa.JSON))
