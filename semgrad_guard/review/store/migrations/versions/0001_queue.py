"""The queue: items, their texts, verdicts, comments, audit trail, search and outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from semgrad_guard.review.store.schema import create_audit_guard, create_search_index

revision = "0001"
down_revision = None

moment = sa.DateTime(timezone=True)
counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "semgrad_consumers",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("events", sa.Text(), nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("secret", sa.Text()),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_semgrad_consumers"),
    )
    op.create_table(
        "semgrad_items",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("exchange_id", sa.String(200), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("preview", sa.Text(), nullable=False),
        sa.Column("question_key", sa.String(64)),
        sa.Column("rank", sa.Float(53), nullable=False),
        sa.Column("confidence", sa.Float(53)),
        sa.Column("rule", sa.String(200), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("assignee", sa.String(200)),
        sa.Column("holder", sa.String(200)),
        sa.Column("held_until", moment),
        sa.Column("deadline_at", moment),
        sa.Column("at_expiry", sa.String(16), nullable=False),
        sa.Column("ruling_id", counter),
        sa.Column("resolved_at", moment),
        sa.Column("delivered_at", moment),
        sa.Column("erased_at", moment),
        sa.CheckConstraint(
            "state IN ('pending', 'claimed', 'approved', 'edited', 'rejected', 'expired')",
            name=op.f("ck_semgrad_items_state"),
        ),
        sa.PrimaryKeyConstraint("id", name="pk_semgrad_items"),
        sa.UniqueConstraint("exchange_id", name="uq_semgrad_items_exchange_id"),
    )
    op.create_index("ix_semgrad_items_created_at_id", "semgrad_items", ["created_at", "id"])
    op.create_index("ix_semgrad_items_question_key_resolved_at", "semgrad_items", ["question_key", "resolved_at"])
    op.create_index("ix_semgrad_items_state_created_at_id", "semgrad_items", ["state", "created_at", "id"])
    op.create_index("ix_semgrad_items_state_deadline_at_id", "semgrad_items", ["state", "deadline_at", "id"])
    op.create_index("ix_semgrad_items_state_rank_id", "semgrad_items", ["state", "rank", "id"])
    op.create_table(
        "semgrad_audit",
        sa.Column("seq", counter, nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("version", sa.Integer()),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("from_state", sa.String(16)),
        sa.Column("to_state", sa.String(16)),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("op", sa.String(64)),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_audit_item_id"),
        sa.PrimaryKeyConstraint("seq", name="pk_semgrad_audit"),
        sa.UniqueConstraint("item_id", "version", name="uq_semgrad_audit_item_id_version"),
        sa.UniqueConstraint("op", name="uq_semgrad_audit_op"),
    )
    op.create_table(
        "semgrad_comments",
        sa.Column("id", counter, nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_comments_item_id"),
        sa.PrimaryKeyConstraint("id", name="pk_semgrad_comments"),
    )
    op.create_index("ix_semgrad_comments_item_id", "semgrad_comments", ["item_id"])
    op.create_table(
        "semgrad_deliveries",
        sa.Column("id", counter, nullable=False),
        sa.Column("consumer", sa.String(200), nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("event", sa.String(16), nullable=False),
        sa.Column("ruling_id", counter),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("done_at", moment),
        sa.Column("error", sa.Text()),
        sa.ForeignKeyConstraint(["consumer"], ["semgrad_consumers.name"], name="fk_semgrad_deliveries_consumer"),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_deliveries_item_id"),
        sa.PrimaryKeyConstraint("id", name="pk_semgrad_deliveries"),
    )
    op.create_index(
        "ix_semgrad_deliveries_consumer_status_due_at_id", "semgrad_deliveries", ["consumer", "status", "due_at", "id"]
    )
    op.create_index("ix_semgrad_deliveries_item_id", "semgrad_deliveries", ["item_id"])
    op.create_table(
        "semgrad_documents",
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_documents_item_id"),
        sa.PrimaryKeyConstraint("item_id", name="pk_semgrad_documents"),
    )
    op.create_table(
        "semgrad_rulings",
        sa.Column("id", counter, nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("text", sa.Text()),
        sa.Column("correct", sa.Boolean()),
        sa.Column("by", sa.String(200), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_rulings_item_id"),
        sa.PrimaryKeyConstraint("id", name="pk_semgrad_rulings"),
    )
    op.create_index("ix_semgrad_rulings_at", "semgrad_rulings", ["at"])
    op.create_index("ix_semgrad_rulings_item_id", "semgrad_rulings", ["item_id"])
    op.create_table(
        "semgrad_search",
        sa.Column("seq", counter, nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_search_item_id"),
        sa.PrimaryKeyConstraint("seq", name="pk_semgrad_search"),
        sa.UniqueConstraint("item_id", name="uq_semgrad_search_item_id"),
    )
    op.create_table(
        "semgrad_tags",
        sa.Column("tag", sa.String(200), nullable=False),
        sa.Column("item_id", sa.String(32), nullable=False),
        sa.ForeignKeyConstraint(["item_id"], ["semgrad_items.id"], name="fk_semgrad_tags_item_id"),
        sa.PrimaryKeyConstraint("tag", "item_id", name="pk_semgrad_tags"),
    )
    op.create_index("ix_semgrad_tags_item_id", "semgrad_tags", ["item_id"])
    # ### end Alembic commands ###

    create_search_index(op.get_bind())
    create_audit_guard(op.get_bind())
