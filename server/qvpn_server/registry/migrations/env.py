"""What Alembic runs; the connection comes from :mod:`qvpn_server.registry.migrations.run`."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, transactional_ddl=True)
# The transaction is the caller's: all migrations or none.
context.run_migrations()
