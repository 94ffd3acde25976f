"""State changes of an item: each checks the table of moves, changes the item's row and adds an audit row."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, bindparam, delete, insert, inspect, select, update
from sqlalchemy.exc import IntegrityError

from semgrad_guard.errors import (
    AccountError,
    AlreadyClaimedError,
    AssignedError,
    IllegalMoveError,
    UndoRefusedError,
    VerdictChangedError,
)
from semgrad_guard.flow import ReviewId
from semgrad_guard.review.store import audit, outbox, waking
from semgrad_guard.review.store.audit import AuditEvent, Change
from semgrad_guard.review.store.document import storable
from semgrad_guard.review.store.items import MOVES, SETTLED, AtExpiry, Event, State, allowed_from
from semgrad_guard.review.store.read import item_of, read_item
from semgrad_guard.review.store.schema import FTS_TABLE, comments, documents, items, rulings, search, users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from semgrad_guard.review.store.database import Transaction
    from semgrad_guard.review.store.items import AuditRow, Item, QueueSettings

_ADMIN = "admin"
CLOCK = "clock"
"""Name in the audit trail for changes by time: a lease or a deadline ended."""

_LAPSED_AT_ONCE = 100
_UPDATE = update(items).where(items.c.id == bindparam("its_id"), items.c.version == bindparam("its_version"))
_INSERT_RULING = insert(rulings).returning(rulings.c.id)
_FREE_FIRST = (
    select(items)
    .where(items.c.state == State.PENDING, (items.c.assignee.is_(None)) | (items.c.assignee == bindparam("reviewer")))
    .order_by(items.c.rank, items.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_IS_LAPSED = and_(items.c.state == State.CLAIMED, items.c.held_until <= bindparam("now"))
_IS_LATE = and_(items.c.state.in_([State.PENDING, State.CLAIMED]), items.c.deadline_at <= bindparam("now"))

_VERDICT_OF = {Event.APPROVE: State.APPROVED, Event.EDIT: State.EDITED, Event.REJECT: State.REJECTED}
_AT_EXPIRY = {
    AtExpiry.EXPIRE: (State.EXPIRED, ""),
    AtExpiry.APPROVE: (State.APPROVED, None),
    AtExpiry.REJECT: (State.REJECTED, "the deadline passed without a verdict"),
}


def claim(tx: Transaction, item_id: str, by: str, settings: QueueSettings) -> Item:
    """Claim an item for a reviewer until a lease ends, or renew the holder's lease."""
    item = freed(tx, read_item(tx.conn, item_id, lock=True), by)
    check_assigned(tx, item, by)
    event = Event.RENEW if item.state is State.CLAIMED else Event.CLAIM
    until = tx.now + timedelta(seconds=settings.lease_s)
    return _move(tx, item, AuditEvent(event, by), State.CLAIMED, holder=by, held_until=until)


def claim_next(tx: Transaction, by: str, settings: QueueSettings, skip: frozenset[str]) -> Item | None:
    """Claim the riskiest item for a reviewer; items held by or assigned to others are skipped."""
    _lapse_some(tx)
    query = _FREE_FIRST.where(items.c.id.not_in(skip)) if skip else _FREE_FIRST
    row = tx.conn.execute(query, {"reviewer": account_of(by)}).mappings().first()
    if row is None:
        return None
    until = tx.now + timedelta(seconds=settings.lease_s)
    return _move(tx, item_of(row), AuditEvent(Event.CLAIM, by), State.CLAIMED, holder=by, held_until=until)


