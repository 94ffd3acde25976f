"""Brings a database to the newest revision with Alembic, which the extra `review` installs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect

from semgrad_guard.errors import SchemaVersionError
from semgrad_guard.extras import require
from semgrad_guard.review.schema_version import is_known, lock_schema, revision_of
from semgrad_guard.review.store.schema import HEAD, items

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection, shown_url: str) -> tuple[str | None, str]:
    """Bring the database to the newest revision, in the running transaction: all of it or nothing.

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
    from alembic import command  # noqa: PLC0415 - optional

    command.upgrade(configuration(connection), revision)


def configuration(connection: Connection) -> Config:
    """Return Alembic's settings for a connection; there is no `alembic.ini`."""
    from alembic.config import Config  # noqa: PLC0415 - optional

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
