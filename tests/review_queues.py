"""Queues, exchanges and a clock for the tests of the review queue."""

from __future__ import annotations

import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, event, make_url, text

from semgrad_guard.flow import Confidence, Decision, Exchange, HumanReview, Passage
from semgrad_guard.review import QueueSettings, SqlReviewQueue, open_queue
from semgrad_guard.review.store.migrate import create_current

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

POSTGRES = os.environ.get("SEMGRAD_TEST_POSTGRES_URL")
DATABASES = ("sqlite", "postgresql")


@dataclass
class FakeClock:
    """A clock that moves only when told to; sleeping moves it too."""

    now: datetime = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> datetime:
        """Return the moment."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += timedelta(seconds=seconds)

    def sleep(self, seconds: float) -> None:
        """Let time pass, and remember it."""
        self.slept.append(seconds)
        self.advance(seconds)


def exchange(n: int = 0, *, tags: tuple[str, ...] = (), **fields: object) -> Exchange:
    """Return exchange number `n`."""
    given = {
        "question": f"What is element {n}?",
        "prompt": f"Answer from the passages. What is element {n}?",
        "answer": f"Element {n} is a metal. It is soft.",
        "passages": (Passage(f"Element {n} is a soft metal.", "elements.txt", 0.5),),
    }
    return Exchange(**{**given, "tags": frozenset(tags), **fields})


def doubtful(asked: Exchange, confidence: float | None = 0.3) -> Decision:
    """Return the decision that hands an exchange to a person."""
    return Decision(
        step=HumanReview(),
        rule="escalate[0].human_review",
        why="confidence is below 0.35",
        exchange_id=asked.id,
        confidence=Confidence(value=confidence),
    )


def submit(queue: SqlReviewQueue, n: int = 0, *, confidence: float | None = 0.3, **fields: object):
    """Submit exchange number `n`; return its review id."""
    asked = exchange(n, **fields)
    return queue.submit(asked, doubtful(asked, confidence))


@contextmanager
def database_url(kind: str, folder: Path) -> Generator[str]:
    """Give the URL of an empty database, which is gone afterwards."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'review.db'}"
        return
    if POSTGRES is None:
        pytest.skip("needs PostgreSQL (set SEMGRAD_TEST_POSTGRES_URL)")
    schema = f"semgrad_test_{secrets.token_hex(6)}"
    admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        url = make_url(POSTGRES).update_query_dict({"options": f"-csearch_path={schema} -csynchronous_commit=off"})
        yield url.render_as_string(hide_password=False)
    finally:
        with admin.connect() as conn:
            conn.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        admin.dispose()


@contextmanager
def ready_url(kind: str, folder: Path) -> Generator[str]:
    """Give the URL of a database in which the queue's tables are ready."""
    with database_url(kind, folder) as url:
        if kind != "sqlite":
            engine = create_engine(url)
            with engine.begin() as conn:
                create_current(conn, url)
            engine.dispose()
        yield url


def without_waiting_for_the_disk(queue: SqlReviewQueue) -> SqlReviewQueue:
    """Return the queue, no longer proof against power cuts; killed processes lose nothing all the same."""
    if queue.database.dialect == "sqlite":
        event.listen(queue.database.engine, "connect", lambda conn, _: conn.execute("PRAGMA synchronous = OFF"))
    return queue


@pytest.fixture(name="empty_url", params=DATABASES)
def _empty_url(request, tmp_path):
    """The URL of a database without tables, once for each kind."""
    with database_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture(name="queue_url", params=DATABASES)
def _queue_url(request, tmp_path):
    """The URL of a database with the queue's tables, once for each kind."""
    with ready_url(request.param, tmp_path) as url:
        yield url


@pytest.fixture(name="clock")
def _clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(name="open_here")
def _open_here(queue_url, clock):
    """Open further queues on the same database: `open_here(**settings)`."""
    opened = []

    def open_one(**settings: object) -> SqlReviewQueue:
        queue = open_queue(queue_url, settings=QueueSettings(**settings), clock=clock, sleep=clock.sleep)
        without_waiting_for_the_disk(queue)
        opened.append(queue)
        return queue

    yield open_one
    for queue in opened:
        queue.close()


@pytest.fixture(name="queue")
def _queue(open_here):
    return open_here()


@pytest.fixture(name="memory_queue")
def _memory_queue(clock):
    """A queue in memory, for promises that do not depend on the database."""
    queue = open_queue("sqlite://", clock=clock, sleep=clock.sleep)
    yield queue
    queue.close()


QUEUE_CALLS = {
    "submit": lambda queue, _: submit(queue, 77),
    "wait": lambda queue, review_id: queue.wait(review_id, 0),
    "list": lambda queue, _: queue.list(),
    "get": lambda queue, review_id: queue.get(review_id, viewer="ann"),
    "claim": lambda queue, _: queue.claim("ann"),
    "approve": lambda queue, review_id: queue.approve(review_id, "ann"),
    "expire": lambda queue, _: queue.expire_deadlines(),
    "lapse": lambda queue, _: queue.expire_leases(),
    "insight": lambda queue, _: queue.insight(),
}
"""What a queue and an item in it may be asked, for promises that all calls keep."""
