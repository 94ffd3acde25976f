"""Export and import of items as JSON lines, with their verdicts, comments and audit trail."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue, ValidationError
from sqlalchemy import insert, select, update

from semgrad_guard.errors import DataFileError
from semgrad_guard.flow import ReviewId, Verdict
from semgrad_guard.review.store import audit, submission
from semgrad_guard.review.store.audit import AuditEvent, Change, Replayed, replay
from semgrad_guard.review.store.document import Document, storable
from semgrad_guard.review.store.items import SETTLED, AtExpiry, Event, Sort, State
from semgrad_guard.review.store.read import list_items, read_comments, read_document
from semgrad_guard.review.store.schema import audit as audit_table
from semgrad_guard.review.store.schema import comments, items, rulings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from semgrad_guard.review.store.database import Transaction
    from semgrad_guard.review.store.items import Filters, Item, QueueSettings

_ADVICE = 'write it as `semgrad-guard review export` does, or as {"document": {...}} for a new item'

_MOST_VERSIONS = 2**30
"""Largest version of an item; a database counts to twice that."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ItemLine(_Line):
    """The row of an item."""

    id: str = Field(min_length=4, max_length=32, pattern=r"^[0-9A-Za-z_-]+$")
    exchange_id: str = Field(min_length=1, max_length=200)
    state: State
    version: int = Field(ge=1, le=_MOST_VERSIONS)
    title: str
    preview: str
    rank: float
    confidence: float | None = Field(default=None, ge=0, le=1)
    rule: str = Field(max_length=200)
    tags: tuple[str, ...] = ()
    created_at: AwareDatetime
    updated_at: AwareDatetime
    assignee: str | None = None
    holder: str | None = None
    held_until: AwareDatetime | None = None
    deadline_at: AwareDatetime | None = None
    at_expiry: AtExpiry = AtExpiry.EXPIRE
    resolved_at: AwareDatetime | None = None
    delivered_at: AwareDatetime | None = None
    erased_at: AwareDatetime | None = None


class RulingLine(_Line):
    """One verdict; of several, the last one counts while the item is settled."""

    verdict: Verdict
    text: str | None = None
    correct: bool | None = None
    by: str
    at: AwareDatetime


class AuditLine(_Line):
    """One event of the audit trail."""

    version: int | None = Field(default=None, ge=0, le=_MOST_VERSIONS)
    event: Event
    from_state: State | None = None
    to_state: State | None = None
    by: str
    at: AwareDatetime
    detail: dict[str, JsonValue] = Field(default_factory=dict)


class CommentLine(_Line):
    """One comment."""

    by: str
    at: AwareDatetime
    text: str


class TransferLine(_Line):
    """One line of a transfer file: a whole item, or only the document of a new one."""

    item: ItemLine | None = None
    document: Document | None = None
    rulings: tuple[RulingLine, ...] = ()
    comments: tuple[CommentLine, ...] = ()
    audit: tuple[AuditLine, ...] = ()


def export_page(conn: Connection, filters: Filters, cursor: str | None) -> tuple[list[str], str | None]:
    """Return one page of items as lines, oldest first, and the cursor of the next page."""
    page = list_items(conn, filters, Sort.OLDEST, cursor, 200)
    return [_line_of(conn, item).model_dump_json() for item in page.items], page.next_cursor


