"""Limits on failed logins, counted in the database so that every worker and every restart sees them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, insert, select

from semgrad_guard.review.store.schema import failures

if TYPE_CHECKING:
    from semgrad_guard.review.store.database import Database, Transaction


@dataclass(frozen=True, slots=True)
class Limits:
    """How many failed logins are borne within a time."""

    by_account: int = 10
    by_address: int = 30
    within_s: float = 900.0


class Throttle:
    """Counts failed logins by account and by address."""

    def __init__(self, database: Database, limits: Limits | None = None) -> None:
        """Keep the database and the limits."""
        self._db = database
        self._limits = limits or Limits()

    def wait_s(self, account: str, address: str) -> float:
        """Return for how many seconds the next login from there must wait; 0 when it may go ahead."""
        allowed = {_account(account): self._limits.by_account, _address(address): self._limits.by_address}
        since = self._db.clock() - timedelta(seconds=self._limits.within_s)
        query = (
            select(failures.c.key, func.count().label("n"), func.min(failures.c.at).label("first"))
            .where(failures.c.key.in_(allowed), failures.c.at > since)
            .group_by(failures.c.key)
        )
        rows = self._db.read(lambda conn: conn.execute(query).all())
        waits = [(row.first - since).total_seconds() for row in rows if row.n >= allowed[row.key]]
        return max(waits, default=0.0)

    def failed(self, account: str, address: str) -> None:
        """Count a failed login."""

        def work(tx: Transaction) -> None:
            old = tx.now - timedelta(seconds=self._limits.within_s)
            tx.conn.execute(delete(failures).where(failures.c.at <= old))
            tx.conn.execute(
                insert(failures), [{"key": key, "at": tx.now} for key in (_account(account), _address(address))]
            )

        self._db.write(work)

    def succeeded(self, account: str) -> None:
        """Forget the account's failed logins; those of the address still count."""
        self._db.write(lambda tx: tx.conn.execute(delete(failures).where(failures.c.key == _account(account))))


def _account(name: str) -> str:
    return f"account:{name[:100]}"


def _address(address: str) -> str:
    return f"address:{address[:100]}"
