"""The database of a queue: its URL, engine, transactions and retries."""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
import threading
import weakref
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool
from tenacity import Retrying, retry_if_exception, stop_before_delay, wait_random_exponential

from semgrad_guard.errors import QueueUnavailableError, ReviewError, SemGradGuardError
from semgrad_guard.extras import require
from semgrad_guard.review.store.document import storable
from semgrad_guard.review.store.migrate import ensure_current
from semgrad_guard.review.store.time_limits import LIMIT, SilenceWatch, TimeLimit, limit_statements, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

_POSTGRES = "postgresql+psycopg"
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": _POSTGRES,
    "postgresql": _POSTGRES,
    _POSTGRES: _POSTGRES,
}
_SECRET_KEYS = frozenset({"password", "sslpassword", "passfile", "sslkey"})
_ADVICE = "use sqlite:///path/to/file.db or postgresql://user:password@host/database"


def parse_url(text: str) -> URL:
    """Return the database URL with the driver this package uses.

    Raises:
        ReviewError: it is not a URL, or names a database that is not supported. The text itself is not repeated, as
            it may contain a password.
        MissingExtraError: the driver is not installed.
    """
    try:
        url = make_url(text)
    except ArgumentError:
        msg = f"the review url is not a database URL: {_ADVICE}"
        raise ReviewError(msg) from None  # the cause repeats the text
    driver = _DRIVERS.get(url.drivername)
    if driver is None:
        msg = f"the review queue cannot live in {url.drivername!r}: {_ADVICE}"
        raise ReviewError(msg)
    if driver == _POSTGRES:
        require("psycopg", extra="postgres")
    return url.set(drivername=driver)


def masked(url: URL) -> str:
    """Return the URL for display, without password and key files."""
    hidden = {key: "***" for key in url.query if key in _SECRET_KEYS}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def is_memory(url: URL) -> bool:
    """True for an SQLite database that lives only in this process."""
    return url.drivername == "sqlite" and (url.database in {None, "", ":memory:"} or "mode=memory" in str(url.database))


_EARLIEST, _LATEST = datetime(1971, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
"""Moments between which a machine's clock is believed."""
_SHORTEST_CONNECT_S = 2
"""PostgreSQL's library waits no shorter for a server that does not answer at all."""
WRITES = "semgrad_writes"
"""Execution option of a connection: its next transaction writes."""

_SQLITE = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",  # erased texts don't stay in free pages
    # If the process or its container is killed, nothing acknowledged is lost: the system has it. If the machine loses
    # power, the last moments may be missing, but the file stays intact.
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 4000",  # pages: fewer waits for the disk than every 1000
    "PRAGMA cache_size = -16384",  # KiB: the upper levels of every index of a large queue
)


def make_engine(url: URL, *, limit_s: float) -> Engine:
    """Return the engine for a database; a forked child opens new connections.

    Args:
        url: where the database is.
        limit_s: seconds for one call, with all its attempts.
    """
    engine = _sqlite(url, limit_s) if url.drivername == "sqlite" else _postgres(url, limit_s)
    _forget_connections_in_children(engine)
    return engine


def _postgres(url: URL, limit_s: float) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        pool_timeout=limit_s / 4,
        connect_args={"connect_timeout": max(_SHORTEST_CONNECT_S, round(limit_s / 2))},
    )
    limit_statements(engine, limit_s)
    event.listen(engine, "connect", _take_any_text)
    return engine


def _take_any_text(connection: Any, _: ConnectionPoolEntry) -> None:
    """Let a parameter be any text: what PostgreSQL cannot hold is replaced, wherever the text came from."""
    from psycopg.types.string import StrDumper, StrDumperUnknown  # optional

    for base in (StrDumper, StrDumperUnknown):  # the last one is the default

        class _Storable(base):  # type: ignore[misc, valid-type] # one of the two
            def dump(self, obj: str) -> Any:
                return super().dump(storable(obj))

        connection.adapters.register_dumper(str, _Storable)


