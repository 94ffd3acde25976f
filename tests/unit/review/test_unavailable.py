"""When the database does not take a write: tried again within the budget, then one typed error that keeps the cause."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from semgrad_guard.errors import QueueUnavailableError, ReviewError, SchemaVersionError
from semgrad_guard.review import QueueSettings, State, open_queue
from semgrad_guard.review.store.database import is_passing
from tests.review_queues import FakeClock, database_url, ready_url, submit


def _quick(url: str, retry_s: float = 0.3):
    return open_queue(url, settings=QueueSettings(retry_s=retry_s))


def test_a_missing_folder_is_an_unavailable_queue(tmp_path):
    """Nothing is created in places that are not there."""
    queue = _quick(f"sqlite:///{tmp_path / 'nowhere' / 'review.db'}")
    with pytest.raises(QueueUnavailableError, match="unable to open database file") as caught:
        submit(queue)
    assert isinstance(caught.value.__cause__, OperationalError)


def test_a_read_only_file_is_an_unavailable_queue(tmp_path):
    """An answer that can't be stored must be reported, not lost."""
    path = tmp_path / "review.db"
    with closing(_quick(f"sqlite:///{path}")) as queue:
        submit(queue)
    with (
        closing(_quick(f"sqlite:///file:{path}?mode=ro&uri=true")) as queue,
        pytest.raises(QueueUnavailableError, match="readonly"),
    ):
        submit(queue, 1)


def test_a_file_that_is_no_database_is_an_unavailable_queue(tmp_path):
    """A wrong path does not destroy the file it names."""
    path = tmp_path / "notes.txt"
    path.write_text("important " * 100)
    with closing(_quick(f"sqlite:///{path}")) as queue, pytest.raises(QueueUnavailableError, match="not a database"):
        submit(queue)
    assert path.read_text() == "important " * 100


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_a_file_that_goes_away_under_the_queue_is_noticed(tmp_path, fate):
    """A program that goes on writing into a deleted file would acknowledge what is lost already."""
    path = tmp_path / "review.db"
    with closing(_quick(f"sqlite:///{path}")) as queue:
        first = submit(queue)
        path.rename(tmp_path / "kept.db")
        if fate == "replaced":
            with closing(_quick(f"sqlite:///{path}")) as other:
                submit(other, 9)
        for call in (lambda: submit(queue, 1), lambda: queue.approve(first, "ann"), queue.counts):
            with pytest.raises(QueueUnavailableError, match=fate):
                call()
        if fate == "deleted":
            (tmp_path / "kept.db").rename(path)
            assert queue.counts()[State.PENDING] == 1, "put back, it goes on"


def test_a_file_that_goes_away_during_a_write_is_noticed(tmp_path):
    """The write may have gone into what is deleted."""
    path = tmp_path / "review.db"
    with closing(_quick(f"sqlite:///{path}")) as queue:
        submit(queue)
        with pytest.raises(QueueUnavailableError, match="deleted"):
            queue.database.write(lambda _: path.unlink())


def test_a_full_disk_is_tried_again_and_then_reported(tmp_path):
    """Space may come back within the budget; if not, the caller hears why."""
    clock = FakeClock()
    queue = open_queue(f"sqlite:///{tmp_path / 'review.db'}", settings=QueueSettings(retry_s=0.3))
    with closing(queue):
        submit(queue)
        with queue.database.engine.connect() as conn:
            pages = conn.exec_driver_sql("PRAGMA page_count").scalar_one()
        limits = []

        def fill(conn, *_):
            limits.append(conn.execute(f"PRAGMA max_page_count = {pages}"))

        event.listen(queue.database.engine, "checkout", fill)
        with pytest.raises(QueueUnavailableError, match="full"):
            submit(queue, 1, answer="x" * 1_000_000)
        assert len(limits) > 1, "it was tried again"
        event.remove(queue.database.engine, "checkout", fill)
        queue.close()
        submit(queue, 1, answer="x" * 1_000_000)
        assert queue.counts()[State.PENDING] == 2
    assert clock.slept == []


