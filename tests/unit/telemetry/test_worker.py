"""Jobs that never make anybody wait."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref

import pytest

from semgrad_guard.telemetry.worker import BackgroundWorker, TryAgainError


def test_jobs_are_done_in_order_by_one_thread() -> None:
    """A later feedback must not overtake an earlier one on the same run."""
    done: list[int] = []
    worker = BackgroundWorker[int](done.append, name="t", threads=1)
    assert all(worker.submit(n) for n in range(100))
    assert worker.drain(10)
    assert done == list(range(100))
    worker.close(1)


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    """A dead server must not fill the memory."""
    begun, go = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        begun.set()
        go.wait(10)

    worker = BackgroundWorker[int](hang, name="t", capacity=3, threads=1)
    worker.submit(0)
    begun.wait(10)
    assert [worker.submit(n) for n in range(5)] == [True, True, True, False, False]
    assert worker.dropped == 2
    go.set()
    worker.close(10)
    assert worker.dropped == 2


def test_closing_is_bounded_and_counts_what_is_left() -> None:
    """A process must be able to end while a server hangs."""
    begun, go = threading.Event(), threading.Event()

    def hang(_: int) -> None:
        begun.set()
        go.wait(10)

    worker = BackgroundWorker[int](hang, name="t", threads=1)
    [worker.submit(n) for n in range(4)]
    begun.wait(10)
    start = time.monotonic()
    worker.close(0.05)
    assert time.monotonic() - start < 2
    assert worker.dropped == 3
    assert not worker.submit(9)
    go.set()


def test_a_failing_job_stops_no_other_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is one line in the log, not one for each answer."""
    done: list[int] = []

    def work(n: int) -> None:
        if n < 5:
            raise ConnectionError(n)
        done.append(n)

    worker = BackgroundWorker[int](work, name="t", threads=1)
    [worker.submit(n) for n in range(6)]
    assert worker.drain(10)
    worker.close(1)
    assert (done, worker.failed, len(caplog.records)) == ([5], 5, 1)


def test_an_idle_worker_that_nobody_holds_is_freed() -> None:
    """A guard whose policy file changes gets new sinks; the old ones must not stay."""
    worker = BackgroundWorker[int](lambda _: None, name="idle", idle_s=0.01)
    worker.submit(1)
    assert worker.drain(10)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("idle")]
    assert threads
    [thread.join(10) for thread in threads]
    assert worker.submit(2)
    assert worker.drain(10)
    [thread.join(10) for thread in threading.enumerate() if thread.name.startswith("idle")]
    gone = weakref.ref(worker)
    del worker
    gc.collect()
    assert gone() is None


def test_several_jobs_are_done_at_once() -> None:
    """One slow post must not hold up the others."""
    both = threading.Barrier(2)
    worker = BackgroundWorker[int](lambda _: both.wait(10), name="t", threads=2)
    worker.submit(1)
    worker.submit(2)
    assert worker.drain(10)
    worker.close(1)
    assert worker.failed == 0


def test_closing_ends_the_threads_and_frees_the_worker() -> None:
    """Guards come and go in a server that reloads policies."""
    worker = BackgroundWorker[int](lambda _: None, name="ending", threads=2)
    worker.submit(1)
    worker.close(10)
    for thread in threading.enumerate():
        if thread.name.startswith("ending"):
            thread.join(10)
            assert not thread.is_alive()
    gone = weakref.ref(worker)
    del worker, thread
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_works_on() -> None:
    """Web servers load the application, then fork: the parent's threads are not in the child."""
    done: list[int] = []
    worker = BackgroundWorker[int](done.append, name="t", threads=1)
    worker.submit(1)
    worker.drain(10)
    child = os.fork()
    if child == 0:
        worker.submit(2)
        os._exit(0 if worker.drain(10) and done == [1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    worker.close(1)


def test_a_job_that_must_wait_lets_others_pass() -> None:
    """One run that the server does not know yet must not hold up the feedback on all others."""
    done: list[str] = []

    def work(job: str) -> None:
        done.append(job)
        if job == "early" and done.count("early") == 1:
            raise TryAgainError(0.05, ConnectionError())

    worker = BackgroundWorker[str](work, name="t", threads=1)
    worker.submit("early")
    worker.submit("other")
    assert worker.drain(10)
    worker.close(1)
    assert (done, worker.failed) == (["early", "other", "early"], 0)


def test_closing_begins_at_once_what_is_due_later() -> None:
    """A short program must not wait for a delay that is there for busy servers."""
    done: list[int] = []
    worker = BackgroundWorker[int](done.append, name="t", threads=1)
    for n in range(20):
        worker.submit(n, after_s=3600 - n)
    worker.close(10)
    assert (done, worker.dropped) == (list(range(20)), 0)


def test_closing_still_tries_again_while_there_is_time() -> None:
    """At the end of a short program the server may not yet know the run."""
    tries: list[int] = []

    def work(job: int) -> None:
        tries.append(job)
        if len(tries) < 3:
            raise TryAgainError(0.01, ConnectionError())

    worker = BackgroundWorker[int](work, name="t")
    worker.submit(1, after_s=3600)
    worker.close(10)
    assert (tries, worker.failed, worker.dropped) == ([1, 1, 1], 0, 0)


def test_what_is_not_done_in_time_is_dropped_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody will come back to it."""

    def work(_: int) -> None:
        raise TryAgainError(3600, ConnectionError("down"))

    worker = BackgroundWorker[int](work, name="t")
    worker.submit(1)
    worker.close(0.05)
    assert worker.dropped == 1
    assert "ConnectionError: down" in caplog.text


def test_a_job_that_comes_back_after_the_end_has_failed() -> None:
    """It hung while the worker closed."""
    begun, go = threading.Event(), threading.Event()

    def work(_: int) -> None:
        begun.set()
        go.wait(10)
        raise TryAgainError(3600, ConnectionError("down"))

    worker = BackgroundWorker[int](work, name="late")
    worker.submit(1)
    begun.wait(10)
    worker.close(0.0)
    go.set()
    [thread.join(10) for thread in threading.enumerate() if thread.name.startswith("late")]
    assert worker.failed == 1
