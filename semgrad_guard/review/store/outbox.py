"""The outbox: each event reaches every subscribed consumer once, again after a failure, and never two at a time."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import case, delete, insert, literal, select, update

from semgrad_guard.errors import in_log
from semgrad_guard.flow import ReviewId
from semgrad_guard.review.store.schema import UtcDateTime, consumers, deliveries, items

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from threading import Event

    from sqlalchemy import Connection

    from semgrad_guard.review.store.database import Transaction

DUE, DONE, FAILED = "due", "done", "failed"
VERDICT = "verdict"
"""Event of an item that gets its verdict; the other event is `submit`."""
_SUBSCRIBED = select(consumers.c.name, consumers.c.events).where(consumers.c.active)
_MOST_TRIES = 12
_LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event to be delivered to one consumer."""

    id: int
    consumer: str
    item_id: ReviewId
    event: str
    """`submit` or `verdict`."""
    ruling_id: int | None
    tries: int

    @property
    def key(self) -> str:
        """A key that stays the same when this is delivered again: use it to make acting twice harmless."""
        return f"{self.consumer}:{self.event}:{self.item_id}:{self.ruling_id or 0}"


def subscribe(
    tx: Transaction,
    name: str,
    events: Iterable[str],
    *,
    url: str | None = None,
    secret: str | None = None,
    allowed_host: str | None = None,
) -> None:
    """Subscribe a consumer to what happens from now on; a known name is changed."""
    values = {
        "events": json.dumps(sorted(events)),
        "url": url,
        "secret": secret,
        "active": True,
        "allowed_host": allowed_host,
    }
    changed = tx.conn.execute(update(consumers).where(consumers.c.name == name).values(**values)).rowcount
    if not changed:
        tx.conn.execute(insert(consumers).values(name=name, created_at=tx.now, **values))


def backlog(tx: Transaction, name: str, *, delay_s: float) -> int:
    """Queue the verdicts given before a consumer subscribed; return how many.

    Those younger than `delay_s` seconds, which may still be undone, it is told of so much later.
    """
    is_young = items.c.resolved_at > tx.now - timedelta(seconds=delay_s)
    later = tx.now + timedelta(seconds=delay_s)
    known = select(deliveries.c.id).where(
        deliveries.c.consumer == name, deliveries.c.event == VERDICT, deliveries.c.item_id == items.c.id
    )
    missed = select(
        literal(name),
        items.c.id,
        literal(VERDICT),
        items.c.ruling_id,
        literal(DUE),
        literal(0),
        case((is_young, literal(later, UtcDateTime)), else_=literal(tx.now, UtcDateTime)),
    ).where(items.c.ruling_id.is_not(None), ~known.exists())
    names = ["consumer", "item_id", "event", "ruling_id", "status", "tries", "due_at"]
    return tx.conn.execute(insert(deliveries).from_select(names, missed)).rowcount


def unsubscribe(tx: Transaction, name: str) -> None:
    """Unsubscribe a consumer, and drop what was not delivered yet."""
    tx.conn.execute(update(consumers).where(consumers.c.name == name).values(active=False))
    tx.conn.execute(delete(deliveries).where(deliveries.c.consumer == name, deliveries.c.status == DUE))


def announce(
    tx: Transaction, item_ids: Iterable[str], event: str, *, ruling_id: int | None = None, delay_s: float = 0.0
) -> None:
    """Queue an event for every consumer of it, due `delay_s` seconds from now."""
    subscribed = tx.conn.execute(_SUBSCRIBED).all()
    due = [
        {
            "consumer": name,
            "item_id": item_id,
            "event": event,
            "ruling_id": ruling_id,
            "status": DUE,
            "tries": 0,
            "due_at": tx.now + timedelta(seconds=delay_s),
        }
        for name, events in subscribed
        if str(event) in json.loads(events)
        for item_id in item_ids
    ]
    if due:
        tx.conn.execute(insert(deliveries), due)