def _sqlite(url: URL, limit_s: float) -> Engine:
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if is_memory(url) else {}
    engine = create_engine(
        url,
        hide_parameters=True,
        poolclass=QueuePool,
        pool_timeout=limit_s / 2,
        connect_args={"timeout": limit_s / 2, "check_same_thread": False},
        **pool,
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _set_up_sqlite(connection: Any, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # the driver's own BEGIN would come too late to take the write lock
    for setting in _SQLITE:
        connection.execute(setting)
    if connection.execute("PRAGMA journal_mode").fetchone()[0] not in {"wal", "memory"}:
        connection.execute("PRAGMA journal_mode = WAL")


def _begin_sqlite(conn: Connection) -> None:
    limit = conn.get_execution_options().get(LIMIT)
    if isinstance(limit, TimeLimit) and not math.isinf(limit.seconds):
        conn.exec_driver_sql(f"PRAGMA busy_timeout = {milliseconds(limit.left_s / 2)}")  # half, to try once more
    # Taking the write lock at once means a transaction never fails half-way because another one wrote meanwhile.
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get(WRITES) else "BEGIN")


def _forget_connections_in_children(engine: Engine) -> None:
    reference = weakref.ref(engine)

    def forget() -> None:
        parent = reference()
        if parent is not None:
            parent.dispose(close=False)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget)


_SQLITE_PASSING = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR})
_POSTGRES_PASSING = (
    "08",  # connection
    "40",  # serialization failure, deadlock
    "53",  # disk full, out of memory, too many connections
    "55P03",  # lock not available
    "57014",  # the statement took too long
    "57P",  # server shutting down, starting up, or our connection ended by an administrator
)


_POSTGRES_BLOCKED = ("55P03", "57014")


def is_blocked(error: BaseException) -> bool:
    """True when another session's lock held a transaction up; others may go through."""
    return isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) in _POSTGRES_BLOCKED


