"""Limits on log-ins: against guessing and against floods, such that nobody can lock a reviewer out."""

from __future__ import annotations

import ipaddress
import secrets
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select, text, update

from semgrad_guard.review.access import digest
from semgrad_guard.review.store.document import storable
from semgrad_guard.review.store.schema import devices, failures

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from sqlalchemy import Connection

    from semgrad_guard.review.store.database import Database, Transaction

_KNOWN_S = 180 * 86_400.0
"""How long a browser stays known after its last log-in."""
_LOCK_KEY = 0x4C4F47
"""First half of the advisory locks that let the tries of one name or address be counted one by one."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How many failed log-ins are allowed within a time."""

    by_account: int = 10
    """On one account, from one address, or from a browser that has logged in to it before."""
    by_account_everywhere: int = 100
    """On one account, from all addresses together; browsers that have logged in to it before do not count."""
    by_address: int = 30
    within_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Try:
    """A log-in that was counted before its password was looked at, or refused."""

    wait_s: float
    """How many seconds the next log-in must wait; 0 when this one may go ahead."""
    rows: tuple[int, ...] = ()
    """Where it is counted."""
    own_key: str = ""


class Throttle:
    """Counts log-ins by account, by address and by browser."""

    def __init__(self, database: Database, limits: Limits | None = None) -> None:
        """Keep the database and the limits."""
        self._db = database
        self._limits = limits or Limits()

    def begin(self, account: str, address: str, device: str = "") -> Try:
        """Count a log-in as failed before its password is checked, so that tries at the same time count each other.

        Args:
            account: the name that was typed, whether or not there is such an account.
            address: where the request came from.
            device: secret of the browser's cookie, from `Devices`.
        """
        account, address = storable(account)[:100], _network(address)

        def work(tx: Transaction) -> Try:
            own, allowed = self._allowed(tx, account, address, device)
            _lock(tx.conn, allowed)
            since = tx.now - timedelta(seconds=self._limits.within_s)
            tx.conn.execute(delete(failures).where(failures.c.at <= since))
            query = (
                select(failures.c.key, func.count().label("n"), func.min(failures.c.at).label("first"))
                .where(failures.c.key.in_(allowed))
                .group_by(failures.c.key)
            )
            rows = tx.conn.execute(query).all()
            waits = [(row.first - since).total_seconds() for row in rows if row.n >= allowed[row.key]]
            if waits:
                return Try(max(waits))
            insertion = insert(failures).returning(failures.c.id)
            ids = [tx.conn.execute(insertion, {"key": key, "at": tx.now}).scalar_one() for key in allowed]
            return Try(0.0, tuple(ids), own)

        return self._db.write(work)

    def succeeded(self, done: Try) -> None:
        """Take a try back that was right, and forget the failed ones of the same account from the same place."""
        which = failures.c.id.in_(done.rows) | (failures.c.key == done.own_key)
        self._db.write(lambda tx: tx.conn.execute(delete(failures).where(which)))

    def _allowed(self, tx: Transaction, account: str, address: str, device: str) -> tuple[str, Mapping[str, int]]:
        """Return the key of account and place, and how many tries each key allows."""
        if device and _is_known(tx, account, device):
            own = f"device:{digest(device)}:{account}"
            return own, {own: self._limits.by_account}
        own = f"pair:{address}:{account}"
        everywhere = self._limits.by_account_everywhere
        return own, {
            own: self._limits.by_account,
            f"account:{account}": everywhere,
            f"address:{address}": self._limits.by_address,
        }


class Devices:
    """Browsers that have logged in to an account; strangers' failed log-ins do not count for them."""

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._db = database

    def remember(self, account: str, device: str = "") -> str:
        """Note that a browser has logged in; return the secret of its cookie, a new one unless it had one."""
        kept = device or secrets.token_urlsafe(32)
        mine = (devices.c.digest == digest(kept), devices.c.user == account)

        def work(tx: Transaction) -> None:
            tx.conn.execute(delete(devices).where(devices.c.seen_at <= tx.now - timedelta(seconds=_KNOWN_S)))
            if not tx.conn.execute(update(devices).where(*mine).values(seen_at=tx.now)).rowcount:
                tx.conn.execute(insert(devices), {"digest": digest(kept), "user": account, "seen_at": tx.now})

        self._db.write(work)
        return kept


class Hashing:
    """Bounds how many passwords are hashed at a time: a hash takes 64 MB and a while on purpose."""

    def __init__(self, *, workers: int = 2, waiting: int = 4, by_address: int = 2) -> None:
        """Keep the bounds: hashes at a time, log-ins that wait for one, and log-ins of one address."""
        self._workers = threading.Semaphore(workers)
        self._most, self._by_address = workers + waiting, by_address
        self._lock = threading.Lock()
        self._present: Counter[str] = Counter()

    @contextmanager
    def place(self, address: str) -> Generator[bool]:
        """Take a place among those who hash or wait; false when all are taken."""
        network = _network(address)
        with self._lock:
            is_free = self._present.total() < self._most and self._present[network] < self._by_address
            self._present[network] += is_free
        try:
            yield is_free
        finally:
            with self._lock:
                self._present[network] -= is_free
                if not self._present[network]:
                    del self._present[network]

    @contextmanager
    def turn(self) -> Generator[None]:
        """Wait for one of the workers; only those who have a place do."""
        with self._workers:
            yield


def _is_known(tx: Transaction, account: str, device: str) -> bool:
    since = tx.now - timedelta(seconds=_KNOWN_S)
    query = select(devices.c.user).where(
        devices.c.digest == digest(device), devices.c.user == account, devices.c.seen_at > since
    )
    return tx.conn.execute(query).first() is not None


def _lock(conn: Connection, keys: Mapping[str, int]) -> None:
    """Let the tries of one key be counted one after the other; SQLite's write transaction already does."""
    if conn.dialect.name == "postgresql":
        for key in sorted(keys):
            conn.execute(text("SELECT pg_advisory_xact_lock(:first, hashtext(:key))"), {"first": _LOCK_KEY, "key": key})


def _network(address: str) -> str:
    """Return an address as it is counted; one customer of a provider has all IPv6 addresses of a /64 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return storable(address)[:60]
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(parsed), 64), strict=False))
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)
