"""The guard: what users and adapters call."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from semgrad_guard.flow import Progress
from semgrad_guard.guard.giving_up import in_thread
from semgrad_guard.guard.question_run import NOT_BEGUN, QuestionRun, judge, score_batch_within
from semgrad_guard.routing import NO_RESOURCES, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from typing import Self

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Decision, Exchange, Outcome, Record, Score
    from semgrad_guard.guard.question_run import Parts
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.ports import Scorer

_log = logging.getLogger("semgrad_guard")


class Guard:
    """Judges answers and carries out the policy; one guard may be used from many threads at once.

    Example:
        >>> from semgrad_guard import Exchange, Guard
        >>> guard = Guard.from_yaml()  # doctest: +SKIP
        >>> guard.judge(Exchange(prompt="Capital of France?", answer="Paris")).action  # doctest: +SKIP
        <Action.ACCEPT: 'accept'>
    """

    def __init__(self, parts: Parts | Callable[[], Parts], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a guard of its stages.

        Args:
            parts: the stages, or a function that returns the present ones (for a policy file that may change).
            clock: seconds, never going back.
        """
        self._current = parts if callable(parts) else lambda: parts
        self._clock = clock

    @classmethod
    def from_yaml(
        cls,
        path: str | Path | Mapping[str, object] | None = None,
        *,
        model: object | None = None,
        scorer: Scorer | None = None,
        embedder: Embedder | None = None,
        reload: bool = False,
    ) -> Self:
        """Return the guard that a policy file describes.

        Args:
            path: the file, or its content as a mapping; `None` takes the policy that ships with the package.
            model: scoring model, in place of the policy's `scorer.model`: anything `load_model` takes.
            scorer: a ready scorer, in place of the policy's.
            embedder: sentence embeddings, such as the retriever's, in place of the policy's `scorer.embedding`; without
                either, signals of meaning are left out.
            reload: follow changes of the file; while it is broken the last good policy stays in force.

        Raises:
            PolicyFileError: the file has a mistake; it names file, line and key.
            CalibrationError: the profile cannot be read, or cannot keep the error rate that `accept` asks for.
        """
        from semgrad_guard.guard.assembly import assemble  # noqa: PLC0415 - a guard of given parts needs no YAML

        return cls(assemble(path, model=model, scorer=scorer, embedder=embedder, reload=reload))

    @property
    def parts(self) -> Parts:
        """The stages in force now."""
        return self._current()

    def judge(self, exchange: Exchange, progress: Progress | None = None) -> Decision:
        """Return what the policy chooses for one answer; nothing is carried out or logged.

        Raises:
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
        """
        return judge(self._current(), exchange, progress or Progress())

    async def ajudge(self, exchange: Exchange, progress: Progress | None = None) -> Decision:
        """Same as `judge`, in a worker thread; cancelling the task ends the scoring."""
        return await in_thread(self.judge, exchange, progress)

    def run(
        self, exchange: Exchange, resources: Resources = NO_RESOURCES, *, progress: Progress = NOT_BEGUN
    ) -> Outcome:
        """Return what the caller gets for an answer, after retries, fallbacks and review as the policy says.

        Args:
            exchange: the first answer.
            resources: what retries and fallbacks act with; a step without its resource is skipped and recorded.
            progress: where an earlier call stopped with a `PostponedError`, whose next attempt this answer is.

        Raises:
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
            PostponedError: the chain among the resources makes the next attempt elsewhere.
        """
        return self._run(exchange, resources, None, progress)

    async def arun(self, exchange: Exchange, resources: Resources = NO_RESOURCES) -> Outcome:
        """Same as `run`, in a worker thread; cancelling the task ends the scoring, and no policy step follows."""
        return await in_thread(self.run, exchange, resources)

    def run_unjudged(self, exchange: Exchange, error: ScoringError, resources: Resources = NO_RESOURCES) -> Outcome:
        """Return what the caller gets for an answer that cannot be judged: the policy's `on_error` decides.

        Args:
            exchange: the answer, with whatever is known about it.
            error: why it cannot be judged.
            resources: what a step of the policy acts with.
        """
        return self._run(exchange, resources, error)

    def run_batch(self, exchanges: Sequence[Exchange], resources: Sequence[Resources] | None = None) -> list[Outcome]:
        """Return the outcomes of many answers, in order; the first attempts are scored in padded batches.

        A batch may be scored for as long as the time budgets of its questions together.
        """
        parts = self._current()
        scored: Sequence[Score | Exception | None]
        try:
            scored = score_batch_within(parts.scorer, exchanges, parts.budget_s)
        except TimeoutError as error:
            scored = [error] * len(exchanges)
        except Exception as error:  # noqa: BLE001 - one by one, each takes its own error
            _log.warning("batch scoring failed, scoring one by one: %s: %s", type(error).__name__, error)
            scored = [None] * len(exchanges)
        each = resources or [NO_RESOURCES] * len(exchanges)
        return [self._run(e, r, s) for e, r, s in zip(exchanges, each, scored, strict=True)]

    def emit(self, record: Record) -> None:
        """Log a record; what fails is logged itself and never reaches the caller."""
        sink = self._current().sink
        if sink is not None:
            try:
                sink.emit(record)
            except Exception:  # noqa: BLE001 - logging must not cost the caller the answer
                _log.exception("a record could not be logged")

    def close(self) -> None:
        """Write out telemetry that is still under way."""
        sink = self._current().sink
        if sink is not None:
            sink.close()

    def _run(
        self,
        exchange: Exchange,
        resources: Resources,
        scored: Score | Exception | None,
        progress: Progress = NOT_BEGUN,
    ) -> Outcome:
        outcome = QuestionRun(self._current(), resources, self._clock, progress).run(exchange, scored)
        self.emit(outcome.record)
        return outcome
