"""Verdicts as calibration labels: was the model's answer right?"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import select

from semgrad_guard.review.document import Document, exchange_of
from semgrad_guard.review.schema import documents, items, rulings

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from semgrad_guard.flow import Exchange


class Label(NamedTuple):
    """One judged answer."""

    exchange: Exchange
    """With its score, where it was scored."""
    correct: bool
    """True when a person approved the answer, or changed only its wording."""


def labels_after(conn: Connection, ruling_id: int, until: datetime, limit: int) -> tuple[list[Label], int | None]:
    """Return the labels of verdicts behind a verdict's id and not younger than `until`, and the last id of them.

    Verdicts that time gave, and items that were erased, teach nothing.
    """
    query = (
        select(rulings.c.id, rulings.c.correct, documents.c.body)
        .join(items, items.c.ruling_id == rulings.c.id)
        .join(documents, documents.c.item_id == items.c.id)
        .where(rulings.c.id > ruling_id, rulings.c.correct.is_not(None), rulings.c.at <= until)
        .order_by(rulings.c.id)
        .limit(limit)
    )
    rows = conn.execute(query).all()
    found = [Label(exchange_of(Document.model_validate_json(row.body)), row.correct) for row in rows]
    return found, rows[-1].id if rows else None
