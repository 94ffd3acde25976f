"""The tables of the queue, its full-text index, and the triggers that protect the audit trail.

New databases and the first migration both run the statements of index and triggers, so these never change; a later
revision adds new ones.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.exc import OperationalError
from typing_extensions import override

from semgrad_guard.review.store.items import State

if TYPE_CHECKING:
    from sqlalchemy import Connection, Dialect

FTS_TABLE = "semgrad_search_fts"

_SQLITE_SEARCH = (
    "CREATE VIRTUAL TABLE semgrad_search_fts USING fts5(body, content='semgrad_search', content_rowid='seq')",
    """CREATE TRIGGER semgrad_search_ai AFTER INSERT ON semgrad_search BEGIN
    INSERT INTO semgrad_search_fts(rowid, body) VALUES (new.seq, new.body); END""",
    """CREATE TRIGGER semgrad_search_ad AFTER DELETE ON semgrad_search BEGIN
    INSERT INTO semgrad_search_fts(semgrad_search_fts, rowid, body) VALUES ('delete', old.seq, old.body); END""",
    """CREATE TRIGGER semgrad_search_au AFTER UPDATE ON semgrad_search BEGIN
    INSERT INTO semgrad_search_fts(semgrad_search_fts, rowid, body) VALUES ('delete', old.seq, old.body);
    INSERT INTO semgrad_search_fts(rowid, body) VALUES (new.seq, new.body); END""",
)
_POSTGRES_SEARCH = ("CREATE INDEX semgrad_search_fts ON semgrad_search USING gin (to_tsvector('simple', body))",)

_SQLITE_AUDIT = tuple(
    f"""CREATE TRIGGER semgrad_audit_{verb} BEFORE {verb} ON semgrad_audit
    BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END"""
    for verb in ("UPDATE", "DELETE")
)
_POSTGRES_AUDIT = (
    """CREATE FUNCTION semgrad_audit_guard() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$""",
    """CREATE TRIGGER semgrad_audit_guard BEFORE UPDATE OR DELETE OR TRUNCATE ON semgrad_audit
    FOR EACH STATEMENT EXECUTE FUNCTION semgrad_audit_guard()""",
)


def create_search_index(connection: Connection) -> None:
    """Create the full-text index of `semgrad_search.body`; SQLite without FTS5 is searched by substring instead."""
    if connection.dialect.name == "sqlite" and not has_fts5(connection):
        return
    _run(connection, _SQLITE_SEARCH, _POSTGRES_SEARCH)


def create_audit_guard(connection: Connection) -> None:
    """Make the database refuse to change or delete audit rows."""
    _run(connection, _SQLITE_AUDIT, _POSTGRES_AUDIT)


def has_fts5(connection: Connection) -> bool:
    """True when this SQLite has full-text search."""
    try:
        connection.exec_driver_sql("SELECT fts5(NULL)")
    except OperationalError as error:
        return "no such function" not in str(error.orig)
    return True


def _run(connection: Connection, sqlite: tuple[str, ...], postgres: tuple[str, ...]) -> None:
    for statement in sqlite if connection.dialect.name == "sqlite" else postgres:
        connection.exec_driver_sql(statement)


HEAD = "0005"
"""Newest revision under `migrations/versions`; these tables are what it leads to."""
VERSION_TABLE = "semgrad_schema"


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware UTC time on every database; SQLite has no time zones and stores the plain UTC time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    @override
    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert a time to UTC."""
        if value is None:
            return None
        try:
            moment = value.astimezone(UTC)
        except OverflowError:  # within a day of the first or the last year
            moment = value.replace(tzinfo=UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    @override
    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return a stored time as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_Seq = BigInteger().with_variant(Integer, "sqlite")
"""Key that counts up by itself, which SQLite does only for plain INTEGER."""
_Name = String(200)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_IS_ASSIGNED = "assignee IS NOT NULL"
_STATES = ", ".join(f"'{state}'" for state in State)

items = Table(
    "semgrad_items",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("exchange_id", _Name, nullable=False, unique=True),
    Column("state", String(16), CheckConstraint(f"state IN ({_STATES})", name="state"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("title", Text, nullable=False),
    Column("preview", Text, nullable=False),
    Column("question_key", String(64)),
    Column("rank", Float(53), nullable=False),
    Column("confidence", Float(53)),
    Column("rule", _Name, nullable=False),
    Column("tags", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("assignee", _Name),
    Column("holder", _Name),
    Column("held_until", UtcDateTime),
    Column("deadline_at", UtcDateTime),
    Column("at_expiry", String(16), nullable=False),
    Column("ruling_id", _Seq),
    Column("resolved_at", UtcDateTime),
    Column("delivered_at", UtcDateTime),
    Column("erased_at", UtcDateTime),
    Index(None, "state", "rank", "id"),
    Index(None, "state", "created_at", "id"),
    Index(None, "state", "deadline_at", "id"),
    Index(None, "created_at", "id"),
    Index(None, "question_key", "resolved_at"),
    Index(
        None, "assignee", "state", "rank", "id", sqlite_where=text(_IS_ASSIGNED), postgresql_where=text(_IS_ASSIGNED)
    ),
)

documents = Table(
    "semgrad_documents",
    metadata,
    Column("item_id", String(32), ForeignKey(items.c.id), primary_key=True),
    Column("body", Text, nullable=False),
)

tags = Table(
    "semgrad_tags",
    metadata,
    Column("tag", _Name, primary_key=True),
    Column("item_id", String(32), ForeignKey(items.c.id), primary_key=True),
    Index(None, "item_id"),
)

rulings = Table(
    "semgrad_rulings",
    metadata,
    Column("id", _Seq, primary_key=True),
    Column("item_id", String(32), ForeignKey(items.c.id), nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("text", Text),
    Column("correct", Boolean),
    Column("by", _Name, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index(None, "item_id"),
    Index(None, "at"),
)
"""Every verdict ever given; `items.ruling_id` names the current one. `text` is empty where the answer was approved as
it is; `correct` says whether the model's answer was right, and is unknown where a deadline decided."""

comments = Table(
    "semgrad_comments",
    metadata,
    Column("id", _Seq, primary_key=True),
    Column("item_id", String(32), ForeignKey(items.c.id), nullable=False),
    Column("by", _Name, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("text", Text, nullable=False),
    Index(None, "item_id"),
)

audit = Table(
    "semgrad_audit",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("item_id", String(32), ForeignKey(items.c.id), nullable=False),
    Column("version", Integer),
    Column("event", String(16), nullable=False),
    Column("from_state", String(16)),
    Column("to_state", String(16)),
    Column("by", _Name, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("detail", Text, nullable=False),
    Column("op", String(64), unique=True),
    UniqueConstraint("item_id", "version"),
)
"""One row a happening, never changed or deleted: triggers refuse it. Two changes can't claim the same version. `op`
names the operation, so that one whose commit was never acknowledged is recognised when it is tried again."""

search = Table(
    "semgrad_search",
    metadata,
    Column("seq", _Seq, primary_key=True),
    Column("item_id", String(32), ForeignKey(items.c.id), nullable=False, unique=True),
    Column("body", Text, nullable=False),
)

consumers = Table(
    "semgrad_consumers",
    metadata,
    Column("name", _Name, primary_key=True),
    Column("events", Text, nullable=False),
    Column("url", Text),
    Column("secret", Text),
    Column("active", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("allowed_host", _Name),
)
"""Who receives events: parts of the program, or webhooks with a URL."""

deliveries = Table(
    "semgrad_deliveries",
    metadata,
    Column("id", _Seq, primary_key=True),
    Column("consumer", _Name, ForeignKey(consumers.c.name), nullable=False),
    Column("item_id", String(32), ForeignKey(items.c.id), nullable=False),
    Column("event", String(16), nullable=False),
    Column("ruling_id", _Seq),
    Column("status", String(16), nullable=False),
    Column("tries", Integer, nullable=False),
    Column("due_at", UtcDateTime, nullable=False),
    Column("done_at", UtcDateTime),
    Column("error", Text),
    Index(None, "consumer", "status", "due_at", "id"),
    Index(None, "item_id"),
)
"""Events for each consumer, written in the same transaction as the change that caused them."""

users = Table(
    "semgrad_users",
    metadata,
    Column("name", _Name, primary_key=True),
    Column("role", String(16), nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
)

sessions = Table(
    "semgrad_sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("user", _Name, ForeignKey(users.c.name), nullable=False, index=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("seen_at", UtcDateTime, nullable=False),
)
"""Who is logged in; the token itself is only in the reviewer's cookie."""

tokens = Table(
    "semgrad_tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("name", _Name, nullable=False),
    Column("user", _Name, ForeignKey(users.c.name), nullable=False, index=True),
    Column("scopes", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("used_at", UtcDateTime),
)
"""Programs that may use the API; the token itself was shown once and is stored nowhere."""

devices = Table(
    "semgrad_devices",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("user", _Name, ForeignKey(users.c.name), primary_key=True, index=True),
    Column("seen_at", UtcDateTime, nullable=False),
)
"""Browsers that have logged in to an account before; their secret is only in a cookie."""

failures = Table(
    "semgrad_login_failures",
    metadata,
    Column("id", _Seq, primary_key=True),
    Column("key", _Name, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Index(None, "key", "at"),
)
"""Recent failed logins by account, by address and by browser."""

event.listen(search, "after_create", lambda _table, connection, **_: create_search_index(connection))
event.listen(audit, "after_create", lambda _table, connection, **_: create_audit_guard(connection))
