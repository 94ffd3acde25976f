"""The queue of answers that people judge: durable, shared between processes, in SQLite or PostgreSQL."""

from __future__ import annotations

from semgrad_guard.review.client import open_queue
from semgrad_guard.review.queue import SqlReviewQueue
from semgrad_guard.review.store.document import Document, document_of, exchange_of
from semgrad_guard.review.store.items import (
    ALL_ITEMS,
    MOVES,
    OPEN,
    OPEN_ITEMS,
    SETTLED,
    AtExpiry,
    AuditRow,
    Comment,
    Event,
    Filters,
    Item,
    ItemDetail,
    Page,
    QueueSettings,
    Sort,
    State,
)

__all__ = [
    "ALL_ITEMS",
    "MOVES",
    "OPEN",
    "OPEN_ITEMS",
    "SETTLED",
    "AtExpiry",
    "AuditRow",
    "Comment",
    "Document",
    "Event",
    "Filters",
    "Item",
    "ItemDetail",
    "Page",
    "QueueSettings",
    "Sort",
    "SqlReviewQueue",
    "State",
    "document_of",
    "exchange_of",
    "open_queue",
]