def take(tx: Transaction, consumer: str, *, limit: int, lease_s: float) -> tuple[Delivery, ...]:
    """Return the deliveries that are due for a consumer, leased to the caller."""
    query = (
        select(deliveries)
        .where(deliveries.c.consumer == consumer, deliveries.c.status == DUE, deliveries.c.due_at <= tx.now)
        .order_by(deliveries.c.due_at, deliveries.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = tuple(
        Delivery(
            id=row["id"],
            consumer=row["consumer"],
            item_id=ReviewId(row["item_id"]),
            event=row["event"],
            ruling_id=row["ruling_id"],
            tries=row["tries"] + 1,
        )
        for row in tx.conn.execute(query).mappings()
    )
    if taken:
        tx.conn.execute(
            update(deliveries)
            .where(deliveries.c.id.in_([each.id for each in taken]))
            .values(tries=deliveries.c.tries + 1, due_at=tx.now + timedelta(seconds=lease_s))
        )
    return taken


def confirm(tx: Transaction, delivery: Delivery) -> None:
    """Mark a delivery as done."""
    tx.conn.execute(
        update(deliveries).where(deliveries.c.id == delivery.id).values(status=DONE, done_at=tx.now, error=None)
    )


def postpone(tx: Transaction, delivery: Delivery, error: str, *, most_tries: int = _MOST_TRIES) -> None:
    """Mark a delivery as failed; it is tried again after longer and longer waits, and given up after `most_tries`."""
    given_up = delivery.tries >= most_tries
    wait_s = min(2.0**delivery.tries, _LONGEST_WAIT_S)
    tx.conn.execute(
        update(deliveries)
        .where(deliveries.c.id == delivery.id)
        .values(status=FAILED if given_up else DUE, due_at=tx.now + timedelta(seconds=wait_s), error=error[:500])
    )


def is_told(conn: Connection, item_id: str) -> bool:
    """True when a consumer already has the verdict on an item."""
    told = select(deliveries.c.id).where(
        deliveries.c.item_id == item_id, deliveries.c.event == VERDICT, deliveries.c.tries > 0
    )
    return conn.execute(told.limit(1)).first() is not None


def retract(tx: Transaction, item_id: str) -> None:
    """Remove the deliveries of a verdict that no consumer has taken yet."""
    mine = (deliveries.c.item_id == item_id, deliveries.c.event == VERDICT, deliveries.c.tries == 0)
    tx.conn.execute(delete(deliveries).where(*mine))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A consumer that is reached by a request to its URL."""

    name: str
    url: str
    secret: str = field(repr=False)
    events: tuple[str, ...]
    allowed_host: str | None = None
    """Host that it may reach although webhooks may usually not."""


def hooks(conn: Connection) -> tuple[Hook, ...]:
    """Return the active webhooks, by name."""
    query = select(consumers).where(consumers.c.active, consumers.c.url.is_not(None)).order_by(consumers.c.name)
    return tuple(
        Hook(
            name=row["name"],
            url=row["url"],
            secret=row["secret"],
            events=tuple(json.loads(row["events"])),
            allowed_host=row["allowed_host"],
        )
        for row in conn.execute(query).mappings()
    )


logger = logging.getLogger(__name__)

_LEASE_S = 60.0
_BATCH = 20


class Deliveries(Protocol):
    """The queue as a source of deliveries."""

    def take(self, consumer: str, *, limit: int, lease_s: float) -> tuple[Delivery, ...]:
        """Return the deliveries that are due for a consumer, leased for so many seconds."""
        ...

    def confirm(self, delivery: Delivery) -> None:
        """Mark a delivery as done."""
        ...

    def postpone(self, delivery: Delivery, error: str) -> None:
        """Mark a delivery as failed; it is tried again later."""
        ...


def consume(queue: Deliveries, consumer: str, act: Callable[[Delivery], None], *, limit: int = _BATCH) -> int:
    """Act on the deliveries that are due; return how many succeeded.

    What fails is tried again later, ever less often. What is cut off between acting and noting it is handed out again
    after a minute, with the same `Delivery.key`.

    Args:
        queue: where things happen.
        consumer: name under which `subscribe` was called.
        act: does something about one delivery; an exception means that it failed.
        limit: how many at most.
    """
    succeeded = 0
    for delivery in queue.take(consumer, limit=limit, lease_s=_LEASE_S):
        try:
            act(delivery)
        except Exception as error:  # noqa: BLE001 - whatever went wrong, the delivery must be tried again
            logger.warning("%s failed, try %d: %s", delivery.key, delivery.tries, type(error).__name__)
            queue.postpone(delivery, f"{type(error).__name__}: {error}")
        else:
            queue.confirm(delivery)
            succeeded += 1
    return succeeded


def consume_until(
    stop: Event, queue: Deliveries, consumer: str, act: Callable[[Delivery], None], *, every_s: float = 1.0
) -> None:
    """Act on deliveries until `stop` is set; meant for a background thread."""
    while not stop.is_set():
        try:
            idle = consume(queue, consumer, act) == 0
        except Exception as error:  # noqa: BLE001 - it is logged, and the work goes on
            logger.warning("consumer %s could not reach the queue: %s", consumer, in_log(error))
            idle = True
        if idle:
            stop.wait(every_s)