def test_a_locked_database_is_waited_for(tmp_path):
    """Another writer is the normal case."""
    path = tmp_path / "review.db"
    with closing(_quick(f"sqlite:///{path}", retry_s=0.4)) as queue:
        submit(queue)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(QueueUnavailableError, match="locked"):
                submit(queue, 1)
            other.execute("ROLLBACK")
        submit(queue, 1)


def test_a_lost_connection_is_opened_again(tmp_path):
    """A database that restarts costs the caller a moment, not the answer."""
    with ready_url("postgresql", tmp_path) as url, closing(_quick(url, retry_s=5)) as queue:
        first = submit(queue)
        with queue.database.engine.connect() as conn:
            mine = conn.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with closing(_quick(url)) as other, other.database.engine.begin() as conn:
            conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": mine})
        assert queue.approve(first, "ann").state is State.APPROVED


def test_a_connection_lost_at_the_commit_acts_once(tmp_path):
    """The server may have committed although nobody heard of it: trying again must see that."""
    with ready_url("postgresql", tmp_path) as url, closing(_quick(url, retry_s=5)) as queue:
        review_id = submit(queue)
        lost = []

        def lose(conn):
            if not lost:
                lost.append(True)
                conn.connection.dbapi_connection.commit()
                conn.connection.dbapi_connection.close()

        event.listen(queue.database.engine, "commit", lose)
        item = queue.reject(review_id, "ann", "no")
        assert lost
        assert item.state is State.REJECTED
        assert [row.to_state for row in queue.audit(review_id)] == [State.PENDING, State.REJECTED]


def test_a_comment_whose_commit_was_not_heard_of_is_made_once(tmp_path):
    """A note that is there must not be reported as lost, nor stand there twice."""
    with ready_url("postgresql", tmp_path) as url, closing(_quick(url, retry_s=5)) as queue:
        review_id = submit(queue)
        lost = []

        def lose(conn):
            if not lost:
                lost.append(True)
                conn.connection.dbapi_connection.commit()
                conn.connection.dbapi_connection.close()

        event.listen(queue.database.engine, "commit", lose)
        queue.comment(review_id, "ann", "look twice")
        assert lost
        assert [each.text for each in queue.get(review_id).comments] == ["look twice"]


def test_an_unreachable_server_is_reported_without_its_password():
    """Messages end up in logs."""
    pytest.importorskip("psycopg")
    queue = open_queue("postgresql://ann:s3cret@127.0.0.1:1/none", settings=QueueSettings(retry_s=0.2))
    with pytest.raises(QueueUnavailableError) as caught:
        submit(queue)
    assert "s3cret" not in str(caught.value)
    assert "ann:***@127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["", "not a url", "mysql://ann:s3cret@host/db", "postgresql+asyncpg://ann:s3cret@h/d", "sqlite:"]
)
def test_an_unusable_url_is_refused_without_repeating_it(url):
    """A mistyped URL may hold a password."""
    with pytest.raises(ReviewError, match="sqlite:///") as caught:
        open_queue(url)
    assert "s3cret" not in str(caught.value)


def test_secrets_in_the_query_of_a_url_are_hidden():
    """Libpq takes passwords there too."""
    pytest.importorskip("psycopg")
    queue = open_queue("postgres://ann@host/db?password=s3cret&connect_timeout=3")
    assert "s3cret" not in queue.url
    assert queue.url.startswith("postgresql+psycopg://ann@host/db")


def test_a_postgres_database_without_tables_says_what_to_run(tmp_path):
    """Set-up on a shared server is a deliberate step."""
    with database_url("postgresql", tmp_path) as url, closing(_quick(url)) as queue:
        with pytest.raises(SchemaVersionError, match="review migrate") as caught:
            submit(queue)
        assert caught.value.found is None


def test_only_faults_that_pass_are_tried_again(tmp_path):
    """A wrong password stays wrong."""
    with (
        pytest.raises(OperationalError) as caught,
        open_queue(f"sqlite:///{tmp_path}/no/x.db").database.engine.connect(),
    ):
        pass
    assert not is_passing(caught.value)
    assert not is_passing(ValueError("x"))