def is_passing(error: BaseException) -> bool:
    """True when the same transaction may succeed a moment later."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if isinstance(error.orig, sqlite3.Error):
        code = getattr(error.orig, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_PASSING
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return isinstance(error, OperationalError)  # psycopg gives no state when the server can't be reached
    return str(state).startswith(_POSTGRES_PASSING)


def _file_of(url: URL) -> Path | None:
    """Return the file of an SQLite database, or `None` where there is none."""
    if url.drivername != "sqlite" or is_memory(url) or url.database is None:
        return None
    return Path(url.database.removeprefix("file:").partition("?")[0])


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Transaction:
    """A running transaction."""

    conn: Connection
    now: datetime
    op: str
    """Name of the operation; it stays the same when the transaction is tried again."""
    retried: bool
    """True from the second attempt on: an earlier commit may have succeeded unnoticed."""


class Database:
    """The queue's database. It is safe to share between threads, and a forked child opens new connections."""

    def __init__(
        self, url: str, *, clock: Callable[[], datetime], sleep: Callable[[float], None], retry_s: float
    ) -> None:
        """Parse the URL; nothing is opened before the first transaction."""
        self.url = parse_url(url)
        self.shown_url = masked(self.url)
        self._clock = clock
        self._sleep = sleep
        self._retry_s = retry_s
        self._engine = make_engine(self.url, limit_s=retry_s)
        self._watch = SilenceWatch()
        self._path = _file_of(self.url)
        self._identity: tuple[int, int] | None = None
        self._ready = False
        self._set_up = threading.Lock()

    def clock(self) -> datetime:
        """Return the present moment.

        Raises:
            QueueUnavailableError: the machine's clock gives none, or one that leases and deadlines cannot be counted
                from.
        """
        try:
            now = self._clock()
            is_usable = _EARLIEST <= now <= _LATEST
        except Exception as error:
            msg = f"the review queue at {self.shown_url} cannot be used without the time: the clock fails: {error}"
            raise QueueUnavailableError(msg) from error
        if not is_usable:
            msg = f"the review queue at {self.shown_url} cannot be used at {now}: set the clock of this machine"
            raise QueueUnavailableError(msg)
        return now

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
            QueueUnavailableError: the database cannot be reached, does not answer in time or is not set up.
        """
        return self._retrying(lambda _, limit: self._run(work, limit, writes=False), self._limit(), verb="answer")

    def write(
        self,
        work: Callable[[Transaction], T],
        *,
        op: str | None = None,
        limit_s: float | None = None,
        waits_again: bool = True,
    ) -> T:
        """Return the result of `work`, committed; `work` may run several times and must touch nothing but the database.

        Args:
            work: what to do in the transaction.
            op: name of the operation, if the caller may repeat it in a later call.
            limit_s: seconds it may take, with all attempts, if not as long as usual.
            waits_again: when another session's lock was in the way, try again while there is time.

        Raises:
            QueueUnavailableError: it could not be committed in time.
        """
        name = op or secrets.token_hex(16)

        def attempt(number: int, limit: TimeLimit) -> T:
            def run(conn: Connection) -> T:
                return work(Transaction(conn, self.clock(), name, op is not None or number > 1))

            return self._run(run, limit, writes=True)

        def is_worth_it(error: BaseException) -> bool:
            return is_passing(error) and (waits_again or not is_blocked(error))

        return self._retrying(attempt, self._limit(limit_s), verb="take the write", retry=is_worth_it)

    def migrate(self) -> tuple[str | None, str]:
        """Upgrade the database to the newest revision; return the revisions before and after."""
        from semgrad_guard.review.store.migrate import migrate  # reaches for the extra `review`

        def attempt(_: int, limit: TimeLimit) -> tuple[str | None, str]:
            with self._transaction(limit, writes=True) as conn:
                return migrate(conn, self.shown_url)

        limit = TimeLimit(math.inf)  # an index on a large table takes its time
        return self._retrying(attempt, limit, verb="take the migration")

    def truncate_log(self) -> None:
        """Empty SQLite's write-ahead log, which may still contain erased texts."""
        if self.dialect == "sqlite":
            connection = self._engine.raw_connection()  # a checkpoint can't run within a transaction
            try:
                with suppress(sqlite3.OperationalError):  # a reader blocks it: the next checkpoint does it
                    connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _limit(self, seconds: float | None = None) -> TimeLimit:
        return TimeLimit(self._retry_s if seconds is None else seconds)

    def _run(self, work: Callable[[Connection], T], limit: TimeLimit, *, writes: bool) -> T:
        if not self._ready:
            self._prepare(limit)
        with self._transaction(limit, writes=writes) as conn:
            return work(conn)

    def _prepare(self, limit: TimeLimit) -> None:
        """Check the tables, or make them, in one thread only."""
        if not self._set_up.acquire(timeout=max(0.0, limit.left_s)):
            msg = "another thread is still connecting"
            raise PoolTimeoutError(msg)
        try:
            if not self._ready:
                with self._transaction(limit, writes=True) as conn:
                    ensure_current(conn, self.shown_url)
                self._ready = True
        finally:
            self._set_up.release()

    @contextmanager
    def _transaction(self, limit: TimeLimit, *, writes: bool) -> Generator[Connection]:
        self._check_file()
        with self._engine.connect() as plain:
            conn = plain.execution_options(**{WRITES: writes, LIMIT: limit})
            limit.begin_transaction(self._retry_s)
            watched = nullcontext() if self.dialect == "sqlite" else self._watch.over(conn, limit)
            with watched, conn.begin():
                yield conn
            if writes:
                self._check_file()  # what went to a file that is gone must not be acknowledged

    def _check_file(self) -> None:
        """Refuse to go on with an SQLite file that was deleted or replaced since it was first used.

        Raises:
            QueueUnavailableError: it was.
        """
        if self._path is None:
            return
        try:
            found = self._path.stat()
        except OSError:
            found = None
        identity = None if found is None else (found.st_dev, found.st_ino)
        if self._identity is None and self._ready:
            self._identity = identity
        if self._identity is not None and identity != self._identity:
            fate = "deleted" if identity is None else "replaced by another"
            msg = (
                f"the file of the review queue at {self.shown_url} was {fate} while it was in use, so nothing is "
                "stored any more: put it back, or restart this program to begin with what is there"
            )
            raise QueueUnavailableError(msg)

    def _retrying(
        self,
        attempt: Callable[[int, TimeLimit], T],
        limit: TimeLimit,
        *,
        verb: str,
        retry: Callable[[BaseException], bool] = is_passing,
    ) -> T:
        retrying = Retrying(
            stop=stop_before_delay(self._retry_s if math.isinf(limit.seconds) else limit.seconds),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            retry=retry_if_exception(retry),
            sleep=self._sleep,
            reraise=True,
        )
        tries = iter(range(1, 1_000_000))
        try:
            return retrying(lambda: attempt(next(tries), limit))
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            advice = "check that the database is reachable, writable and has space left"
            if is_blocked(error):
                advice = "look in pg_stat_activity for a session that holds a lock, or raise `retry_s`"
            msg = f"the review queue at {self.shown_url} did not {verb}: {reason}; {advice}"
            raise QueueUnavailableError(msg) from error
        except (ValueError, LookupError, TypeError, OverflowError) as error:
            if isinstance(error, SemGradGuardError):
                raise
            msg = (
                f"the review queue at {self.shown_url} holds something that cannot be read ({type(error).__name__}): "
                "check the database for damage, for SQLite by `PRAGMA integrity_check`, or restore it from a backup"
            )
            raise QueueUnavailableError(msg) from error
