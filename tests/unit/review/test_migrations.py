"""The tables: made at once or step by step, they are the same, and no version of the code harms another's."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, inspect, text
from sqlalchemy.schema import DropTable

from semgrad_guard.errors import SchemaVersionError
from semgrad_guard.review import QueueSettings, document_of, open_queue
from semgrad_guard.review.store import migrate, submission
from semgrad_guard.review.store.database import Transaction
from semgrad_guard.review.store.migrate import version_table
from semgrad_guard.review.store.schema import HEAD, VERSION_TABLE, metadata
from tests.review_queues import FakeClock, doubtful, exchange, submit

_POSTGRES_OBJECTS = """
SELECT indexname AS name, indexdef FROM pg_indexes WHERE schemaname = current_schema() AND indexname NOT LIKE :mine
UNION ALL
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = current_schema()::regnamespace AND conname NOT LIKE :mine
UNION ALL
SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid = 'semgrad_audit'::regclass
"""


@pytest.fixture(name="engine")
def _engine(empty_url):
    with closing(open_queue(empty_url)) as queue:  # its engine keeps SQLite's tables within transactions
        yield queue.database.engine


def _objects(conn) -> dict[str, str]:
    """Return the definition of every index, trigger and constraint that the reflection of tables does not show."""
    if conn.dialect.name == "sqlite":
        query = "SELECT name, sql FROM sqlite_master WHERE type <> 'table' AND sql IS NOT NULL AND name NOT LIKE :mine"
    else:
        query = _POSTGRES_OBJECTS
    rows = conn.execute(text(query), {"mine": f"%{VERSION_TABLE}%"}).all()
    schema = "" if conn.dialect.name == "sqlite" else conn.execute(text("SELECT current_schema()")).scalar_one() + "."
    return {row[0]: row[1].replace(schema, "") if schema else row[1] for row in rows}


def _tables(conn) -> dict[str, list[str]]:
    found = inspect(conn)
    return {
        name: sorted(
            [f"{c['name']} {c['type']!r} {c['nullable']} {c['default']}" for c in found.get_columns(name)]
            + [f"check {each}" for each in found.get_check_constraints(name)]
            + [f"unique {each}" for each in found.get_unique_constraints(name)]
            + [f"foreign {each}" for each in found.get_foreign_keys(name)]
            + [f"primary {found.get_pk_constraint(name)}"]
        )
        for name in found.get_table_names()
        if name != VERSION_TABLE
    }


def _is_in_metadata(thing, name, *_) -> bool:
    return name not in {VERSION_TABLE, "semgrad_search_fts"} and not str(name).startswith("semgrad_search_fts_")


def test_the_newest_revision_is_the_one_the_tables_claim():
    """A new migration that forgets to raise the number would never be applied."""
    scripts = ScriptDirectory(str(migrate.SCRIPTS))
    assert scripts.get_current_head() == HEAD
    numbers = [script.revision for script in scripts.walk_revisions()]
    assert numbers == sorted(numbers, reverse=True)


def test_migrating_step_by_step_gives_the_same_tables_as_making_them_at_once(engine, empty_url):
    """There is one truth about the tables, whichever way they came about."""
    with engine.connect() as conn, conn.begin() as transaction:
        migrate.upgrade(conn)
        context = MigrationContext.configure(conn, opts={"include_object": _is_in_metadata, "compare_type": True})
        migrated = (_objects(conn), _tables(conn), compare_metadata(context, metadata))
        transaction.rollback()
    with engine.connect() as conn, conn.begin():
        migrate.create_current(conn, empty_url)
        made = (_objects(conn), _tables(conn), [])
    for one, other in zip(migrated, made, strict=True):
        assert one == other


def test_migrate_sets_up_an_empty_database_and_then_has_nothing_to_do(empty_url):
    """The command may run at every deployment."""
    with closing(open_queue(empty_url)) as queue:
        assert queue.migrate() == (None, HEAD)
        assert queue.migrate() == (HEAD, HEAD)
        submit(queue)


def test_a_newer_database_is_left_alone(queue_url):
    """An old program must not write into tables that it does not know."""
    with closing(open_queue(queue_url)) as queue:
        submit(queue)
        with queue.database.engine.begin() as conn:
            conn.execute(version_table.update().values(version_num="9999"))
    with closing(open_queue(queue_url)) as queue:
        for act in (lambda: submit(queue, 1), queue.counts, queue.migrate):
            with pytest.raises(SchemaVersionError, match="newer") as caught:
                act()
            assert (caught.value.found, caught.value.wanted) == ("9999", HEAD)


def test_tables_without_a_revision_are_left_alone(queue_url):
    """Half a restore, or somebody else's tables, need a person."""
    with closing(open_queue(queue_url)) as queue:
        submit(queue)
        with queue.database.engine.begin() as conn:
            conn.execute(DropTable(version_table))
    with closing(open_queue(queue_url)) as queue, pytest.raises(SchemaVersionError):
        queue.migrate()


