"""Upgrade a database to the newest revision, with Alembic, and check which revision it has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Column, MetaData, String, Table, inspect, select, text

from semgrad_guard.errors import SchemaVersionError
from semgrad_guard.extras import require
from semgrad_guard.review.store.schema import HEAD, VERSION_TABLE, items, metadata

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

_LOCK_KEY = 0x53454D47
"""Advisory lock of set-up and migrations, so that two never run at once."""

version_table = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True))


def lock_schema(connection: Connection) -> None:
    """Let only one process change the tables at a time; SQLite's write transaction already does."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK_KEY})


def revision_of(connection: Connection) -> str | None:
    """Return the revision of a database, or `None` while the queue has no tables."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(select(version_table.c.version_num)).scalar_one_or_none()


def ensure_current(connection: Connection, shown_url: str) -> None:
    """Set up a new SQLite database, upgrade an older one, and check any other.

    Raises:
        SchemaVersionError: the database is not set up, older or newer than this code.
        MissingExtraError: an older SQLite database needs the migration tool to be upgraded.
    """
    found = revision_of(connection)
    if found == HEAD:
        return
    if connection.dialect.name != "sqlite":
        raise SchemaVersionError(shown_url, found, HEAD, known=found is None or is_known(found))
    if found is None:
        create_current(connection, shown_url)
    else:
        upgrade_sqlite(connection, shown_url, found)


def create_current(connection: Connection, shown_url: str) -> None:
    """Create all tables in an empty database, at the newest revision, in the running transaction.

    Raises:
        SchemaVersionError: the database has tables of the queue but no revision.
    """
    lock_schema(connection)
    if inspect(connection).has_table(items.name):
        raise SchemaVersionError(shown_url, None, HEAD, known=False)
    metadata.create_all(connection)
    version_table.create(connection)
    connection.execute(version_table.insert().values(version_num=HEAD))


def upgrade_sqlite(connection: Connection, shown_url: str, found: str) -> None:
    """Upgrade an older SQLite database in the running transaction."""
    if not is_known(found):
        raise SchemaVersionError(shown_url, found, HEAD, known=False)
    upgrade(connection)


def is_known(revision: str) -> bool:
    """True when this code can upgrade from a revision; they are numbered, so an unknown one is newer."""
    return revision <= HEAD


SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection, shown_url: str) -> tuple[str | None, str]:
    """Upgrade the database to the newest revision in the running transaction, completely or not at all.

    Returns:
        The revision before and the one now.

    Raises:
        SchemaVersionError: the database is newer than this code, or holds tables without a revision.
    """
    lock_schema(connection)
    before = revision_of(connection)
    if before is None and inspect(connection).has_table(items.name):
        raise SchemaVersionError(shown_url, None, HEAD, known=False)
    if before is not None and not is_known(before):
        raise SchemaVersionError(shown_url, before, HEAD, known=False)
    if before != HEAD:
        upgrade(connection)
    return before, HEAD


def upgrade(connection: Connection, revision: str = HEAD) -> None:
    """Run the migrations up to a revision, in the running transaction."""
    require("alembic", extra="review")
    from alembic import command  # optional

    command.upgrade(configuration(connection), revision)


def configuration(connection: Connection) -> Config:
    """Return Alembic's settings for a connection; there is no `alembic.ini`."""
    from alembic.config import Config  # optional

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
