"""An index for what is assigned to one reviewer."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the index."""
    is_assigned = sa.text("assignee IS NOT NULL")
    op.create_index(
        "ix_semgrad_items_assignee_state_rank_id",
        "semgrad_items",
        ["assignee", "state", "rank", "id"],
        sqlite_where=is_assigned,
        postgresql_where=is_assigned,
    )