def release(tx: Transaction, item_id: str, by: str, *, force: bool = False, on_behalf_of: str | None = None) -> Item:
    """Put a claimed item back; only its holder may, unless `force`."""
    item = read_item(tx.conn, item_id, lock=True)
    if not force and item.is_held_by_other(by, tx.now):
        raise AlreadyClaimedError(item.id, str(item.holder))
    happening = AuditEvent(Event.RELEASE, by, _on_behalf_of(on_behalf_of))
    return _move(tx, item, happening, State.PENDING, holder=None, held_until=None)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A change that time makes to all items that match a condition."""

    condition: ColumnElement[bool]
    """Uses the parameter `now`."""
    change: Callable[[Transaction, Item], object]

    def all(self, tx: Transaction, *, limit: int) -> int:
        """Change some items; return how many. Those that another session holds are left out."""
        query = select(items).where(self.condition).limit(limit).with_for_update(skip_locked=True)
        found = [item_of(row) for row in tx.conn.execute(query, {"now": tx.now}).mappings()]
        for item in found:
            self.change(tx, item)
        return len(found)

    def one(self, tx: Transaction, item_id: str) -> int:
        """Change one item; return 0 when there is nothing to change, or another session holds it."""
        query = select(items).where(self.condition, items.c.id == item_id).with_for_update(skip_locked=True)
        row = tx.conn.execute(query, {"now": tx.now}).mappings().one_or_none()
        if row is not None:
            self.change(tx, item_of(row))
        return int(row is not None)

    def ids(self, conn: Connection, now: datetime, *, after: str, limit: int) -> list[str]:
        """Return the next ids of matching items, in their order."""
        query = select(items.c.id).where(self.condition, items.c.id > after).order_by(items.c.id).limit(limit)
        return list(conn.execute(query, {"now": now}).scalars())


def _lapse_some(tx: Transaction) -> None:
    """Put back items whose lease has ended, as far as none of them fails; the sweep in the background does the rest."""
    query = select(items.c.id).where(_IS_LAPSED).limit(1)
    if tx.conn.execute(query, {"now": tx.now}).first() is not None:
        with suppress(IntegrityError), tx.conn.begin_nested():
            LAPSES.all(tx, limit=_LAPSED_AT_ONCE)


@dataclass(frozen=True, slots=True)
class Judgement:
    """The content of a verdict."""

    text: str | None
    """The edited answer or the reason; `None` where the answer is approved as it is."""
    correct: bool | None
    """Whether the model's answer was right; `None` where it was not judged."""
    on_behalf_of: str | None = None
    """Person for whom a program gives the verdict."""


def settle(tx: Transaction, item_id: str, event: Event, by: str, judgement: Judgement, *, delay_s: float) -> Item:
    """Record the verdict on an item.

    Args:
        tx: the transaction.
        item_id: the item.
        event: `APPROVE`, `EDIT` or `REJECT`.
        by: the reviewer.
        judgement: content of the verdict.
        delay_s: seconds until consumers are notified.
    """
    item = freed(tx, read_item(tx.conn, item_id, lock=True), by)
    check_assigned(tx, item, by)
    happening = AuditEvent(event, by, {"correct": judgement.correct, **_on_behalf_of(judgement.on_behalf_of)})
    return _rule(tx, item, happening, _VERDICT_OF[event], judgement, delay_s=delay_s)


def expire(tx: Transaction, item: Item) -> Item:
    """Settle an item whose deadline has passed, as its `at_expiry` says."""
    state, text = _AT_EXPIRY[item.at_expiry]
    return _rule(
        tx, item, AuditEvent(Event.EXPIRE, CLOCK, is_main=False), state, Judgement(text, correct=None), delay_s=0.0
    )


def abandon(tx: Transaction, item: Item, by: str) -> Item:
    """Mark an open item as expired, without a verdict."""
    happening = AuditEvent(Event.EXPIRE, by, is_main=False)
    return _rule(tx, item, happening, State.EXPIRED, Judgement("", correct=None), delay_s=0.0)


def undo(tx: Transaction, item_id: str, by: str, settings: QueueSettings, *, force: bool = False) -> Item:
    """Undo a verdict; the item returns to the reviewer.

    Args:
        tx: the transaction.
        item_id: the item.
        by: who gave the verdict.
        settings: for how long it can be undone.
        force: allow undoing another reviewer's verdict.

    Raises:
        UndoRefusedError: it is too late, a caller already has the verdict, or another reviewer gave it.
    """
    item = read_item(tx.conn, item_id, lock=True)
    _check(item, Event.UNDO, State.CLAIMED)
    refusal = why_not_undo(tx.conn, item, by, tx.now, settings, force=force)
    if refusal is not None:
        raise UndoRefusedError(item.id, refusal)
    outbox.retract(tx, item.id)
    if outbox.is_told(tx.conn, item.id):  # taken between looking and retracting
        raise UndoRefusedError(item.id, "it was already delivered")
    until = tx.now + timedelta(seconds=settings.lease_s)
    return _move(
        tx,
        item,
        AuditEvent(Event.UNDO, by),
        State.CLAIMED,
        holder=by,
        held_until=until,
        ruling_id=None,
        resolved_at=None,
    )


