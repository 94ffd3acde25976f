"""Verdicts as calibration labels: was the model's answer right?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import func, select

from semgrad_guard.review.store.document import Document, exchange_of
from semgrad_guard.review.store.schema import documents, items, rulings

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection, Select

    from semgrad_guard.flow import Exchange


class Label(NamedTuple):
    """One judged answer."""

    exchange: Exchange
    """With its score, where it was scored."""
    correct: bool
    """True when a person approved the answer, or changed only its wording."""


class Judged(NamedTuple):
    """A confidence, and whether it came true."""

    confidence: float
    correct: bool
    profile: str | None
    """Name of the profile that gave it."""


def judged_after(conn: Connection, ruling_id: int, until: datetime, limit: int) -> tuple[list[Judged], int]:
    """Return the confidences of verdicts behind a verdict's id and not younger than `until`, and the last id."""
    query = _judged(ruling_id, until, limit).add_columns(items.c.confidence)
    rows = conn.execute(query).all()
    found = [
        Judged(row.confidence, row.correct, Document.model_validate_json(row.body).profile)
        for row in rows
        if row.confidence is not None
    ]
    return found, rows[-1].id if rows else ruling_id


def last_ruling(conn: Connection) -> int:
    """Return the id of the latest verdict, 0 before the first."""
    return conn.execute(select(func.max(rulings.c.id))).scalar_one() or 0


def labels_after(conn: Connection, ruling_id: int, until: datetime, limit: int) -> tuple[list[Label], int | None]:
    """Return the labels of verdicts behind a verdict's id and not younger than `until`, and the last id of them.

    Verdicts that time gave, and items that were erased, teach nothing.
    """
    rows = conn.execute(_judged(ruling_id, until, limit)).all()
    found = [Label(exchange_of(Document.model_validate_json(row.body)), row.correct) for row in rows]
    return found, rows[-1].id if rows else None


def _judged(ruling_id: int, until: datetime, limit: int) -> Select[*tuple[Any, ...]]:
    return (
        select(rulings.c.id, rulings.c.correct, documents.c.body)
        .join(items, items.c.ruling_id == rulings.c.id)
        .join(documents, documents.c.item_id == items.c.id)
        .where(rulings.c.id > ruling_id, rulings.c.correct.is_not(None), rulings.c.at <= until)
        .order_by(rulings.c.id)
        .limit(limit)
    )
