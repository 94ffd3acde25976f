"""Removing personal data: the texts go, the audit rows stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import delete, inspect, select, update

from semgrad_guard.flow import ReviewId
from semgrad_guard.review import moves
from semgrad_guard.review.reading import read_item
from semgrad_guard.review.store import audit
from semgrad_guard.review.store.audit import Happening
from semgrad_guard.review.store.items import SETTLED, Event
from semgrad_guard.review.store.schema import FTS_TABLE, comments, documents, items, rulings, search

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy import Connection

    from semgrad_guard.review.store.database import Transaction


def erase(tx: Transaction, review_ids: Iterable[str], by: str) -> int:
    """Remove every text of the items; return how many had any. An open item ends as expired, since nobody can judge it.

    Question, prompt, answer, passages, metadata, edited answers, reasons and comments go. What stays is which item was
    in which state, who judged it when, its confidence, its rule and its tags.
    """
    erased = sum(_erase(tx, review_id, by) for review_id in review_ids)
    if erased and tx.conn.dialect.name == "sqlite" and inspect(tx.conn).has_table(FTS_TABLE):
        # Deleted words stay in the index's old segments until these are merged.
        tx.conn.exec_driver_sql("INSERT INTO semgrad_search_fts(semgrad_search_fts) VALUES ('optimize')")
    return erased


def due(conn: Connection, before: datetime, limit: int) -> list[ReviewId]:
    """Return settled items that were submitted before a moment and still hold texts."""
    query = (
        select(items.c.id)
        .where(items.c.created_at < before, items.c.erased_at.is_(None), items.c.state.in_(sorted(SETTLED)))
        .order_by(items.c.created_at, items.c.id)
        .limit(limit)
    )
    return [ReviewId(each) for each in conn.execute(query).scalars()]


def _erase(tx: Transaction, review_id: str, by: str) -> bool:
    item = read_item(tx.conn, review_id, lock=True)
    if item.erased_at is not None:
        return False
    if item.is_open:
        moves.abandon(tx, item, by)
    for table in (documents, search):
        tx.conn.execute(delete(table).where(table.c.item_id == item.id))
    for table in (comments, rulings):
        tx.conn.execute(update(table).where(table.c.item_id == item.id).values(text=""))
    blank = {"title": "", "preview": "", "question_key": None, "erased_at": tx.now}
    tx.conn.execute(update(items).where(items.c.id == item.id).values(**blank))
    audit.record(tx, item.id, Happening(Event.ERASE, by, is_main=False))
    return True
