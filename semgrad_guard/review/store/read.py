"""Queries on the queue: one item, pages of items, and statistics."""

from __future__ import annotations

import base64
import binascii
import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    inspect,
    literal,
    or_,
    select,
    table,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.types import Integer

from semgrad_guard.errors import AmbiguousIdError, CursorError, ItemNotFoundError, ReviewError
from semgrad_guard.flow import ExchangeId, ReviewId, Ruling, Verdict
from semgrad_guard.review.store.document import Document, storable
from semgrad_guard.review.store.items import OPEN, AtExpiry, Comment, Filters, Item, ItemDetail, Page, Sort, State
from semgrad_guard.review.store.schema import FTS_TABLE, UtcDateTime, comments, documents, items, rulings, search, tags

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Column, Connection, FromClause, RowMapping, Select

_SHORTEST_PREFIX = 4
ERASED = "the texts of this answer were erased before they were fetched"
"""What a caller reads who waits for an item that was erased."""
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
        AmbiguousIdError: several ids start with it.
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
    """Return the document of an item, or `None` when it was erased."""
    body = conn.execute(_DOCUMENT, {"item_id": item_id}).scalar_one_or_none()
    return None if body is None else Document.model_validate_json(body)


def read_comments(conn: Connection, item_id: str) -> tuple[Comment, ...]:
    """Return the comments on an item, oldest first."""
    rows = conn.execute(select(comments).where(comments.c.item_id == item_id).order_by(comments.c.id)).mappings()
    return tuple(Comment(id=row["id"], by=row["by"], at=row["at"], text=row["text"]) for row in rows)


def read_ruling(conn: Connection, item: Item) -> Ruling | None:
    """Return the verdict on an item, or `None` while it has none.

    Once its texts were erased there is nothing to give: the verdict then is that it expired, and its text says why.
    """
    if item.ruling_id is None:
        return None
    row = conn.execute(select(rulings).where(rulings.c.id == item.ruling_id)).mappings().one()
    if item.erased_at is not None:
        return Ruling(review_id=item.id, verdict=Verdict.EXPIRED, text=ERASED, by=row["by"], at=row["at"])
    return ruling_from(row, read_document(conn, item.id) if row["text"] is None else None)


def ruling_of(conn: Connection, item: Item, document: Document | None) -> Ruling | None:
    """Return the verdict on an item whose document was already read."""
    if item.ruling_id is None:
        return None
    row = conn.execute(select(rulings).where(rulings.c.id == item.ruling_id)).mappings().one()
    return ruling_from(row, document)


def ruling_from(row: RowMapping, document: Document | None) -> Ruling:
    """Return the verdict of a row of `semgrad_rulings`; the text of an unchanged answer comes from the document."""
    text = row["text"]
    if text is None:
        text = document.answer if document is not None else ""
    return Ruling(
        review_id=ReviewId(row["item_id"]), verdict=Verdict(row["verdict"]), text=text, by=row["by"], at=row["at"]
    )


@dataclass(frozen=True, slots=True)
class _Order:
    key: Column[Any]
    ascending: bool = True


_ORDERS = {
    Sort.RISK: _Order(items.c.rank),
    Sort.NEWEST: _Order(items.c.created_at, ascending=False),
    Sort.OLDEST: _Order(items.c.created_at),
    Sort.DEADLINE: _Order(items.c.deadline_at),
}
MOST_PER_PAGE = 200
MOST_WORDS = 100
"""Words that one search takes."""


def list_items(conn: Connection, filters: Filters, sort: Sort, cursor: str | None, limit: int) -> Page:
    """Return one page of the items that match the filters.

    Raises:
        CursorError: the cursor does not come from an earlier page in this order.
    """
    limit = max(1, min(limit, MOST_PER_PAGE))
    order = _ORDERS[sort]
    conditions = [*_conditions(conn, filters)]
    if sort is Sort.DEADLINE:
        conditions.append(items.c.deadline_at.is_not(None))
    if cursor is not None:
        conditions.append(_behind(order, sort, cursor))
    query = _page(filters.states or frozenset(State), conditions, order, limit + 1)
    rows = conn.execute(query).mappings().all()
    more = len(rows) > limit
    shown = rows[:limit]
    return Page(
        items=tuple(item_of(row) for row in shown), next_cursor=_cursor(shown[-1], order, sort) if more else None
    )


