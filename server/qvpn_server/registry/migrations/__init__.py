"""The registry's schema changes, by Alembic. Append only: a released migration never changes."""
