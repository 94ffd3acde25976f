"""Open a queue: in a database, or on a review site."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, overload

from semgrad_guard.errors import ReviewError
from semgrad_guard.flow import utc_now
from semgrad_guard.review.client import ReviewClient
from semgrad_guard.review.queue import SqlReviewQueue
from semgrad_guard.review.store.items import QueueSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime


@overload
def open_queue(
    url: str,
    *,
    token: None = None,
    settings: QueueSettings | None = None,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> SqlReviewQueue: ...
@overload
def open_queue(
    url: str,
    *,
    token: str,
    settings: QueueSettings | None = None,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> ReviewClient: ...
def open_queue(
    url: str,
    *,
    token: str | None = None,
    settings: QueueSettings | None = None,
    clock: Callable[[], datetime] = utc_now,
    sleep: Callable[[float], None] = time.sleep,
) -> SqlReviewQueue | ReviewClient:
    """Return the queue at a URL; the first use connects to it and sets up a new SQLite file.

    Args:
        url: `sqlite:///file.db`, `sqlite://` (in memory, for trying out), `postgresql://user:password@host/name`, or
            `https://review.example.com`, where `semgrad-guard review serve` runs.
        token: API token, for a review site.
        settings: lease, deadline, undo time, ranking; of these a review site uses only the deadline.
        clock: returns the current time.
        sleep: waits, in seconds.

    Raises:
        ReviewError: the URL does not name a queue, or a token is missing or has no use.
        MissingExtraError: the database driver or the web client is not installed.
    """
    if not url.startswith(("https://", "http://")):
        if token is not None:
            msg = "a token is for a review site, https://review.example.com: a database has its password in the url"
            raise ReviewError(msg)
        return SqlReviewQueue(url, settings or QueueSettings(), clock=clock, sleep=sleep)
    if token is None:
        msg = (
            "a review site needs an API token, and programs that need its database can't work through it: pass "
            "token=..., made there by `semgrad-guard review token add`, or name the database"
        )
        raise ReviewError(msg)
    client = ReviewClient(url, token, sleep=sleep)
    client.deadline_s = settings.deadline_s if settings else None
    return client
