"""Tokens by which programs use the API: scoped, expiring, revocable, and stored only as a digest."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from semgrad_guard.errors import AccountError
from semgrad_guard.review.accounts import user_of
from semgrad_guard.review.sessions import digest
from semgrad_guard.review.store.schema import tokens, users

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from semgrad_guard.review.accounts import User
    from semgrad_guard.review.store.database import Database, Transaction

PREFIX = "sgr_"
"""Start of every token, so that scanners for leaked secrets can find it."""
_USED_EVERY_S = 60.0


class Scope(StrEnum):
    """What a token allows."""

    SUBMIT = "submit"
    """Submit answers and fetch verdicts."""
    READ = "read"
    """List and read items."""
    JUDGE = "judge"
    """Claim items and give verdicts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token, without its secret."""

    id: str
    name: str
    user: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    used_at: datetime | None


@dataclass(frozen=True, slots=True)
class Bearer:
    """A program that showed a valid token."""

    token: Token
    user: User

    @property
    def by(self) -> str:
        """How the program is called in the audit trail."""
        return f"{self.user.name}/{self.token.name}"


class Tokens:
    """The tokens of one queue."""

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._db = database

    def issue(
        self, name: str, user: User, scopes: Iterable[Scope], *, lifetime_s: float | None = None
    ) -> tuple[Token, str]:
        """Return a new token and its secret, which is never seen again.

        Args:
            name: what it is for.
            user: whose rights it has; closing the account ends it.
            scopes: what it allows.
            lifetime_s: seconds until it expires; `None` never.

        Raises:
            AccountError: it would allow nothing.
        """
        wanted = sorted(set(scopes))
        if not wanted:
            msg = f"a token needs at least one scope of {', '.join(Scope)}"
            raise AccountError(msg)
        secret = PREFIX + secrets.token_urlsafe(32)
        token_id = secrets.token_hex(4)

        def work(tx: Transaction) -> None:
            row = {
                "id": token_id,
                "digest": digest(secret),
                "name": name[:100],
                "user": user.name,
                "scopes": json.dumps(wanted),
                "created_at": tx.now,
                "expires_at": None if lifetime_s is None else tx.now + timedelta(seconds=lifetime_s),
            }
            tx.conn.execute(insert(tokens), row)

        self._db.write(work)
        return next(token for token in self.all() if token.id == token_id), secret

    def all(self) -> tuple[Token, ...]:
        """Return all tokens, oldest first."""
        rows = self._db.read(lambda conn: conn.execute(select(tokens).order_by(tokens.c.created_at)).mappings().all())
        return tuple(_token_of(row) for row in rows)

    def revoke(self, token_id: str) -> None:
        """End a token for good.

        Raises:
            AccountError: there is none with that id.
        """
        statement = update(tokens).where(tokens.c.id == token_id, tokens.c.revoked_at.is_(None))
        changed = self._db.write(lambda tx: tx.conn.execute(statement.values(revoked_at=tx.now)).rowcount)
        if not changed:
            msg = f"there is no valid token {token_id!r}: `semgrad-guard review token list` shows them"
            raise AccountError(msg)

    def find(self, secret: str) -> Bearer | None:
        """Return who shows a secret, while the token is valid and its account open."""
        query = (
            select(tokens, users.c.role, users.c.active, users.c.created_at.label("user_since"))
            .join(users, users.c.name == tokens.c.user)
            .where(tokens.c.digest == digest(secret), tokens.c.revoked_at.is_(None), users.c.active)
        )
        row = self._db.read(lambda conn: conn.execute(query).mappings().first())
        now = self._db.clock()
        if row is None or (row["expires_at"] is not None and now >= row["expires_at"]):
            return None
        token = _token_of(row)
        if token.used_at is None or (now - token.used_at).total_seconds() > _USED_EVERY_S:
            used = update(tokens).where(tokens.c.id == token.id).values(used_at=now)
            self._db.write(lambda tx: tx.conn.execute(used))
        return Bearer(token, user_of({**row, "name": token.user, "created_at": row["user_since"]}))


def _token_of(row: Mapping[Any, Any]) -> Token:
    return Token(
        id=row["id"],
        name=row["name"],
        user=row["user"],
        scopes=frozenset(Scope(each) for each in json.loads(row["scopes"])),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        used_at=row["used_at"],
    )
