"""Time limits of database calls, also for a server that holds locks, works too long, or says nothing at all."""

from __future__ import annotations

import math
import os
import socket
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from sqlalchemy import Connection, Engine

LIMIT = "semgrad_limit"
"""Execution option of a connection: the `TimeLimit` of its transaction."""
_LEAST_S = 0.01
"""PostgreSQL takes a time limit of 0 for none."""
_LEAST_TRANSACTION_S = 0.2
_RENEWED_AFTER = 0.1
"""Share of the time that may pass before the server is told how much is left."""
LOCK_SHARE = 1 / 4
"""Share of the time for one wait for a lock."""
_GRACE_S = 0.5
"""How much longer than its own time limit a server may take to report that it was reached."""
_LOOK_EVERY_S = 0.25
_IDLE_S = 30.0


class TimeLimit:
    """How long one call may take, all its attempts and statements together."""

    __slots__ = ("_told_at", "begun_at", "ends_at", "seconds")

    def __init__(self, seconds: float) -> None:
        """Begin now; `math.inf` seconds limit nothing but each wait for a lock."""
        self.seconds = seconds
        self.begun_at = time.monotonic()
        self.ends_at = self.begun_at + seconds
        self._told_at: float | None = None

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.ends_at - time.monotonic()

    def begin_transaction(self, known_s: float) -> None:
        """Note that the server now applies the session's own limit of `known_s` seconds.

        A transaction has a moment, even if connecting took all of the time.
        """
        self.ends_at = max(self.ends_at, time.monotonic() + _LEAST_TRANSACTION_S)
        is_usual = abs(self.seconds - known_s) <= _RENEWED_AFTER * known_s
        self._told_at = self.begun_at if is_usual else None

    def news(self) -> int | None:
        """Return the limit on a statement, in milliseconds, that the server must be told, if any; 0 is none.

        Raises:
            PoolTimeoutError: no time is left.
        """
        now = time.monotonic()
        if self._told_at is not None and now - self._told_at < _RENEWED_AFTER * self.seconds:
            return None
        if self.left_s <= 0:
            msg = f"it took longer than {self.seconds:g} seconds"
            raise PoolTimeoutError(msg)
        self._told_at = now
        return 0 if math.isinf(self.seconds) else milliseconds(self.left_s)


def milliseconds(seconds: float) -> int:
    """Return a time as PostgreSQL takes it."""
    return round(1000 * max(_LEAST_S, seconds))


def limit_statements(engine: Engine, seconds: float) -> None:
    """Let the PostgreSQL server give up a statement when the time of its call is over, and each lock a while earlier.

    A session starts with the usual limits, so a call that meets no obstacle costs nothing more; only one that was held
    up tells the server what is left. A lock is given up sooner, so that the call is tried again within its time.
    """

    def set_up(connection: Any, _: object) -> None:
        was_autocommit, connection.autocommit = connection.autocommit, True
        lock_ms, ms = milliseconds(seconds * LOCK_SHARE), milliseconds(seconds)
        connection.execute(f"SET lock_timeout = {lock_ms}; SET statement_timeout = {ms}")
        connection.autocommit = was_autocommit

    def tell(conn: Connection, *_: object) -> None:
        limit = conn.get_execution_options().get(LIMIT)
        news = limit.news() if isinstance(limit, TimeLimit) else None
        if news is not None:
            lock_ms = milliseconds(seconds * LOCK_SHARE)
            lock_ms = min(round(0.9 * news), lock_ms) if news else lock_ms  # sooner, as its error says more
            cursor = conn.connection.cursor()
            cursor.execute(
                "SELECT set_config('lock_timeout', %s, true), set_config('statement_timeout', %s, true)",
                [str(lock_ms), str(news)],
            )
            cursor.close()

    event.listen(engine, "connect", set_up)
    event.listen(engine, "before_cursor_execute", tell)


def call_after_fork(method: Callable[[], None]) -> None:
    """Call a method in every process that is forked from this one, as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        living = reference()
        if living is not None:
            living()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


class SilenceWatch:
    """Breaks connections whose server has not answered in time, so that the waiting thread gets an error."""

    def __init__(self) -> None:
        """Watch nothing yet; the thread starts with the first transaction and ends when it is idle."""
        self._lock = threading.Lock()
        self._entries: list[list[Any]] = []
        self._thread: threading.Thread | None = None
        call_after_fork(self._forget)  # the thread does not exist there

    @contextmanager
    def over(self, conn: Connection, limit: TimeLimit) -> Generator[None]:
        """Break the connection if the block takes longer than the limit."""
        if math.isinf(limit.seconds):
            yield
            return
        own = os.dup(conn.connection.dbapi_connection.fileno())  # type: ignore[union-attr] # of an open connection
        entry = [time.monotonic() + max(0.0, limit.left_s) + _GRACE_S, own]
        with self._lock:
            self._entries.append(entry)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="semgrad-review-silence", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                with suppress(ValueError):  # it was broken
                    self._entries.remove(entry)
                os.close(own)

    def _forget(self) -> None:
        self._lock, self._entries, self._thread = threading.Lock(), [], None

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            time.sleep(_LOOK_EVERY_S)
            now = time.monotonic()
            with self._lock:
                if self._entries:
                    idle_since = now
                elif now - idle_since > _IDLE_S:
                    self._thread = None
                    return
                overdue = [each for each in self._entries if each[0] < now]
                self._entries = [each for each in self._entries if each[0] >= now]
                _break(overdue)


def _break(entries: Sequence[Sequence[Any]]) -> None:
    """Shut connections down; the descriptor is a copy of its own, so no other connection can be hit."""
    for _, descriptor in entries:
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
