"""Scores exchanges of many threads together: padded micro-batches with a bounded wait."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from typing_extensions import override

from semgrad_guard.errors import ScoringEndedError, ScoringError
from semgrad_guard.ports import Scorer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.flow import Exchange, Fingerprint, Score

    Result = Score | ScoringError

_log = logging.getLogger("semgrad_guard")

ALIKE = 256
"""Prompts count as beginning alike where so many of their first characters, or token ids, are equal."""
_LOOK_EVERY_S = 0.05
"""How often a waiting caller looks whether it is still wanted."""
COME_BACK = 0.1
"""Share of a batch's time for which the next one waits: those who were answered may ask again, and others with them."""
_WEIGHT = 0.2
"""Weight of the newest batch in the running mean of the time that one exchange takes."""


class BusyError(ScoringError):
    """More exchanges wait to be scored than the server accepts."""

    def __init__(self, waiting: int, limit: int, retry_after_s: float) -> None:
        """Keep how many wait, how many may, and after how many seconds to try again."""
        self.waiting, self.limit, self.retry_after_s = waiting, limit, retry_after_s
        super().__init__(
            f"{waiting} exchanges wait to be scored and at most {limit} may: try again in {retry_after_s:.0f} s"
        )


class ClosedError(ScoringError):
    """The server is shutting down and accepts nothing new."""

    def __init__(self) -> None:
        """Say what to do."""
        super().__init__("the scorer is shutting down: try again at another replica, or in a moment")


@dataclass(eq=False, slots=True)
class _Job:
    """One exchange that waits for its score."""

    exchange: Exchange
    alike: object
    """Equal for prompts that begin alike."""
    queued_at: float
    ends_at: float | None
    """When nobody waits any more."""
    cancel: threading.Event | None
    done: threading.Event = field(default_factory=threading.Event)
    result: Result | None = None
    abandoned: bool = False

    def is_wanted(self, now: float) -> bool:
        """Return whether somebody still waits for it."""
        ended = self.ends_at is not None and now >= self.ends_at
        return not (self.abandoned or ended or (self.cancel is not None and self.cancel.is_set()))

    def finish(self, result: Result) -> None:
        """Hand the result to whoever waits."""
        self.result = result
        self.done.set()


class _NobodyWaits(threading.Event):
    """Is set once no job of a batch is wanted any more."""

    def __init__(self, jobs: Sequence[_Job], clock: Callable[[], float]) -> None:
        super().__init__()
        self._jobs, self._clock = jobs, clock

    @override
    def is_set(self) -> bool:
        now = self._clock()
        return not any(job.is_wanted(now) for job in self._jobs)


@runtime_checkable
class BatchesItself(Scorer, Protocol):
    """A scorer that many threads may ask at once: it, or what stands behind it, forms the batches."""

    @property
    def waiting(self) -> int:
        """How many exchanges wait."""
        ...

    def close(self, timeout_s: float | None = None) -> None:
        """Finish what was accepted, and accept nothing new."""
        ...


@runtime_checkable
class ScoresByClaim(Protocol):
    """A scorer that has another one, which also scores every sentence."""

    @property
    def by_claim(self) -> BatchesItself:
        """The scorer that also scores every sentence."""
        ...