def why_not_undo(
    conn: Connection, item: Item, by: str, now: datetime, settings: QueueSettings, *, force: bool = False
) -> str | None:
    """Return why the verdict on an item cannot be undone, or `None` when it can."""
    ruling = conn.execute(select(rulings.c.by, rulings.c.at).where(rulings.c.id == item.ruling_id)).one_or_none()
    if ruling is None:
        return "there is none"
    if ruling.by != by and not (force and ruling.by != CLOCK):
        return f"{ruling.by} gave it"
    if now > ruling.at + timedelta(seconds=settings.undo_s):
        return f"it can be undone for {settings.undo_s:g} seconds"
    if item.delivered_at is not None or outbox.is_told(conn, item.id):
        return "it was already delivered"
    return None


_IN_WORDS = {
    Event.APPROVE: "approved it",
    Event.EDIT: "edited it",
    Event.REJECT: "rejected it",
    Event.EXPIRE: "ended it",
    Event.UNDO: "undid the verdict",
}


def check_seen(tx: Transaction, item_id: str, version: int) -> None:
    """Refuse a verdict, or its undoing, by somebody who saw an older version and does not know of a later verdict.

    Raises:
        VerdictChangedError: since that version, the item got a verdict or lost one.
    """
    item = read_item(tx.conn, item_id, lock=True)
    if item.version == version:
        return
    later = audit.verdicts_after(tx.conn, item_id, version)
    if later:
        raise VerdictChangedError(item.id, item.state, _in_words(later))


def result_of(tx: Transaction, done: AuditRow) -> Item:
    """Return the item of an operation that was already carried out.

    Raises:
        VerdictChangedError: the operation gave a verdict, which does not stand any more.
    """
    item = read_item(tx.conn, done.item_id)
    later = audit.verdicts_after(tx.conn, item.id, done.version or 0) if done.event in audit.VERDICT_EVENTS else ()
    if later:
        raise VerdictChangedError(item.id, item.state, _in_words((done, *later)))
    return item


def _in_words(rows: Iterable[AuditRow]) -> str:
    """Return who gave verdicts and took them back, and when."""
    return ", ".join(f"{each.by} {_IN_WORDS[each.event]} at {each.at:%Y-%m-%d %H:%M:%S} UTC" for each in rows)


def assign(tx: Transaction, item_id: str, by: str, assignee: str | None) -> Item:
    """Assign an open item to a reviewer; `None` leaves it open to everyone.

    Raises:
        AssignedError: it is another reviewer's, and `by` is no administrator.
        AccountError: there are accounts, but none of that name is open.
    """
    item = read_item(tx.conn, item_id, lock=True)
    if not item.is_open:
        raise IllegalMoveError(item.id, item.state, "assigned", allowed_from(item.state))
    check_assigned(tx, item, by)
    if assignee is not None:
        _check_account(tx, assignee)
    happening = AuditEvent(Event.ASSIGN, by, {"assignee": assignee})
    return _change(tx, item, happening, item.state, {"assignee": assignee})


def account_of(by: str) -> str:
    """Return the account that somebody acts with; a program's name follows it after a slash."""
    return by.partition("/")[0]


def check_assigned(tx: Transaction, item: Item, by: str) -> None:
    """Refuse a reviewer who is neither the one that the item is assigned to nor an administrator.

    Who has no account works on the database itself, for example by the command line, and is trusted.

    Raises:
        AssignedError: it is another reviewer's.
    """
    account = account_of(by)
    if item.assignee is None or item.assignee == account:
        return
    role = tx.conn.execute(select(users.c.role).where(users.c.name == account)).scalar_one_or_none()
    if role is not None and role != _ADMIN:
        raise AssignedError(item.id, item.assignee)


def _check_account(tx: Transaction, name: str) -> None:
    """Refuse a name that no open account has, where there are accounts."""
    is_open = tx.conn.execute(select(users.c.active).where(users.c.name == name)).scalar_one_or_none()
    if not is_open and tx.conn.execute(select(users.c.name).limit(1)).first() is not None:
        msg = f"there is no open account {name!r}: `semgrad-guard review user list` shows them"
        raise AccountError(msg)


def comment(tx: Transaction, item_id: str, by: str, text: str) -> None:
    """Add a comment to an item, in any state."""
    item = read_item(tx.conn, item_id)
    tx.conn.execute(insert(comments).values(item_id=item.id, by=by, at=tx.now, text=storable(text)))
    audit.record(tx, item.id, AuditEvent(Event.COMMENT, by))


def deliver(tx: Transaction, item: Item, to: str) -> None:
    """Record that a waiting caller has the verdict."""
    if item.delivered_at is None:
        tx.conn.execute(update(items).where(items.c.id == item.id).values(delivered_at=tx.now))
        audit.record(tx, item.id, AuditEvent(Event.DELIVER, to))


