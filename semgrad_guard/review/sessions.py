"""Who is logged in: kept on the server, ended by logging out, by time, and by a change of the account."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, insert, or_, select, update

from semgrad_guard.review.accounts import user_of
from semgrad_guard.review.store.schema import sessions, users

if TYPE_CHECKING:
    from semgrad_guard.review.accounts import User
    from semgrad_guard.review.store.database import Database, Transaction

IDLE_S = 3600.0
LONGEST_S = 12 * 3600.0
_SEEN_EVERY_S = 60.0
"""A session in use is noted this often, not at every request."""


@dataclass(frozen=True, slots=True)
class Session:
    """One reviewer's login."""

    user: User
    token: str

    @property
    def csrf(self) -> str:
        """What every form of this session must carry."""
        return csrf_of(self.token)


class Sessions:
    """The logins of one queue."""

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._db = database

    def begin(self, user: User) -> Session:
        """Log an account in with a fresh token, whatever the browser had before."""
        token = secrets.token_urlsafe(32)

        def work(tx: Transaction) -> None:
            ended = or_(
                sessions.c.seen_at <= tx.now - timedelta(seconds=IDLE_S),
                sessions.c.created_at <= tx.now - timedelta(seconds=LONGEST_S),
            )
            tx.conn.execute(delete(sessions).where(ended))
            row = {"digest": digest(token), "user": user.name, "created_at": tx.now, "seen_at": tx.now}
            tx.conn.execute(insert(sessions), row)

        self._db.write(work)
        return Session(user, token)

    def find(self, token: str) -> Session | None:
        """Return the session of a token while it lasts and its account is open."""
        query = (
            select(users, sessions.c.seen_at, sessions.c.created_at.label("begun_at"))
            .join(sessions, sessions.c.user == users.c.name)
            .where(sessions.c.digest == digest(token), users.c.active)
        )
        row = self._db.read(lambda conn: conn.execute(query).mappings().first())
        now = self._db.clock()
        if row is None or now > row["begun_at"] + timedelta(seconds=LONGEST_S):
            return None
        idle_s = (now - row["seen_at"]).total_seconds()
        if idle_s > IDLE_S:
            return None
        if idle_s > _SEEN_EVERY_S:
            seen = update(sessions).where(sessions.c.digest == digest(token)).values(seen_at=now)
            self._db.write(lambda tx: tx.conn.execute(seen))
        return Session(user_of(row), token)

    def end(self, token: str) -> None:
        """Log out."""
        self._db.write(lambda tx: tx.conn.execute(delete(sessions).where(sessions.c.digest == digest(token))))


def digest(token: str) -> str:
    """Return what is stored of a token; a token is random, so one round of SHA-256 can't be turned back."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def csrf_of(token: str) -> str:
    """Return the token that forms must carry, which tells nothing about the session's own."""
    return hmac.new(token.encode("utf-8", "replace"), b"form", hashlib.sha256).hexdigest()


def is_csrf(token: str, given: str) -> bool:
    """True when a form carries the right token; compared in constant time."""
    return hmac.compare_digest(csrf_of(token).encode(), given.encode("utf-8", "replace"))