def test_a_migration_that_stops_half_way_leaves_the_database_as_it_was(engine, empty_url, monkeypatch):
    """All of it or nothing: the next start tries again from where it was."""
    from semgrad_guard.review.store import schema

    def stop(*_):
        msg = "power cut"
        raise RuntimeError(msg)

    with closing(open_queue(empty_url)) as queue:
        with monkeypatch.context() as patched:
            patched.setattr(schema, "_run", stop)
            with pytest.raises(RuntimeError):
                queue.migrate()
        with engine.connect() as conn:
            assert inspect(conn).get_table_names() == []
        assert queue.migrate() == (None, HEAD)


def test_many_starts_at_once_set_the_file_up_once(tmp_path):
    """Eight workers of one server open the same new file."""
    url = f"sqlite:///{tmp_path / 'review.db'}"
    queues = [open_queue(url, settings=QueueSettings(retry_s=20)) for _ in range(8)]
    errors = []

    def start(n, queue):
        try:
            submit(queue, n)
        except Exception as error:  # noqa: BLE001 - the test fails with whatever it was
            errors.append(error)

    threads = [threading.Thread(target=start, args=each) for each in enumerate(queues)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sum(queues[0].counts().values()) == 8
    for queue in queues:
        queue.close()


def _at_revision(url: str, revision: str) -> None:
    """Set an empty database up as an earlier release did, with one item in it."""
    with closing(open_queue(url)) as queue, queue.database.engine.connect() as plain:
        conn = plain.execution_options(semgrad_writes=True)
        with conn.begin():
            migrate.upgrade(conn, revision)
            asked = exchange(1)
            old = submission.Submission(document=document_of(asked, doubtful(asked)))
            transaction = Transaction(conn, FakeClock()(), "old", retried=False)
            submission.submit_all(transaction, [old], QueueSettings())


def _migrate_and_die(url: str) -> None:
    """Migrate, and be killed once the first table was changed."""
    with closing(open_queue(url)) as queue:

        def die(_conn, _cursor, statement, *_) -> None:
            if statement.startswith("CREATE INDEX"):
                os.kill(os.getpid(), signal.SIGKILL)

        event.listen(queue.database.engine, "after_cursor_execute", die)
        queue.migrate()


def test_a_migration_whose_process_is_killed_is_made_again(empty_url):
    """What the earlier release stored is there, before and after."""
    _at_revision(empty_url, "0002")
    killed = multiprocessing.get_context("fork").Process(target=_migrate_and_die, args=(empty_url,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads: the child only migrates
        killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    with closing(open_queue(empty_url)) as queue:
        with queue.database.engine.connect() as conn:
            assert migrate.revision_of(conn) == "0002"
            assert "ix_semgrad_items_assignee_state_rank_id" not in _objects(conn)
        assert queue.migrate() == ("0002", HEAD)
        (item,) = queue.list().items
        assert queue.get(item.id).document.question == "What is element 1?"
        queue.assign(item.id, "boss", "ann")


def test_an_older_sqlite_file_is_brought_up_to_date_by_the_first_use(tmp_path):
    """A release is a release, not an afternoon of commands."""
    url = f"sqlite:///{tmp_path / 'review.db'}"
    _at_revision(url, "0002")
    with closing(open_queue(url)) as queue:
        assert len(queue.list().items) == 1
        assert queue.migrate() == (HEAD, HEAD)
