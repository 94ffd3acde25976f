"""Lists of items: filters, orders and keyset pages, whose cost does not grow with the queue."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, and_, column, func, inspect, literal, or_, select, table, text, tuple_, union_all

from semgrad_guard.errors import CursorError
from semgrad_guard.review.reading import item_of
from semgrad_guard.review.store.document import storable
from semgrad_guard.review.store.items import Filters, Page, Sort, State
from semgrad_guard.review.store.schema import FTS_TABLE, UtcDateTime, items, search, tags

if TYPE_CHECKING:
    from sqlalchemy import Column, Connection, FromClause, RowMapping, Select


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


def list_items(conn: Connection, filters: Filters, sort: Sort, cursor: str | None, limit: int) -> Page:
    """Return one page of the items that pass the filters.

    Raises:
        CursorError: the cursor is not one that an earlier page gave for this order.
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
    """Return how many items pass the filters, counting no further than `limit`."""
    conditions = _conditions(conn, filters)
    if filters.states:
        conditions.append(items.c.state.in_(sorted(filters.states)))
    some = select(literal(1)).select_from(items).where(*conditions).limit(limit).subquery()
    return conn.execute(select(func.count()).select_from(some)).scalar_one()


def _page(states: frozenset[State], conditions: list[ColumnElement[bool]], order: _Order, limit: int) -> Select[Any]:
    """Return the query for the first items of any of the states.

    Each state's own first items are read from the index that begins with the state, and these few are merged: an index
    can't give several states in one order, and sorting all their items takes longer the more there are.
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
    if words:
        conditions.append(items.c.id.in_(_matching(conn, words)))
    return conditions


def with_any_word(conn: Connection, words: list[str]) -> Select[Any]:
    """Return the query for ids of items in whose texts at least one of the words occurs."""
    return _matching(conn, words, need_all=False)


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
    except (ValueError, TypeError, binascii.Error) as error:
        raise CursorError from error
    if named != sort or not isinstance(item_id, str):
        raise CursorError
    return moment, item_id
