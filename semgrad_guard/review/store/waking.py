"""Wakes callers that wait for verdicts: by PostgreSQL's notifications, and by one look for all of them together."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import or_, select, text

from semgrad_guard.errors import in_log
from semgrad_guard.review.store.items import OPEN
from semgrad_guard.review.store.schema import items
from semgrad_guard.review.store.time_limits import call_after_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from sqlalchemy import Connection, Select

    from semgrad_guard.review.store.database import Database, Transaction

_log = logging.getLogger(__name__)

CHANNEL = "semgrad_rulings"
"""PostgreSQL's channel on which the id of an item is told when it gets its verdict."""
_LISTENING_S = 5.0
"""Seconds between two looks while notifications arrive; they could be missed, and deadlines are not notified."""
_LOOKING_S = 0.5
"""Seconds between two looks without notifications."""
_NEW_S = 0.1
"""Seconds until those who have begun to wait are looked at, all together."""
_IDLE_S = 30.0
_AT_ONCE = 1000
_TURNS = 4
"""How many callers look at the database at a time, of those who are woken together; there are few connections."""


def announce(tx: Transaction, item_id: str) -> None:
    """Tell the listeners, when the transaction is committed, that an item has its verdict."""
    if tx.conn.dialect.name == "postgresql":
        tx.conn.execute(text("SELECT pg_notify(:channel, :id)"), {"channel": CHANNEL, "id": item_id})


class Waking:
    """Knows who waits for which item, and calls them when there may be a verdict. It is safe to share between threads.

    One thread does it for all who wait, and runs only while somebody does.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database; nothing is opened yet."""
        self._db = database
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Callable[[], object]]] = {}
        self._new: set[str] = set()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._changed = threading.Event()
        self._turns = threading.BoundedSemaphore(_TURNS)
        call_after_fork(self._forget)  # the thread does not exist there

    @contextmanager
    def calling(self, item_id: str, act: Callable[[], object]) -> Generator[None]:
        """Call `act`, from another thread, whenever the item may have its verdict, until the block ends.

        It is called soon, if there is one already or no such item.
        """
        with self._lock:
            self._waiting.setdefault(item_id, []).append(act)
            self._new.add(item_id)
            self._is_closed = False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="semgrad-review-waking", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._lock:
                acts = self._waiting.get(item_id, [])
                if act in acts:
                    acts.remove(act)
                if not acts:
                    self._waiting.pop(item_id, None)

    @contextmanager
    def turn(self, patience_s: float) -> Generator[None]:
        """Wait for a turn at the database, so that a thousand who are woken at once do not ask it at once.

        After `patience_s` seconds the block runs all the same.
        """
        turns = self._turns
        has_turn = turns.acquire(timeout=min(max(0.0, patience_s), threading.TIMEOUT_MAX))
        try:
            yield
        finally:
            if has_turn:
                turns.release()

    def wake(self, item_ids: Iterable[str]) -> None:
        """Call those who wait for these items."""
        with self._lock:
            acts = [act for item_id in item_ids for act in self._waiting.get(item_id, ())]
        for act in acts:
            act()

    def close(self) -> None:
        """End the thread; the next who waits starts another."""
        self._is_closed = True
        self._changed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=2 * _LOOKING_S)

    def _run(self) -> None:
        idle_since, listener = time.monotonic(), None
        try:
            while not self._is_over(idle_since):
                if self._waiting:
                    idle_since = time.monotonic()
                try:
                    listener = listener or self._listen()
                    with self._lock:
                        everyone = sorted(self._waiting)
                    self._look(everyone)
                    self._rest(listener)
                except Exception as error:  # noqa: BLE001 - the database may come back
                    _log.warning("callers that wait for verdicts are woken late: %s", in_log(error))
                    _close(listener)
                    listener = None
                    self._changed.wait(_LOOKING_S)
        finally:
            _close(listener)

    def _is_over(self, idle_since: float) -> bool:
        with self._lock:
            is_idle = not self._waiting and time.monotonic() - idle_since > _IDLE_S
            if is_idle or self._is_closed:
                self._thread = None
                return True
        return False

    def _listen(self) -> Any:
        """Return a connection on which notifications arrive, or `None` where the database sends none."""
        if self._db.dialect != "postgresql":
            return None
        pooled = self._db.engine.raw_connection()
        listener: Any = pooled.dbapi_connection
        pooled.detach()
        listener.autocommit = True
        listener.execute(f"LISTEN {CHANNEL}")
        return listener

    def _look(self, ids: Sequence[str]) -> None:
        """Call those whose item has its verdict, or should have it by now, or does not exist."""
        now = self._db.clock()
        for n in range(0, len(ids), _AT_ONCE):
            some = ids[n : n + _AT_ONCE]
            is_open = items.c.state.in_(sorted(OPEN))
            is_early = or_(items.c.deadline_at.is_(None), items.c.deadline_at > now)
            query = select(items.c.id).where(items.c.id.in_(some), is_open, is_early)
            self.wake(set(some).difference(self._db.read(partial(_ids, query=query))))

    def _look_at_new(self) -> None:
        with self._lock:
            new, self._new = sorted(self._new), set()
        self._look(new)

    def _rest(self, listener: Any) -> None:
        """Wait for notifications, and pass them on, until it is time to look again."""
        end = time.monotonic() + (_LOOKING_S if listener is None else _LISTENING_S)
        while not self._is_closed and time.monotonic() < end:
            if listener is None:
                self._changed.wait(_NEW_S)
            else:
                self.wake({notice.payload for notice in listener.notifies(timeout=_NEW_S, stop_after=1)})
            self._look_at_new()

    def _forget(self) -> None:
        self._lock, self._changed = threading.Lock(), threading.Event()
        self._turns = threading.BoundedSemaphore(_TURNS)
        self._waiting, self._new, self._thread = {}, set(), None


def _ids(conn: Connection, query: Select[Any]) -> Sequence[str]:
    return conn.execute(query).scalars().all()


def _close(listener: Any) -> None:
    if listener is not None:
        listener.close()
