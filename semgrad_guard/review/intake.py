"""Submitting: an answer becomes an item, once for each exchange."""

from __future__ import annotations

import json
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import insert, select
from sqlalchemy.dialects import postgresql, sqlite

from semgrad_guard.flow import ReviewId
from semgrad_guard.review import outbox, trail
from semgrad_guard.review.ranking import rank
from semgrad_guard.review.schema import documents, items, search
from semgrad_guard.review.schema import tags as tag_table
from semgrad_guard.review.states import Event, State
from semgrad_guard.review.text import question_key, shorten, storable
from semgrad_guard.review.trail import Change, Happening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from semgrad_guard.review.database import Transaction
    from semgrad_guard.review.document import Document
    from semgrad_guard.review.items import QueueSettings

_INSERT_DOCUMENT, _INSERT_SEARCH, _INSERT_TAGS = insert(documents), insert(search), insert(tag_table)
_INSERT_SQLITE = sqlite.insert(items).on_conflict_do_nothing(index_elements=["exchange_id"]).returning(items.c.id)
_INSERT_POSTGRES = postgresql.insert(items).on_conflict_do_nothing(index_elements=["exchange_id"]).returning(items.c.id)
SUBMITTER = "guard"
"""Who submits, in the audit trail, when the caller names nobody."""
_TITLE = 200
_PREVIEW = 300
_SEARCHED = 50_000
"""Characters of a document that can be found by words; PostgreSQL refuses to index a megabyte."""


def submit(
    tx: Transaction, document: Document, settings: QueueSettings, *, deadline_s: float | None, by: str
) -> ReviewId:
    """Store a document as a new item, or return the item that the exchange already has."""
    review_id = new_id()
    known = _insert_item(tx, review_id, document, settings, deadline_s)
    if known is not None:
        return known
    insert_texts(tx, review_id, document, document.tags)
    trail.record(tx, review_id, Happening(Event.SUBMIT, by), Change(None, State.PENDING, 1))
    outbox.announce(tx, review_id, Event.SUBMIT)
    return review_id


def new_id() -> ReviewId:
    """Return a fresh random id."""
    return ReviewId(secrets.token_hex(8))


def insert_texts(tx: Transaction, review_id: str, document: Document | None, tags: Iterable[str]) -> None:
    """Store the texts of a new item, its tags, and the words by which it is found."""
    if document is not None:
        tx.conn.execute(_INSERT_DOCUMENT, {"item_id": review_id, "body": document.model_dump_json()})
        tx.conn.execute(_INSERT_SEARCH, {"item_id": review_id, "body": searched_text(document)})
    names = tag_names(tags)
    if names:
        tx.conn.execute(_INSERT_TAGS, [{"item_id": review_id, "tag": tag} for tag in names])


def tag_names(tags: Iterable[str]) -> list[str]:
    """Return the tags as they are stored: short and storable, each once."""
    return sorted({storable(tag)[:200] for tag in tags})


def key_of(document: Document | None) -> str | None:
    """Return the digest by which the question is known again."""
    return question_key(document.question) if document is not None and document.question else None


def searched_text(document: Document) -> str:
    """Return the words by which an item is found."""
    parts = [document.title[: _TITLE * 10], document.answer]
    parts += [f"{passage.source or ''} {passage.text}" for passage in document.passages]
    return storable("\n".join(parts)[:_SEARCHED])


def _insert_item(
    tx: Transaction, review_id: ReviewId, document: Document, settings: QueueSettings, deadline_s: float | None
) -> ReviewId | None:
    """Insert the row of an item; return the id of the one that was there already."""
    lifetime = settings.deadline_s if deadline_s is None else deadline_s
    row = {
        "id": review_id,
        "exchange_id": document.exchange_id,
        "state": State.PENDING,
        "version": 1,
        "title": shorten(document.title, _TITLE),
        "preview": shorten(document.answer, _PREVIEW),
        "question_key": key_of(document),
        "rank": rank(tx.now, document.confidence, document.tags, settings),
        "confidence": document.confidence,
        "rule": storable(document.rule)[:200],
        "tags": json.dumps(tag_names(document.tags)),
        "created_at": tx.now,
        "updated_at": tx.now,
        "deadline_at": None if lifetime is None else tx.now + timedelta(seconds=lifetime),
        "at_expiry": settings.at_expiry,
    }
    statement = _INSERT_SQLITE if tx.conn.dialect.name == "sqlite" else _INSERT_POSTGRES
    if tx.conn.execute(statement, row).first() is not None:
        return None
    return ReviewId(tx.conn.execute(select(items.c.id).where(items.c.exchange_id == document.exchange_id)).scalar_one())
