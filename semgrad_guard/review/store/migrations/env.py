"""Alembic's entry point; it runs on the connection and in the transaction that `store.migrate` opened."""

from __future__ import annotations

from alembic import context

from semgrad_guard.review.store.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
