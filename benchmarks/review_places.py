"""Empty databases for a measurement, gone afterwards."""

from __future__ import annotations

import secrets
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import create_engine, make_url, text

from semgrad_guard.review import QueueSettings, open_queue

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def empty_queue(url: str) -> Generator[str]:
    """Give the URL of an empty queue: a new SQLite file, or a new schema in the PostgreSQL database at `url`."""
    if url.startswith("sqlite"):
        with tempfile.TemporaryDirectory(prefix="review-load-") as folder:
            yield _ready(f"sqlite:///{Path(folder) / 'review.db'}")
        return
    schema = f"review_load_{secrets.token_hex(4)}"
    plain = make_url(url)
    admin = create_engine(plain.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as conn:
        conn.execute(text(f"CREATE SCHEMA {schema}"))
    try:
        inside = plain.update_query_dict({"options": f"-csearch_path={schema}"})
        yield _ready(inside.render_as_string(hide_password=False))
    finally:
        with admin.connect() as conn:
            conn.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        admin.dispose()


def _ready(url: str) -> str:
    queue = open_queue(url, settings=QueueSettings(retry_s=20))
    queue.migrate()
    queue.close()
    return url
