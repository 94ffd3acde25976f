"""Transactions on the queue's database: set up once, retried while a fault passes, and typed errors for the rest."""

from __future__ import annotations

import secrets
import sqlite3
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from semgrad_guard.errors import QueueUnavailableError
from semgrad_guard.review.address import masked, parse_url
from semgrad_guard.review.engines import WRITES, make_engine
from semgrad_guard.review.faults import is_passing
from semgrad_guard.review.store.migrate import ensure_current

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from datetime import datetime

    from sqlalchemy import Connection, Engine

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction under way."""

    conn: Connection
    now: datetime
    op: str
    """Name of the operation; stays the same when the transaction is tried again."""
    retried: bool
    """True from the second try on: an earlier commit may have gone through unseen."""


class Database:
    """The queue's database. It is safe to share between threads, and a forked child opens connections of its own."""

    def __init__(
        self, url: str, *, clock: Callable[[], datetime], sleep: Callable[[float], None], retry_s: float
    ) -> None:
        """Keep the address; nothing is opened before the first transaction."""
        self.url = parse_url(url)
        self.shown_url = masked(self.url)
        self.clock = clock
        self._sleep = sleep
        self._retry_s = retry_s
        self._engine = make_engine(self.url, busy_s=retry_s / 2)
        self._ready = False
        self._set_up = threading.Lock()

    @property
    def engine(self) -> Engine:
        """The engine, for migrations and tests."""
        return self._engine

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    def read(self, work: Callable[[Connection], T]) -> T:
        """Return what `work` reads in one transaction.

        Raises:
            QueueUnavailableError: the database cannot be reached or is not set up.
        """
        return self._retrying(lambda _: self._run(work, writes=False), verb="answer")

    def write(self, work: Callable[[Transaction], T], *, op: str | None = None) -> T:
        """Return the result of `work`, committed; `work` may run several times and must touch nothing but the database.

        Args:
            work: what to do in the transaction.
            op: name of the operation where the caller has one that outlives this call.

        Raises:
            QueueUnavailableError: it could not be committed.
        """
        name = op or secrets.token_hex(16)

        def attempt(number: int) -> T:
            return self._run(
                lambda conn: work(Transaction(conn, self.clock(), name, op is not None or number > 1)), writes=True
            )

        return self._retrying(attempt, verb="take the write")

    def migrate(self) -> tuple[str | None, str]:
        """Bring the database to the newest revision; return the one before and the one now."""
        from semgrad_guard.review.store.migrate import migrate  # noqa: PLC0415 - reaches for the extra `review`

        def attempt(_: int) -> tuple[str | None, str]:
            with self._transaction(writes=True) as conn:
                return migrate(conn, self.shown_url)

        return self._retrying(attempt, verb="take the migration")

    def truncate_log(self) -> None:
        """Let SQLite forget the pages it has yet to move into the file, where erased texts may still stand."""
        if self.dialect == "sqlite":
            connection = self._engine.raw_connection()  # a checkpoint can't run within a transaction
            try:
                with suppress(sqlite3.OperationalError):  # a reader is in the way: the next checkpoint does it
                    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _run(self, work: Callable[[Connection], T], *, writes: bool) -> T:
        if not self._ready:
            with self._set_up:
                if not self._ready:
                    self._prepare()
                    self._ready = True
        with self._transaction(writes=writes) as conn:
            return work(conn)

    def _prepare(self) -> None:
        with self._transaction(writes=True) as conn:
            ensure_current(conn, self.shown_url)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Generator[Connection]:
        with self._engine.connect() as plain:
            conn = plain.execution_options(**{WRITES: writes})
            with conn.begin():
                yield conn

    def _retrying(self, attempt: Callable[[int], T], *, verb: str) -> T:
        retrying = Retrying(
            stop=stop_after_delay(self._retry_s),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            retry=retry_if_exception(is_passing),
            sleep=self._sleep,
            reraise=True,
        )
        tries = iter(range(1, 1_000_000))
        try:
            return retrying(lambda: attempt(next(tries)))
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            msg = (
                f"the review queue at {self.shown_url} did not {verb}: {reason}; "
                "check that the database is reachable, writable and has space left"
            )
            raise QueueUnavailableError(msg) from error
