"""Accounts, logins, API tokens and failed logins."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

moment = sa.DateTime(timezone=True)
counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "semgrad_login_failures",
        sa.Column("id", counter, nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_semgrad_login_failures"),
    )
    op.create_index("ix_semgrad_login_failures_key_at", "semgrad_login_failures", ["key", "at"])
    op.create_table(
        "semgrad_users",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_semgrad_users"),
    )
    op.create_table(
        "semgrad_sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("seen_at", moment, nullable=False),
        sa.ForeignKeyConstraint(["user"], ["semgrad_users.name"], name="fk_semgrad_sessions_user"),
        sa.PrimaryKeyConstraint("digest", name="pk_semgrad_sessions"),
    )
    op.create_index("ix_semgrad_sessions_user", "semgrad_sessions", ["user"])
    op.create_table(
        "semgrad_tokens",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.Column("revoked_at", moment),
        sa.Column("used_at", moment),
        sa.ForeignKeyConstraint(["user"], ["semgrad_users.name"], name="fk_semgrad_tokens_user"),
        sa.PrimaryKeyConstraint("id", name="pk_semgrad_tokens"),
        sa.UniqueConstraint("digest", name="uq_semgrad_tokens_digest"),
    )
    op.create_index("ix_semgrad_tokens_user", "semgrad_tokens", ["user"])
