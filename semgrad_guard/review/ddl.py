"""Statements that tables alone can't express: the full-text index and the triggers that keep the audit trail whole.

Fresh databases and the first migration both run them, so they are written once and never change afterwards; a later
revision adds new ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.exc import OperationalError

if TYPE_CHECKING:
    from sqlalchemy import Connection

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
    """Index `semgrad_search.body` for words; an SQLite built without FTS5 goes without and is searched by substring."""
    if connection.dialect.name == "sqlite" and not has_fts5(connection):
        return
    _run(connection, _SQLITE_SEARCH, _POSTGRES_SEARCH)


def create_audit_guard(connection: Connection) -> None:
    """Make the database refuse to change or delete audit rows."""
    _run(connection, _SQLITE_AUDIT, _POSTGRES_AUDIT)


def has_fts5(connection: Connection) -> bool:
    """True when this SQLite can index words."""
    try:
        connection.exec_driver_sql("SELECT fts5(NULL)")
    except OperationalError as error:
        return "no such function" not in str(error.orig)
    return True


def _run(connection: Connection, sqlite: tuple[str, ...], postgres: tuple[str, ...]) -> None:
    for statement in sqlite if connection.dialect.name == "sqlite" else postgres:
        connection.exec_driver_sql(statement)
