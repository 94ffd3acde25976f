"""Accounts of reviewers: who may log in, with which role and password."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, update

from semgrad_guard.errors import AccountError
from semgrad_guard.extras import require
from semgrad_guard.review.store.schema import sessions, users

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from argon2 import PasswordHasher

    from semgrad_guard.review.store.database import Database, Transaction

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
SHORTEST_PASSWORD = 12
_LONGEST_PASSWORD = 1024
_AT_ONCE = threading.Semaphore(2)
"""Hashing takes 64 MB on purpose; a flood of logins must not take it a hundred times at once."""


class Role(StrEnum):
    """What an account may do."""

    REVIEWER = "reviewer"
    ADMIN = "admin"
    """Also take back others' verdicts, put back others' items, and erase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One account."""

    name: str
    role: Role
    active: bool
    created_at: datetime

    @property
    def is_admin(self) -> bool:
        """True when the account may do what only administrators may."""
        return self.role is Role.ADMIN


class Accounts:
    """The accounts of one queue."""

    def __init__(self, database: Database, hasher: PasswordHasher | None = None) -> None:
        """Keep the database; `hasher` is Argon2id with the library's settings unless given."""
        require("argon2", extra="review")
        from argon2 import PasswordHasher  # noqa: PLC0415 - optional

        self._db = database
        self._hasher = hasher or PasswordHasher()
        self._nobody = self._hasher.hash("no account has this password")

    def add(self, name: str, password: str, role: Role = Role.REVIEWER) -> User:
        """Create an account.

        Raises:
            AccountError: the name is taken or not allowed, or the password too short.
        """
        if _NAME.fullmatch(name) is None:
            allowed = "a-z, 0-9 and . _ @ -, at most 64, starting with a letter or digit"
            msg = f"{name!r} cannot be an account's name: use {allowed}"
            raise AccountError(msg)
        hashed = self._hash(password)

        def work(tx: Transaction) -> None:
            if tx.conn.execute(select(users.c.name).where(users.c.name == name)).first() is not None:
                msg = f"there is already an account {name!r}: change it with `semgrad-guard review user`"
                raise AccountError(msg)
            row = {"name": name, "role": role, "password_hash": hashed, "active": True, "created_at": tx.now}
            tx.conn.execute(insert(users), row)

        self._db.write(work)
        return self.get(name)

    def get(self, name: str) -> User:
        """Return an account.

        Raises:
            AccountError: there is none.
        """
        row = self._db.read(lambda conn: conn.execute(select(users).where(users.c.name == name)).mappings().first())
        if row is None:
            msg = f"there is no account {name!r}: `semgrad-guard review user list` shows them"
            raise AccountError(msg)
        return user_of(row)

    def all(self) -> tuple[User, ...]:
        """Return all accounts by name."""
        rows = self._db.read(lambda conn: conn.execute(select(users).order_by(users.c.name)).mappings().all())
        return tuple(user_of(row) for row in rows)

    def set_password(self, name: str, password: str) -> None:
        """Change a password; everybody logged in with the old one is logged out."""
        self._change(name, password_hash=self._hash(password))

    def set_role(self, name: str, role: Role) -> None:
        """Change what an account may do."""
        self._change(name, role=role)

    def set_active(self, name: str, *, active: bool) -> None:
        """Close or reopen an account; its name stays on what it did."""
        self._change(name, active=active)

    def verify(self, name: str, password: str) -> User | None:
        """Return the account whose name and password these are; it takes the same time whichever is wrong."""
        row = self._db.read(lambda conn: conn.execute(select(users).where(users.c.name == name)).mappings().first())
        stored = row["password_hash"] if row is not None else self._nobody
        right = self._matches(stored, password)
        if row is None or not right or not row["active"]:
            return None
        if self._hasher.check_needs_rehash(stored):
            hashed = self._hash(password)
            self._db.write(
                lambda tx: tx.conn.execute(update(users).where(users.c.name == name).values(password_hash=hashed))
            )
        return user_of(row)

    def _matches(self, stored: str, password: str) -> bool:
        from argon2.exceptions import VerificationError  # noqa: PLC0415 - optional

        with _AT_ONCE:
            try:
                return self._hasher.verify(stored, password[: _LONGEST_PASSWORD + 1])
            except VerificationError:
                return False

    def _hash(self, password: str) -> str:
        if not SHORTEST_PASSWORD <= len(password) <= _LONGEST_PASSWORD:
            msg = (
                f"a password needs {SHORTEST_PASSWORD} to {_LONGEST_PASSWORD} characters, this one has {len(password)}"
            )
            raise AccountError(msg)
        with _AT_ONCE:
            return self._hasher.hash(password)

    def _change(self, name: str, **values: object) -> None:
        self.get(name)

        def work(tx: Transaction) -> None:
            tx.conn.execute(update(users).where(users.c.name == name).values(**values))
            tx.conn.execute(delete(sessions).where(sessions.c.user == name))

        self._db.write(work)


def user_of(row: Mapping[Any, Any]) -> User:
    """Return the account of a row of `semgrad_users`."""
    return User(name=row["name"], role=Role(row["role"]), active=row["active"], created_at=row["created_at"])
