"""Browsers that have logged in before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "semgrad_devices",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["semgrad_users.name"], name="fk_semgrad_devices_user"),
        sa.PrimaryKeyConstraint("digest", "user", name="pk_semgrad_devices"),
    )
    op.create_index("ix_semgrad_devices_user", "semgrad_devices", ["user"])
