"""Work that must not delay an answer: one daemon thread, a bounded queue."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_log = logging.getLogger("semgrad_guard")


class Background:
    """Runs small jobs one after the other in a thread of its own; when too many wait, new ones are dropped and counted.

    Args:
        limit: jobs that may wait.
        name: name of the thread.
    """

    def __init__(self, limit: int, name: str) -> None:
        """Start nothing yet: the thread is made for the first job and ends when there is nothing left to do."""
        self._limit, self._name = limit, name
        self._changed = threading.Condition()
        self._jobs: deque[Callable[[], None]] = deque()
        self._running = False
        self.dropped = 0
        """Jobs that found no place."""

    def put(self, job: Callable[[], None]) -> bool:
        """Take a job; false when too many wait already, so it is dropped."""
        with self._changed:
            if len(self._jobs) >= self._limit:
                self.dropped += 1
                if self.dropped == 1:
                    _log.warning("%s: %d answers wait to be judged, so new ones are not", self._name, self._limit)
                return False
            self._jobs.append(job)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until everything taken so far is done; false when it took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    self._running = False
                    self._changed.notify_all()
                    return
                job = self._jobs.popleft()
            try:
                job()
            except Exception:  # noqa: BLE001 - the next job must still be done
                _log.exception("%s: a job failed", self._name)
