"""The audit trail: one row per event, written in its transaction and never changed, and the replay of its rows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import insert, select

from semgrad_guard.flow import ReviewId
from semgrad_guard.review.store.items import AuditRow, Event, State
from semgrad_guard.review.store.schema import audit

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, RowMapping

    from semgrad_guard.flow import Json
    from semgrad_guard.review.store.database import Transaction

_INSERT = insert(audit)
VERDICT_EVENTS = frozenset({Event.APPROVE, Event.EDIT, Event.REJECT, Event.EXPIRE, Event.UNDO})
"""Events that give an item its verdict or take it back."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """What happened to an item, and who did it."""

    event: Event
    by: str
    detail: Mapping[str, Json] = field(default_factory=dict[str, "Json"])
    """Further facts, never a text that a person wrote."""
    is_main: bool = True
    """False for a side effect of the operation."""


@dataclass(frozen=True, slots=True)
class Change:
    """How an event changed its item."""

    before: State | None
    after: State
    version: int
    """The item's version afterwards."""


def record(tx: Transaction, item_id: str, happening: AuditEvent, change: Change | None = None) -> None:
    """Add one row to the trail, in the transaction of the event itself."""
    tx.conn.execute(_INSERT, row(tx, item_id, happening, change))


def record_all(tx: Transaction, rows: Sequence[Mapping[str, object]]) -> None:
    """Add rows made by `row` to the trail."""
    if rows:
        tx.conn.execute(_INSERT, rows)


def row(tx: Transaction, item_id: str, happening: AuditEvent, change: Change | None = None) -> Mapping[str, object]:
    """Return the row of an event."""
    return {
        "item_id": item_id,
        "version": change.version if change else None,
        "event": happening.event,
        "from_state": change.before if change else None,
        "to_state": change.after if change else None,
        "by": happening.by,
        "at": tx.now,
        "detail": json.dumps(dict(happening.detail)),
        "op": tx.op if happening.is_main else None,
    }


def row_of_operation(tx: Transaction) -> AuditRow | None:
    """Return what this operation already did, if an earlier attempt was committed."""
    if not tx.retried:
        return None
    found = tx.conn.execute(select(audit).where(audit.c.op == tx.op)).mappings().one_or_none()
    return None if found is None else _row(found)


def verdicts_after(conn: Connection, item_id: str, version: int) -> tuple[AuditRow, ...]:
    """Return the events after an item's version that gave it a verdict or took one back, oldest first."""
    query = select(audit).where(
        audit.c.item_id == item_id, audit.c.version > version, audit.c.event.in_(sorted(VERDICT_EVENTS))
    )
    return tuple(_row(each) for each in conn.execute(query.order_by(audit.c.version)).mappings())


def submitter_of(conn: Connection, item_id: str) -> str | None:
    """Return who submitted an item, or `None` where the trail does not say so."""
    query = select(audit.c.by).where(audit.c.item_id == item_id, audit.c.event == Event.SUBMIT)
    return conn.execute(query.order_by(audit.c.seq).limit(1)).scalar_one_or_none()


def rows_of(conn: Connection, item_id: str) -> tuple[AuditRow, ...]:
    """Return the audit rows of an item, oldest first."""
    query = select(audit).where(audit.c.item_id == item_id).order_by(audit.c.seq)
    return tuple(_row(each) for each in conn.execute(query).mappings())


def rows_after(conn: Connection, seq: int, limit: int) -> tuple[AuditRow, ...]:
    """Return the trail of all items after row `seq`, oldest first."""
    query = select(audit).where(audit.c.seq > seq).order_by(audit.c.seq).limit(limit)
    return tuple(_row(each) for each in conn.execute(query).mappings())


def _row(row: RowMapping) -> AuditRow:
    return AuditRow(
        seq=row["seq"],
        item_id=ReviewId(row["item_id"]),
        version=row["version"],
        event=Event(row["event"]),
        from_state=State(row["from_state"]) if row["from_state"] else None,
        to_state=State(row["to_state"]) if row["to_state"] else None,
        by=row["by"],
        at=row["at"],
        detail=json.loads(row["detail"]),
    )


@dataclass(frozen=True, slots=True)
class Replayed:
    """The state of one item according to its audit trail."""

    state: State | None
    version: int
    holder: str | None
    assignee: str | None


class Traced(Protocol):
    """The fields of an audit row that a replay reads."""

    @property
    def version(self) -> int | None: ...  # noqa: D102 - see `AuditRow`
    @property
    def event(self) -> Event: ...  # noqa: D102 - see `AuditRow`
    @property
    def to_state(self) -> State | None: ...  # noqa: D102 - see `AuditRow`
    @property
    def by(self) -> str: ...  # noqa: D102 - see `AuditRow`
    @property
    def detail(self) -> Mapping[str, object]: ...  # noqa: D102 - see `AuditRow`


def replay(rows: Iterable[Traced]) -> Replayed:
    """Return the state that the rows of one item lead to; rows that change nothing are skipped."""
    now = Replayed(None, 0, None, None)
    for row in rows:
        if row.version is None:
            continue
        holder = row.by if row.to_state is State.CLAIMED and row.event in _TAKES_HOLD else now.holder
        assignee = row.detail.get("assignee") if row.event in _SETS_ASSIGNEE else now.assignee
        now = Replayed(
            state=row.to_state,
            version=row.version,
            holder=holder if row.to_state is State.CLAIMED else None,
            assignee=assignee if isinstance(assignee, str) else None,
        )
    return now


_TAKES_HOLD = frozenset({Event.CLAIM, Event.RENEW, Event.UNDO})
_SETS_ASSIGNEE = frozenset({Event.ASSIGN, Event.IMPORT})
