"""Run by Alembic: migrates on the connection that `migrations.upgrade` hands over."""

from __future__ import annotations

from alembic import context

from skerry_fleet import schema
from skerry_fleet.db import metadata

__all__ = ["schema"]

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot change a column in place; batch mode copies the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
