"""Who may use the review site: accounts, tokens and sessions."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, or_, select, update

from semgrad_guard.errors import AccountError
from semgrad_guard.extras import require
from semgrad_guard.review.store.schema import devices, sessions, tokens, users

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from argon2 import PasswordHasher

    from semgrad_guard.review.store.database import Database, Transaction

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
SHORTEST_PASSWORD = 12
_LONGEST_PASSWORD = 1024


class Role(StrEnum):
    """What an account may do."""

    REVIEWER = "reviewer"
    ADMIN = "admin"
    """May also undo others' verdicts, put back others' items, and erase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """One account."""

    name: str
    role: Role
    active: bool
    created_at: datetime

    @property
    def is_admin(self) -> bool:
        """True for an administrator's account."""
        return self.role is Role.ADMIN


class Accounts:
    """The accounts of one queue."""

    def __init__(self, database: Database, hasher: PasswordHasher | None = None) -> None:
        """Keep the database; `hasher` is Argon2id with the library's settings unless given."""
        require("argon2", extra="review")
        from argon2 import PasswordHasher  # optional

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
        """Change a password; sessions that began with the old one end."""
        self._change(name, password_hash=self._hash(password))

    def set_role(self, name: str, role: Role) -> None:
        """Change what an account may do."""
        self._change(name, role=role)

    def set_active(self, name: str, *, active: bool) -> None:
        """Close or reopen an account; its earlier actions keep its name."""
        self._change(name, active=active)

    def verify(self, name: str, password: str) -> User | None:
        """Return the account with this name and password; a wrong name takes as long as a wrong password."""
        is_name = _NAME.fullmatch(name) is not None
        query = select(users).where(users.c.name == (name if is_name else ""))
        row = self._db.read(lambda conn: conn.execute(query).mappings().first())
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
        from argon2.exceptions import VerificationError  # optional

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
        return self._hasher.hash(password)

    def _change(self, name: str, **values: object) -> None:
        self.get(name)

        def work(tx: Transaction) -> None:
            tx.conn.execute(update(users).where(users.c.name == name).values(**values))
            for table in (sessions, devices):
                tx.conn.execute(delete(table).where(table.c.user == name))

        self._db.write(work)


def user_of(row: Mapping[Any, Any]) -> User:
    """Return the account of a row of `semgrad_users`."""
    return User(name=row["name"], role=Role(row["role"]), active=row["active"], created_at=row["created_at"])


IDLE_S = 3600.0
LONGEST_S = 12 * 3600.0
_SEEN_EVERY_S = 60.0
"""How often the last use of a session is stored; every request would be too often."""


@dataclass(frozen=True, slots=True)
class Session:
    """One reviewer's login."""

    user: User
    token: str

    @property
    def csrf(self) -> str:
        """Token that every form of this session must contain."""
        return csrf_of(self.token)


class Sessions:
    """The logins of one queue."""

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._db = database

    def begin(self, user: User, *, instead_of: str = "") -> Session:
        """Log an account in with a fresh token; the session of the token that the browser had before ends."""
        token = secrets.token_urlsafe(32)

        def work(tx: Transaction) -> None:
            ended = or_(
                sessions.c.seen_at <= tx.now - timedelta(seconds=IDLE_S),
                sessions.c.created_at <= tx.now - timedelta(seconds=LONGEST_S),
            )
            tx.conn.execute(delete(sessions).where(ended | (sessions.c.digest == digest(instead_of))))
            row = {"digest": digest(token), "user": user.name, "created_at": tx.now, "seen_at": tx.now}
            tx.conn.execute(insert(sessions), row)

        self._db.write(work)
        return Session(user, token)

    def find(self, token: str) -> Session | None:
        """Return the session of a token, unless it has ended or its account is closed."""
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
    """Return the digest stored in place of a token; tokens are random, so one SHA-256 round cannot be reversed."""
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()


def csrf_of(token: str) -> str:
    """Return the token that forms must contain; it reveals nothing about the session's token."""
    return hmac.new(token.encode("utf-8", "replace"), b"form", hashlib.sha256).hexdigest()


def is_csrf(token: str, given: str) -> bool:
    """True when a form contains the right token; compared in constant time."""
    return hmac.compare_digest(csrf_of(token).encode(), given.encode("utf-8", "replace"))


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
    """A program that sent a valid token."""

    token: Token
    user: User

    @property
    def by(self) -> str:
        """Name of the program in the audit trail."""
        return f"{self.user.name}/{self.token.name}"


class Tokens:
    """The tokens of one queue."""

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._db = database

    def issue(
        self, name: str, user: User, scopes: Iterable[Scope], *, lifetime_s: float | None = None
    ) -> tuple[Token, str]:
        """Return a new token and its secret, which cannot be read again.

        Args:
            name: what it is for.
            user: account whose rights it has; closing the account ends the token.
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
        """Return the program that a secret belongs to, while the token is valid and its account open."""
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
