"""Callers that wait are woken when their verdict is there, and cost the queue nothing while it is not."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import event, text

from semgrad_guard.flow import Verdict
from semgrad_guard.review import QueueSettings, document_of, open_queue
from tests.review_queues import doubtful, exchange, ready_url, submit


@pytest.fixture(name="url")
def _url(tmp_path):
    with ready_url("postgresql", tmp_path) as url:
        yield url


@pytest.fixture(name="waiters")
def _waiters(url):
    with closing(open_queue(url)) as queue:
        yield queue


@pytest.fixture(name="others")
def _others(url):
    """The queue as another process has it."""
    with closing(open_queue(url)) as queue:
        yield queue


def test_a_verdict_from_another_process_wakes_at_once(waiters, others):
    """Neither earlier nor half a second later."""
    ids = [submit(others, n) for n in range(20)]
    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(waiters.wait, each, 20) for each in ids]
        time.sleep(1.5)
        assert not any(each.done() for each in found)
        began = time.monotonic()
        others.approve(ids[0], "ann")
        assert found[0].result(5).verdict is Verdict.APPROVED
        assert time.monotonic() - began < 1.5
        assert not any(each.done() for each in found[1:])
        for each in ids[1:]:
            others.reject(each, "ann", "no")
        assert {each.result(5).verdict for each in found[1:]} == {Verdict.REJECTED}


def test_waiting_asks_the_database_nothing(waiters, others):
    """One look for all of them together every few seconds, whether ten wait or a thousand."""
    ids = [submit(others, n) for n in range(60)]
    asked = []
    event.listen(waiters.database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    threads = [threading.Thread(target=waiters.wait, args=(each, 6)) for each in ids]
    for thread in threads:
        thread.start()
    time.sleep(2.5)
    before = len(asked)
    time.sleep(2)
    assert len(asked) - before <= 5
    for each in ids:
        others.approve(each, "ann")
    for thread in threads:
        thread.join()


def test_a_deadline_wakes_too(waiters, others):
    """Nobody tells of it; the look for all finds it."""
    asked = exchange(1)
    review_id = others.submit_document(document_of(asked, doubtful(asked)), deadline_s=1)
    began = time.monotonic()
    assert waiters.wait(review_id, 20).verdict is Verdict.EXPIRED
    assert time.monotonic() - began < 9


def test_a_broken_connection_loses_no_verdict(waiters, others):
    """Whoever waits is asked about again, and hears of what happened meanwhile."""
    review_id = submit(others)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(waiters.wait, review_id, 30)
        time.sleep(1)
        with others.database.engine.begin() as conn:
            ended = conn.execute(
                text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE query LIKE 'LISTEN semgrad%' AND pid <> pg_backend_pid()"
                )
            ).scalar_one()
        assert ended >= 1
        others.approve(review_id, "ann")
        assert found.result(15).verdict is Verdict.APPROVED


def test_the_thread_ends_with_the_queue(waiters, others):
    """And the next who waits starts it again."""
    first = submit(others)
    assert waiters.wait(first, 0.3) is None
    waiters.close()
    time.sleep(0.2)
    assert not [each for each in threading.enumerate() if each.name == "semgrad-review-waking" and each.is_alive()]
    others.approve(first, "ann")
    assert waiters.wait(first, 5).verdict is Verdict.APPROVED


def test_many_who_are_woken_at_once_take_turns(url, others):
    """Deadlines of one hour come together too; none of those who wait may find the database too busy to say so."""
    ids = [submit(others, n) for n in range(300)]
    with closing(open_queue(url, settings=QueueSettings(retry_s=0.8))) as waiters, ThreadPoolExecutor(300) as pool:
        found = [pool.submit(waiters.wait, each, 120) for each in ids]
        time.sleep(3)
        with others.database.engine.begin() as connection:
            connection.execute(text("UPDATE semgrad_items SET deadline_at = now() - interval '1 second'"))
        assert {each.result(120).verdict for each in found} == {Verdict.EXPIRED}
