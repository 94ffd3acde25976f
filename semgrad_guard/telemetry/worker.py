"""Background threads for slow sinks, with a bounded queue and retries."""

from __future__ import annotations

import heapq
import logging
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakSet

from semgrad_guard.errors import in_log

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("semgrad_guard")

Job = TypeVar("Job")

CAPACITY = 1000
THREADS = 2
IDLE_S = 10.0


_WORKERS: WeakSet[BackgroundWorker[Any]] = WeakSet()
"""All workers, to reset after a fork: the child has none of the threads, and may have a lock that stays held."""


class TryAgainError(Exception):
    """Raised by a handler to get its job again later; meanwhile the other jobs continue."""

    def __init__(self, after_s: float, why: Exception) -> None:
        """Keep the wait in seconds, and what went wrong."""
        self.after_s, self.why = after_s, why
        super().__init__(f"again in {after_s:g} s: {why}")


class BackgroundWorker(Generic[Job]):
    """Passes jobs to threads; `submit` never waits, and jobs that do not fit are dropped and counted.

    The threads are daemons that start with a job and end when idle, so an unused worker costs nothing and a hanging one
    does not keep the process alive. After a fork the child starts with an empty queue and new threads.
    """

    def __init__(
        self,
        handle: Callable[[Job], None],
        *,
        name: str,
        capacity: int = CAPACITY,
        threads: int = THREADS,
        idle_s: float = IDLE_S,
    ) -> None:
        """Choose how jobs are handled.

        Args:
            handle: handles one job. A `TryAgainError` puts the job back; any other error is counted in `failed`, and
                the first of consecutive ones is logged.
            name: prefix of the threads' names.
            capacity: how many jobs may wait.
            threads: how many jobs are handled at once.
            idle_s: seconds without a job after which a thread ends; the next job starts a new one.
        """
        self._handle, self._name = handle, name
        self._capacity, self._n_threads, self._idle_s = capacity, threads, idle_s
        self.dropped = 0
        """Number of jobs that were given up: too many waited, or the worker was closed before they were done."""
        self.failed = 0
        """Number of jobs that ended in an error."""
        self._closing = self._closed = False
        self._trouble: Exception | None = None
        self.start_afresh()
        _WORKERS.add(self)

    def submit(self, job: Job, *, after_s: float = 0.0) -> bool:
        """Queue a job to start in `after_s` seconds; if the queue is full or closed, count a drop and return False."""
        with self._changed:
            if self._closing or len(self._jobs) >= self._capacity:
                self.dropped += 1
                return False
            self._put(job, after_s)
            return True

    def drain(self, timeout_s: float) -> bool:
        """Wait until all jobs are done; return False if that takes longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._is_idle, timeout_s)

    def close(self, timeout_s: float) -> None:
        """Accept no more jobs, start the waiting ones at once, and drop those not done after `timeout_s` seconds."""
        with self._changed:
            self._closing = True
            now = time.monotonic()
            self._jobs[:] = [(now, n, job) for _, n, job in self._jobs]
            heapq.heapify(self._jobs)
            self._changed.notify_all()
            self._changed.wait_for(self._is_idle, timeout_s)
            self._give_up()

    def _give_up(self) -> None:
        """Drop the remaining jobs; the caller holds the lock."""
        self._closed = True
        left = len(self._jobs)
        self._jobs.clear()
        self._changed.notify_all()
        if left:
            self.dropped += left
            why = f": {type(self._trouble).__name__}: {self._trouble}" if self._trouble else ""
            _log.warning("%s: closed with %d not sent%s", self._name, left, why)

    def start_afresh(self) -> None:
        """Reset to an empty queue, no threads and a free lock."""
        self._changed = threading.Condition()
        self._jobs: list[tuple[float, int, Job]] = []
        self._n_put = 0
        self._threads: list[threading.Thread] = []
        self._busy = 0
        self._failing = False

    def _is_idle(self) -> bool:
        return not self._jobs and not self._busy

    def _put(self, job: Job, after_s: float) -> None:
        """Queue a job by the time it is due, then by order of arrival; the caller holds the lock."""
        self._n_put += 1
        heapq.heappush(self._jobs, (time.monotonic() + after_s, self._n_put, job))
        if len(self._threads) < min(self._n_threads, len(self._jobs) + self._busy):
            thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                in_time = True
                while not self._is_due():
                    if not self._jobs and (self._closing or not in_time):
                        self._threads.remove(threading.current_thread())
                        return
                    in_time = self._changed.wait(self._due_in_s())
                _, _, job = heapq.heappop(self._jobs)
                self._busy += 1
            self._do(job)

    def _is_due(self) -> bool:
        return bool(self._jobs) and self._jobs[0][0] <= time.monotonic()

    def _due_in_s(self) -> float:
        return max(0.0, self._jobs[0][0] - time.monotonic()) if self._jobs else self._idle_s

    def _do(self, job: Job) -> None:
        error: Exception | None = None
        try:
            self._handle(job)
        except Exception as raised:  # noqa: BLE001 - one bad job must not stop the following ones
            error = raised
        with self._changed:
            self._busy -= 1
            if isinstance(error, TryAgainError) and not self._closed:
                self._trouble = error.why
                self._put(job, error.after_s)
            elif error is not None:
                self._fail(error)
            else:
                self._failing = False
            self._changed.notify_all()

    def _fail(self, error: Exception) -> None:
        """Count a failed job; the caller holds the lock."""
        self.failed += 1
        if isinstance(error, TryAgainError):
            error = error.why
        if not self._failing:
            _log.warning("%s: %s (more of the same is not logged)", self._name, in_log(error))
        self._failing = True


def _after_fork() -> None:
    for worker in _WORKERS:
        worker.start_afresh()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_after_fork)