def read_line(text: str, source: str, number: int) -> TransferLine:
    """Return a parsed line.

    Raises:
        DataFileError: the line is invalid, or has neither an item nor a document.
    """
    try:
        line = TransferLine.model_validate_json(storable(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise DataFileError(source, number, why, _ADVICE) from None  # the cause repeats the texts
    contradiction = _contradiction(line)
    if contradiction is not None:
        raise DataFileError(source, number, contradiction, _ADVICE)
    return line


def import_line(tx: Transaction, line: TransferLine, settings: QueueSettings, by: str) -> bool:
    """Store a line; return False, and change nothing, when its exchange is already in the queue."""
    exchange_id = line.item.exchange_id if line.item else line.document.exchange_id if line.document else ""
    if tx.conn.execute(select(items.c.id).where(items.c.exchange_id == exchange_id)).first() is not None:
        return False
    if line.item is not None:
        _insert(tx, line.item, line, by)
    elif line.document is not None:
        submission.submit(tx, submission.Submission(document=line.document, by=by), settings)
    return True


def _insert(tx: Transaction, item: ItemLine, line: TransferLine, by: str) -> None:
    review_id = _free_id(tx, item.id)
    state = State.PENDING if item.state is State.CLAIMED and not line.audit else item.state
    row = item.model_dump() | {"id": review_id, "state": state, "tags": json.dumps(submission.tag_names(item.tags))}
    if state is not State.CLAIMED:
        row |= {"holder": None, "held_until": None}
    row["question_key"] = submission.key_of(line.document)
    tx.conn.execute(insert(items), row)
    if line.document is not None:
        submission.insert_texts(tx, {review_id: line.document})
    submission.insert_tags(tx, {review_id: item.tags})
    ruling_id = _insert_rulings(tx, review_id, line.rulings)
    if item.state in SETTLED:
        tx.conn.execute(update(items).where(items.c.id == review_id).values(ruling_id=ruling_id))
    for comment in line.comments:
        tx.conn.execute(insert(comments), {**comment.model_dump(), "item_id": review_id})
    for each in line.audit:
        tx.conn.execute(
            insert(audit_table), {**each.model_dump(), "detail": json.dumps(each.detail), "item_id": review_id}
        )
    arrived = AuditEvent(Event.IMPORT, by, {"assignee": item.assignee}, is_main=False)
    audit.record(tx, review_id, arrived, None if line.audit else Change(None, state, item.version))


def _insert_rulings(tx: Transaction, review_id: str, lines: tuple[RulingLine, ...]) -> int | None:
    """Insert the verdicts; return the id of the last."""
    last: int | None = None
    for ruling in lines:
        statement = insert(rulings).returning(rulings.c.id)
        last = tx.conn.execute(statement, {**ruling.model_dump(), "item_id": review_id}).scalar_one()
    return last


def _free_id(tx: Transaction, wanted: str) -> ReviewId:
    """Return the wanted id, or a new one when another exchange has it here."""
    taken = tx.conn.execute(select(items.c.id).where(items.c.id == wanted)).first() is not None
    return submission.new_id() if taken else ReviewId(wanted)


def _contradiction(line: TransferLine) -> str | None:
    """Return why a line contradicts itself, or `None`."""
    item = line.item
    if item is None:
        return None if line.document else "neither an item nor a document"
    if (line.document is None) != (item.erased_at is not None):
        return "an item has a document unless it was erased"
    if line.document is not None and line.document.exchange_id != item.exchange_id:
        return "item and document are of different exchanges"
    if item.state in SETTLED and not line.rulings:
        return f"an item that is {item.state} without a ruling"
    if line.audit and replay(line.audit) != Replayed(item.state, item.version, item.holder, item.assignee):
        return "the audit rows do not lead to the state of the item"
    return None


def _line_of(conn: Connection, item: Item) -> TransferLine:
    query = select(rulings).where(rulings.c.item_id == item.id).order_by(rulings.c.id == item.ruling_id, rulings.c.id)
    names = (rulings.c.verdict, rulings.c.text, rulings.c.correct, rulings.c.by, rulings.c.at)
    given = conn.execute(query.with_only_columns(*names)).all()
    return TransferLine(
        item=ItemLine.model_validate(item, from_attributes=True),
        document=read_document(conn, item.id),
        rulings=tuple(RulingLine.model_validate(each, from_attributes=True) for each in given),
        comments=tuple(CommentLine.model_validate(each, from_attributes=True) for each in read_comments(conn, item.id)),
        audit=tuple(AuditLine.model_validate(each, from_attributes=True) for each in audit.rows_of(conn, item.id)),
    )
