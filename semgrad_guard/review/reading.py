"""Reading items and their parts by id."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, select

from semgrad_guard.errors import AmbiguousIdError, ItemNotFoundError
from semgrad_guard.flow import ExchangeId, ReviewId, Ruling, Verdict
from semgrad_guard.review.store.document import Document
from semgrad_guard.review.store.items import AtExpiry, Comment, Item, ItemDetail, State
from semgrad_guard.review.store.schema import comments, documents, items, rulings

if TYPE_CHECKING:
    from sqlalchemy import Connection, RowMapping

_SHORTEST_PREFIX = 4
_ONE = select(items).where(items.c.id == bindparam("item_id"))
_LOCKED = _ONE.with_for_update()
_DOCUMENT = select(documents.c.body).where(documents.c.item_id == bindparam("item_id"))


def item_of(row: RowMapping) -> Item:
    """Return the item of a row of `semgrad_items`."""
    return Item(
        id=ReviewId(row["id"]),
        exchange_id=ExchangeId(row["exchange_id"]),
        state=State(row["state"]),
        version=row["version"],
        title=row["title"],
        preview=row["preview"],
        rank=row["rank"],
        confidence=row["confidence"],
        rule=row["rule"],
        tags=tuple(json.loads(row["tags"])),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        assignee=row["assignee"],
        holder=row["holder"],
        held_until=row["held_until"],
        deadline_at=row["deadline_at"],
        at_expiry=AtExpiry(row["at_expiry"]),
        ruling_id=row["ruling_id"],
        resolved_at=row["resolved_at"],
        delivered_at=row["delivered_at"],
        erased_at=row["erased_at"],
    )


def read_item(conn: Connection, item_id: str, *, lock: bool = False) -> Item:
    """Return an item by its full id.

    Args:
        conn: where to read.
        item_id: the full id.
        lock: keep other transactions from changing it until this one ends.

    Raises:
        ItemNotFoundError: there is none.
    """
    row = conn.execute(_LOCKED if lock else _ONE, {"item_id": item_id}).mappings().one_or_none()
    if row is None:
        raise ItemNotFoundError(item_id)
    return item_of(row)


def find_id(conn: Connection, prefix: str) -> ReviewId:
    """Return the full id that starts with `prefix` (at least four characters unless it is a full id).

    Raises:
        ItemNotFoundError: there is none.
        AmbiguousIdError: several ids start like that.
    """
    exact = conn.execute(select(items.c.id).where(items.c.id == prefix)).scalar_one_or_none()
    if exact is not None:
        return ReviewId(exact)
    if len(prefix) < _SHORTEST_PREFIX:
        raise ItemNotFoundError(prefix)
    found = (
        conn.execute(select(items.c.id).where(items.c.id.startswith(prefix, autoescape=True)).limit(3)).scalars().all()
    )
    if not found:
        raise ItemNotFoundError(prefix)
    if len(found) > 1:
        raise AmbiguousIdError(prefix, found)
    return ReviewId(found[0])


def read_detail(conn: Connection, item_id: str) -> ItemDetail:
    """Return an item with its document, verdict and comments."""
    item = read_item(conn, item_id)
    document = read_document(conn, item.id)
    return ItemDetail(
        item=item, document=document, ruling=ruling_of(conn, item, document), comments=read_comments(conn, item.id)
    )


def read_document(conn: Connection, item_id: str) -> Document | None:
    """Return what a reviewer reads, or `None` when it was erased."""
    body = conn.execute(_DOCUMENT, {"item_id": item_id}).scalar_one_or_none()
    return None if body is None else Document.model_validate_json(body)


def read_comments(conn: Connection, item_id: str) -> tuple[Comment, ...]:
    """Return the comments on an item, oldest first."""
    rows = conn.execute(select(comments).where(comments.c.item_id == item_id).order_by(comments.c.id)).mappings()
    return tuple(Comment(id=row["id"], by=row["by"], at=row["at"], text=row["text"]) for row in rows)


def read_ruling(conn: Connection, item: Item) -> Ruling | None:
    """Return the verdict on an item, or `None` while it has none."""
    if item.ruling_id is None:
        return None
    row = conn.execute(select(rulings).where(rulings.c.id == item.ruling_id)).mappings().one()
    return ruling_from(row, read_document(conn, item.id) if row["text"] is None else None)


def ruling_of(conn: Connection, item: Item, document: Document | None) -> Ruling | None:
    """Return the verdict on an item whose document is at hand."""
    if item.ruling_id is None:
        return None
    row = conn.execute(select(rulings).where(rulings.c.id == item.ruling_id)).mappings().one()
    return ruling_from(row, document)


def ruling_from(row: RowMapping, document: Document | None) -> Ruling:
    """Return the verdict of a row of `semgrad_rulings`; an answer approved as it is stands in the document."""
    text = row["text"]
    if text is None:
        text = document.answer if document is not None else ""
    return Ruling(
        review_id=ReviewId(row["item_id"]), verdict=Verdict(row["verdict"]), text=text, by=row["by"], at=row["at"]
    )