def counts(conn: Connection) -> dict[State, int]:
    """Return how many items are in each state."""
    rows = conn.execute(select(items.c.state, func.count()).group_by(items.c.state)).all()
    found: dict[str, int] = {row[0]: row[1] for row in rows}
    return {state: found.get(state, 0) for state in State}


def count_up_to(conn: Connection, filters: Filters, limit: int) -> int:
    """Return how many items match the filters, counting no further than `limit`."""
    conditions = _conditions(conn, filters)
    if filters.states:
        conditions.append(items.c.state.in_(sorted(filters.states)))
    some = select(literal(1)).select_from(items).where(*conditions).limit(limit).subquery()
    return conn.execute(select(func.count()).select_from(some)).scalar_one()


def _page(states: frozenset[State], conditions: list[ColumnElement[bool]], order: _Order, limit: int) -> Select[Any]:
    """Return the query for the first items in any of the states.

    The first items of each state are read from the index that begins with the state, and these few are merged: an
    index cannot order several states together, and sorting all their items would take longer as the queue grows.
    """
    firsts = [
        _ordered(select(items).where(items.c.state == state, *conditions), order, items).limit(limit)
        for state in sorted(states)
    ]
    if len(firsts) == 1:
        return firsts[0]
    merged = union_all(*(select(each.subquery()) for each in firsts)).subquery()
    return _ordered(select(merged), order, merged).limit(limit)


def _conditions(conn: Connection, filters: Filters) -> list[ColumnElement[bool]]:
    equal = [(items.c.assignee, filters.assignee), (items.c.holder, filters.holder), (items.c.rule, filters.rule)]
    least = [(items.c.confidence, filters.min_confidence), (items.c.created_at, filters.created_after)]
    conditions: list[ColumnElement[bool]] = [key == value for key, value in equal if value is not None]
    conditions += [key >= value for key, value in least if value is not None]
    if filters.max_confidence is not None:
        conditions.append(items.c.confidence <= filters.max_confidence)
    if filters.created_before is not None:
        conditions.append(items.c.created_at < filters.created_before)
    conditions += [items.c.id.in_(select(tags.c.item_id).where(tags.c.tag == tag)) for tag in sorted(filters.tags)]
    words = storable(filters.text).split()
    if len(words) > MOST_WORDS:
        msg = f"a search for {len(words)} words is too much: give {MOST_WORDS} at most"
        raise ReviewError(msg)
    if words:
        conditions.append(items.c.id.in_(_matching(conn, words)))
    return conditions


def with_any_word(conn: Connection, words: list[str]) -> Select[Any]:
    """Return the query for ids of items whose texts contain at least one of the words."""
    return _matching(conn, words[:MOST_WORDS], need_all=False)


def _matching(conn: Connection, words: list[str], *, need_all: bool = True) -> Select[Any]:
    if conn.dialect.name == "postgresql":
        query: ColumnElement[Any] = func.plainto_tsquery(text("'simple'"), words[0])
        for word in words[1:]:
            query = query.op("&&" if need_all else "||")(func.plainto_tsquery(text("'simple'"), word))
        return select(search.c.item_id).where(func.to_tsvector(text("'simple'"), search.c.body).bool_op("@@")(query))
    if not inspect(conn).has_table(FTS_TABLE):
        join = and_ if need_all else or_
        return select(search.c.item_id).where(join(*(search.c.body.icontains(word, autoescape=True) for word in words)))
    index = table(FTS_TABLE, column("rowid"))
    quoted = (" " if need_all else " OR ").join('"' + word.replace('"', '""') + '"' for word in words)
    found = select(index.c.rowid).where(text(f"{FTS_TABLE} MATCH :words").bindparams(words=quoted))
    return select(search.c.item_id).where(search.c.seq.in_(found))