class BatchingScorer:
    """A `Scorer` that scores what many threads ask for in batches, one batch at a time.

    The exchange that has waited longest is in the next batch; the rest of it are those whose prompts begin like its
    prompt, then the next oldest. So none waits for more batches than stand before it.
    """

    def __init__(
        self,
        scorer: Scorer,
        *,
        window_s: float = 0.01,
        max_batch: int = 32,
        max_waiting: int = 512,
        clock: Callable[[], float] = time.monotonic,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        """Start the thread that scores.

        Args:
            scorer: scores the batches.
            window_s: seconds for which the first exchange of a batch waits for others; after a batch, at most a tenth
                of the time that it took.
            max_batch: most exchanges in a batch.
            max_waiting: most exchanges that wait; beyond that `BusyError` is raised.
            clock: returns seconds that never go back.
            on_batch: gets the size of each batch and the seconds it took.
        """
        self._scorer, self._clock, self._on_batch = scorer, clock, on_batch
        self._window_s, self._max_batch, self._max_waiting = window_s, max_batch, max_waiting
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._each_s = 0.0
        self._next_at = -math.inf
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, name="semgrad-batches", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """Readable name of the scoring model."""
        return self._scorer.name

    @property
    def waiting(self) -> int:
        """How many exchanges wait."""
        return len(self._jobs)

    @property
    def busy_s(self) -> float:
        """Seconds for which the present batch is being scored; 0 between batches."""
        since = self._busy_since
        return 0.0 if since is None else self._clock() - since

    @property
    def is_alive(self) -> bool:
        """Whether the thread that scores runs."""
        return self._thread.is_alive()

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what the scores depend on apart from the exchange."""
        return self._scorer.fingerprint(proxy=proxy)

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score of one exchange; one that has its score already waits for nobody.

        Raises:
            BusyError: too many exchanges wait.
            ScoringError: see `Scorer.score`.
        """
        if exchange.score is not None:
            return self._scorer.score(exchange, timeout_s=timeout_s, cancel=cancel)
        (result,) = self.score_batch([exchange], timeout_s=timeout_s, cancel=cancel)
        if isinstance(result, ScoringError):
            raise result
        return result

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return one score or error for each exchange, in order.

        Raises:
            BusyError: too many exchanges wait; none of these is scored.
        """
        now = self._clock()
        ends_at = None if timeout_s is None else now + timeout_s
        jobs = [_Job(exchange, start_of(exchange), now, ends_at, cancel) for exchange in exchanges]
        with self._changed:
            self._admit(jobs)
        return [self._result(job) for job in jobs]

    def retry_after_s(self) -> float:
        """Return in how many seconds there will be room again, by the pace of the last batches; at least 1."""
        return max(1.0, math.ceil(self._each_s * len(self._jobs) / 2))

    def close(self, timeout_s: float | None = None) -> None:
        """Score what waits and accept nothing new; wait for it at most `timeout_s` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)

    def _admit(self, jobs: Sequence[_Job]) -> None:
        if self._closing:
            raise ClosedError
        waiting = len(self._jobs)
        if waiting + len(jobs) > max(self._max_waiting, len(jobs) if waiting == 0 else 0):
            raise BusyError(waiting, self._max_waiting, self.retry_after_s())
        self._jobs.extend(jobs)
        self._changed.notify_all()

    def _result(self, job: _Job) -> Result:
        """Wait for a job's result, as long as it is wanted."""
        watched = job.cancel is not None or job.ends_at is not None
        while not job.done.wait(_LOOK_EVERY_S if watched else None):
            if not job.is_wanted(self._clock()):
                job.abandoned = True
                return ScoringEndedError()
        if job.result is None:  # set before `done`
            raise ClosedError
        return job.result

    # --- the thread that scores ---------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (jobs := self._next_batch()) is not None:
            if not jobs:
                continue
            self._busy_since = started = self._clock()
            for job, result in zip(jobs, self._scored(jobs), strict=True):
                job.finish(result)
            self._busy_since, ended = None, self._clock()
            self._next_at = ended + min(self._window_s, COME_BACK * (ended - started))
            self._note(len(jobs), ended - started)

    def _note(self, n: int, seconds: float) -> None:
        each = seconds / n
        self._each_s = each if not self._each_s else (1 - _WEIGHT) * self._each_s + _WEIGHT * each
        if self._on_batch is not None:
            self._on_batch(n, seconds)

    def _next_batch(self) -> list[_Job] | None:
        """Wait for jobs and return those of the next batch; `None` once it is closed and nothing waits."""
        with self._changed:
            while not self._jobs:
                if self._closing:
                    return None
                self._changed.wait()
            opens_at = max(self._jobs[0].queued_at + self._window_s, self._next_at)
            while not self._closing and len(self._jobs) < self._max_batch:
                left_s = opens_at - self._clock()
                if left_s <= 0 or not self._changed.wait(left_s):
                    break
            chosen = self._chosen()
        for job in chosen:
            if not job.is_wanted(self._clock()):
                job.finish(ScoringEndedError())
        return [job for job in chosen if not job.done.is_set()]

    def _chosen(self) -> list[_Job]:
        """Take the oldest job, those whose prompts begin alike, and then the next oldest, out of the waiting ones."""
        oldest = self._jobs[0]
        alike = [job for job in self._jobs if job.alike == oldest.alike]
        others = [job for job in self._jobs if job.alike != oldest.alike]
        chosen = [*alike, *others][: self._max_batch]
        taken = set(map(id, chosen))
        self._jobs = deque(job for job in self._jobs if id(job) not in taken)
        return chosen

    def _scored(self, jobs: Sequence[_Job]) -> list[Result]:
        try:
            return self._at_once(jobs)
        except Exception as error:  # noqa: BLE001 - one bad exchange must not take the others with it
            _log.warning("a batch of %d could not be scored: %s", len(jobs), type(error).__name__)
            if len(jobs) == 1:
                return [_as_scoring_error(error)]
            return [result for job in jobs for result in self._scored([job])]

    def _at_once(self, jobs: Sequence[_Job]) -> list[Result]:
        return self._scorer.score_batch(
            [job.exchange for job in jobs],
            timeout_s=_longest([job.ends_at for job in jobs], now=self._clock()),
            cancel=_NobodyWaits(jobs, self._clock),
        )


def _longest(moments: Sequence[float | None], *, now: float) -> float | None:
    """Return the seconds until the last of some moments; `None` where one never comes."""
    known = [moment for moment in moments if moment is not None]
    return max(0.0, max(known) - now) if len(known) == len(moments) else None


def _as_scoring_error(error: Exception) -> ScoringError:
    if isinstance(error, ScoringError):
        return error
    found = ScoringError(f"the scorer failed: {type(error).__name__}")  # its message may repeat the exchange
    found.__cause__ = error
    return found


def start_of(exchange: Exchange) -> object:
    """Return the beginning of an exchange's prompt, which is equal for prompts that begin alike."""
    if exchange.prompt_ids is not None:
        return exchange.prompt_ids[:ALIKE]
    prompt = exchange.prompt
    if isinstance(prompt, str):
        return prompt[:ALIKE]
    return "\n".join(message.content for message in prompt)[:ALIKE]