def freed(tx: Transaction, item: Item, by: str) -> Item:
    """Return the item free for `by`; the end of another reviewer's lease is recorded first.

    Raises:
        AlreadyClaimedError: another reviewer's lease still runs.
    """
    if item.state is not State.CLAIMED or item.holder == by:
        return item
    if item.is_held_by_other(by, tx.now):
        raise AlreadyClaimedError(item.id, str(item.holder))
    return _lapse(tx, item)


def _on_behalf_of(person: str | None) -> dict[str, str]:
    """Return the audit detail that names the person for whom a program acts."""
    return {} if person is None else {"on_behalf_of": person}


def _lapse(tx: Transaction, item: Item) -> Item:
    happening = AuditEvent(Event.LAPSE, CLOCK, {"holder": item.holder}, is_main=False)
    return _change(tx, item, happening, State.PENDING, {"holder": None, "held_until": None})


LAPSES = Sweep(_IS_LAPSED, _lapse)
"""Puts back items whose lease has ended."""
EXPIRIES = Sweep(_IS_LATE, expire)
"""Settles items whose deadline has passed."""


def _rule(
    tx: Transaction, item: Item, happening: AuditEvent, state: State, judgement: Judgement, *, delay_s: float
) -> Item:
    _check(item, happening.event, state)
    ruling = {
        "item_id": item.id,
        "verdict": str(state),
        "text": None if judgement.text is None else storable(judgement.text),
        "correct": judgement.correct,
        "by": happening.by,
        "at": tx.now,
    }
    ruling_id: int = tx.conn.execute(_INSERT_RULING, ruling).scalar_one()
    values = {"holder": None, "held_until": None, "ruling_id": ruling_id, "resolved_at": tx.now}
    settled = _change(tx, item, happening, state, values)
    outbox.announce(tx, [item.id], outbox.VERDICT, ruling_id=ruling_id, delay_s=delay_s)
    waking.announce(tx, item.id)
    return settled


def _move(tx: Transaction, item: Item, happening: AuditEvent, state: State, **values: Any) -> Item:
    _check(item, happening.event, state)
    return _change(tx, item, happening, state, values)


def _check(item: Item, event: Event, wanted: State) -> None:
    move = MOVES[event]
    if item.state not in move.start or wanted not in move.end:
        raise IllegalMoveError(item.id, item.state, wanted, allowed_from(item.state))


def _change(tx: Transaction, item: Item, happening: AuditEvent, state: State, values: dict[str, Any]) -> Item:
    """Write the change, unless the item has changed since it was read."""
    version = item.version + 1
    changed = {"state": state, "version": version, "updated_at": tx.now, **values}
    if tx.conn.execute(_UPDATE, {"its_id": item.id, "its_version": item.version, **changed}).rowcount != 1:
        now = read_item(tx.conn, item.id)  # someone else changed it between reading and writing
        raise IllegalMoveError(item.id, now.state, state, allowed_from(now.state))
    audit.record(tx, item.id, happening, Change(item.state, state, version))
    return replace(item, **changed)


def erase(tx: Transaction, review_ids: Iterable[str], by: str) -> int:
    """Remove every text of the items; return how many had any. An open item ends as expired, since it cannot be judged.

    Question, prompt, answer, passages, metadata, edited answers, reasons and comments go. What stays is which item was
    in which state, who judged it when, its confidence, its rule and its tags.
    """
    erased = sum(_erase(tx, review_id, by) for review_id in review_ids)
    if erased and tx.conn.dialect.name == "sqlite" and inspect(tx.conn).has_table(FTS_TABLE):
        # Deleted words stay in the index's old segments until these are merged.
        tx.conn.exec_driver_sql("INSERT INTO semgrad_search_fts(semgrad_search_fts) VALUES ('optimize')")
    return erased


def due(conn: Connection, before: datetime, limit: int) -> list[ReviewId]:
    """Return settled items that were submitted before a given time and still have texts."""
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
        abandon(tx, item, by)
    for table in (documents, search):
        tx.conn.execute(delete(table).where(table.c.item_id == item.id))
    for table in (comments, rulings):
        tx.conn.execute(update(table).where(table.c.item_id == item.id).values(text=""))
    blank = {"title": "", "preview": "", "question_key": None, "erased_at": tx.now}
    tx.conn.execute(update(items).where(items.c.id == item.id).values(**blank))
    audit.record(tx, item.id, AuditEvent(Event.ERASE, by, is_main=False))
    return True
