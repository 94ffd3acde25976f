"""Engines: how each kind of database is opened, so that what was acknowledged stays and writers hardly wait."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from semgrad_guard.review.address import is_memory

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

WRITES = "semgrad_writes"
"""Execution option of a connection: its next transaction will write."""

_SQLITE = (
    "PRAGMA foreign_keys = ON",
    "PRAGMA secure_delete = ON",  # erased texts don't stay in free pages
    # Whatever kills the process or its container, nothing acknowledged is lost: the system holds it. When the machine
    # itself loses power, the last moments before may be missing, and the file is whole all the same.
    "PRAGMA synchronous = NORMAL",
    "PRAGMA wal_autocheckpoint = 4000",  # pages: fewer waits for the disk than every 1000
    "PRAGMA cache_size = -16384",  # KiB: the upper levels of every index of a large queue
)


def make_engine(url: URL, *, busy_s: float) -> Engine:
    """Return the engine for a database; a forked child opens connections of its own.

    Args:
        url: where the database is.
        busy_s: seconds to wait for another writer, or for the server to answer, before a try has failed.
    """
    engine = _sqlite(url, busy_s) if url.drivername == "sqlite" else _postgres(url, busy_s)
    _forget_connections_in_children(engine)
    return engine


def _postgres(url: URL, busy_s: float) -> Engine:
    return create_engine(url, hide_parameters=True, connect_args={"connect_timeout": max(2, round(busy_s))})


def _sqlite(url: URL, busy_s: float) -> Engine:
    pool: dict[str, Any] = {"pool_size": 1, "max_overflow": 0} if is_memory(url) else {}
    engine = create_engine(
        url,
        hide_parameters=True,
        poolclass=QueuePool,
        connect_args={"timeout": busy_s, "check_same_thread": False},
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