def _ordered(query: Select[Any], order: _Order, rows: FromClause) -> Select[Any]:
    """Return the query in an order of the rows that it reads, `items` or a part of them."""
    keys = (rows.c[order.key.name], rows.c.id)
    return query.order_by(*(keys if order.ascending else (key.desc() for key in keys)))


def _behind(order: _Order, sort: Sort, cursor: str) -> ColumnElement[bool]:
    value, item_id = _read_cursor(order, sort, cursor)
    here = tuple_(order.key, items.c.id)
    there = tuple_(literal(value, order.key.type), literal(item_id))
    return here > there if order.ascending else here < there


def _cursor(row: RowMapping, order: _Order, sort: Sort) -> str:
    value = row[order.key.name]
    shown = value.isoformat() if isinstance(order.key.type, UtcDateTime) else value
    return base64.urlsafe_b64encode(json.dumps([sort, shown, row["id"]]).encode()).decode()


def _read_cursor(order: _Order, sort: Sort, cursor: str) -> tuple[datetime | float, str]:
    try:
        named, value, item_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        moment = datetime.fromisoformat(value) if isinstance(order.key.type, UtcDateTime) else float(value)
    except (ValueError, TypeError, OverflowError, RecursionError, binascii.Error) as error:
        raise CursorError from error
    is_known = moment.tzinfo is not None if isinstance(moment, datetime) else math.isfinite(moment)
    if named != sort or not is_known or not isinstance(item_id, str) or storable(item_id) != item_id:
        raise CursorError
    return moment, item_id


BANDS = 10
"""Statistics group confidences by tenths."""


@dataclass(frozen=True, slots=True)
class Band:
    """Judged answers whose confidence lay in one tenth."""

    low: float
    high: float
    n: int
    n_correct: int
    mean_confidence: float

    @property
    def share_correct(self) -> float:
        """Share of the answers that people found right, in [0, 1]."""
        return self.n_correct / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Insight:
    """Statistics of the queue at one moment."""

    by_state: Mapping[State, int]
    oldest_at: datetime | None
    """When the oldest open item was submitted."""
    judged_last_day: int
    bands: tuple[Band, ...]
    """Only tenths in which answers were judged, lowest first."""

    @property
    def n_judged(self) -> int:
        """Number of judged answers that have a confidence."""
        return sum(band.n for band in self.bands)

    @property
    def calibration_error(self) -> float | None:
        """Mean gap between confidence and share correct over the tenths, weighted by answers; `None` without any."""
        if not self.n_judged:
            return None
        return sum(band.n * abs(band.mean_confidence - band.share_correct) for band in self.bands) / self.n_judged


def insight(conn: Connection, now: datetime) -> Insight:
    """Return statistics of the queue."""
    oldest = select(func.min(items.c.created_at)).where(items.c.state.in_(sorted(OPEN)))
    recent = select(func.count()).select_from(rulings).where(rulings.c.at > now - timedelta(days=1))
    return Insight(
        by_state=counts(conn),
        oldest_at=conn.execute(oldest).scalar_one(),
        judged_last_day=conn.execute(recent.where(rulings.c.correct.is_not(None))).scalar_one(),
        bands=_bands(conn),
    )


def _bands(conn: Connection) -> tuple[Band, ...]:
    tenth = case((items.c.confidence >= 1.0, BANDS - 1), else_=cast(func.floor(items.c.confidence * BANDS), Integer))
    query = (
        select(
            tenth.label("tenth"),
            func.count().label("n"),
            func.sum(case((rulings.c.correct, 1), else_=0)).label("n_correct"),
            func.avg(items.c.confidence).label("mean"),
        )
        .join(rulings, items.c.ruling_id == rulings.c.id)
        .where(rulings.c.correct.is_not(None), items.c.confidence.is_not(None))
        .group_by("tenth")
        .order_by("tenth")
    )
    return tuple(
        Band(row.tenth / BANDS, (row.tenth + 1) / BANDS, row.n, int(row.n_correct), float(row.mean))
        for row in conn.execute(query)
    )
