"""Acting on what happens in the queue: each thing once, again after a failure, and never two at a time on one thing."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from semgrad_guard.review.outbox import Delivery
    from semgrad_guard.review.queue import SqlReviewQueue

logger = logging.getLogger(__name__)

_LEASE_S = 60.0
_BATCH = 20


def consume(queue: SqlReviewQueue, consumer: str, act: Callable[[Delivery], None], *, limit: int = _BATCH) -> int:
    """Act on what the consumer is to be told now; return how many succeeded.

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
    stop: Event, queue: SqlReviewQueue, consumer: str, act: Callable[[Delivery], None], *, every_s: float = 1.0
) -> None:
    """Act on what happens until `stop` is set; meant for a thread of its own."""
    while not stop.is_set():
        try:
            idle = consume(queue, consumer, act) == 0
        except Exception:
            logger.exception("consumer %s could not reach the queue", consumer)
            idle = True
        if idle:
            stop.wait(every_s)
