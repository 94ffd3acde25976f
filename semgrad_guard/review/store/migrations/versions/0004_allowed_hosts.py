"""The host that a webhook may reach although such hosts are refused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column."""
    op.add_column("semgrad_consumers", sa.Column("allowed_host", sa.String(200)))
