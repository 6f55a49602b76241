"""Runs the migrations on an open connection, in the caller's transaction."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

HERE = Path(__file__).parent

log = logging.getLogger(__name__)


def upgrade(connection: Connection, revision: str | None) -> None:
    """Bring the database to the newest schema. `revision` is where it is, None for an empty one.

    One from before Alembic lacks its table; it gets that first.
    """
    log.info("bringing the registry up to date")
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it would tell every step
    config = config_for(connection)
    if revision is not None and not connection.dialect.has_table(connection, "alembic_version"):
        command.stamp(config, revision)
    command.upgrade(config, "head")


def config_for(connection: Connection) -> Config:
    """Alembic's configuration for `connection`; there is no file."""
    config = Config()
    config.set_main_option("script_location", str(HERE).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
