"""The guard: what users and adapters call."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextvars import copy_context
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple

from semgrad_guard.context import with_context
from semgrad_guard.errors import in_log
from semgrad_guard.flow import Failure, Progress
from semgrad_guard.guard.question_run import NOT_BEGUN, QuestionRun, judge, keep_time, on_error
from semgrad_guard.routing import NO_RESOURCES, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import Decision, Exchange, Outcome, Record, Score
    from semgrad_guard.guard.question_run import Parts
    from semgrad_guard.models.embedding import Embedder
    from semgrad_guard.policy import AcceptOption, PolicySource
    from semgrad_guard.ports import Scorer

_log = logging.getLogger("semgrad_guard")

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(work: Callable[[*Ts, threading.Event], T], *args: *Ts) -> T:
    """Run work in a thread, so that the event loop is never blocked.

    Args:
        work: called with `args` and, as its last argument, an event that is set when the task is cancelled. If `work`
            passes the event to `Guard.run` or a similar method, scoring stops at the next decoder block and the
            question ends: no step of the policy follows, and nothing is recorded.
        args: the first arguments of `work`.

    Example:
        >>> outcome = await in_thread(lambda cancel: guard.run(exchange, cancel=cancel))  # doctest: +SKIP
    """
    cancel, context = threading.Event(), copy_context()
    try:
        return await asyncio.get_running_loop().run_in_executor(None, context.run, lambda: work(*args, cancel))
    finally:
        cancel.set()


class Guard:
    """Judges answers and carries out the policy. It is safe to share between threads.

    It has one of three strengths: `Guard.from_yaml()` measures and changes no answer, `Guard.from_yaml(accept=0.7)`
    holds back what is less sure or was not judged, and `Guard.from_yaml("policy.yaml")` does what the policy says.

    Example:
        >>> from semgrad_guard import Exchange, Guard
        >>> guard = Guard.from_yaml(accept=0.7)  # doctest: +SKIP
        >>> guard.judge(Exchange(prompt="Capital of France?", answer="Paris")).action  # doctest: +SKIP
        <Action.ACCEPT: 'accept'>
    """

    def __init__(self, parts: Parts | Callable[[], Parts], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Create a guard from its stages.

        Args:
            parts: the stages, or a function that returns the present ones (for a policy file that may change).
            clock: returns seconds; where they go back, no time has passed.
        """
        self._current = parts if callable(parts) else lambda: parts
        self._clock = clock

    @classmethod
    def from_yaml(
        cls,
        path: PolicySource | None = None,
        *,
        accept: AcceptOption | None = None,
        model: object | None = None,
        scorer: Scorer | None = None,
        embedder: Embedder | None = None,
        reload: bool = False,
    ) -> Self:
        """Return the guard that a policy file describes; without one, a guard that measures or holds back.

        Args:
            path: the file, its content as a mapping, or a policy.
            accept: in place of a policy: answers with a lower confidence, or without one, are held back. A number from
                0 to 1, or `{"max_error_rate": 0.1, "delta": 0.05}` to have it computed from the profile's labels. With
                neither `path` nor `accept`, every answer passes as it is.
            model: scoring model, in place of the policy's `scorer.model`: anything `load_model` takes.
            scorer: a ready scorer, in place of the policy's.
            embedder: sentence embeddings, such as the retriever's, in place of the policy's `scorer.embedding`; without
                either, signals that compare meanings are left out.
            reload: reload the file when it changes; while it has a mistake the last good policy stays in force.

        Raises:
            OptionError: `accept` is given beside a policy, or is no confidence.
            PolicyFileError: the file has mistakes; the error lists all, with file, line and key.
            ModelError: the scoring model is not installed, missing or misspelt; the error says what to type.
            CalibrationError: the profile cannot be read, is another model's, or cannot keep the error rate that
                `accept` asks for.
        """
        from semgrad_guard.guard.assembly import assemble  # a guard of given parts needs no YAML

        return cls(assemble(path, accept=accept, model=model, scorer=scorer, embedder=embedder, reload=reload))

    @property
    def parts(self) -> Parts:
        """The stages in force now."""
        return self._current()

    @property
    def can_change_answers(self) -> bool:
        """Whether its caller may get anything but the model's own text; a stream need not be held back otherwise."""
        return self._can("can_change_answers")

    @property
    def can_answer_again(self) -> bool:
        """Whether a step of the policy asks for another answer."""
        return self._can("can_answer_again")

    @property
    def only_measures(self) -> bool:
        """Whether every caller gets the first answer as the model wrote it, so that no stream need be held back."""
        return not (self.can_change_answers or self.can_answer_again)

    def _can(self, ability: str) -> bool:
        """Return whether the decider says so; one of the user's own that does not say is taken to be able to."""
        return bool(getattr(self._current().decider, ability, True))

    def judge(
        self, exchange: Exchange, progress: Progress | None = None, *, cancel: threading.Event | None = None
    ) -> Decision:
        """Return the policy's decision about one answer, without carrying it out or logging it.

        Args:
            exchange: the answer.
            progress: what has happened to the question so far.
            cancel: set, from another thread, when the decision is no longer needed.

        Raises:
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
            CancelledError: (of `asyncio`) `cancel` was set.
        """
        return judge(self._current(), with_context(exchange), progress or Progress(), cancel=cancel)

    def judge_failed(self, exchange: Exchange, error: ScoringError) -> Decision:
        """Return the policy's decision about an answer that cannot be judged, without carrying it out or logging it."""
        return on_error(self._current(), exchange, Failure.of("scoring", error), Progress())

    async def ajudge(self, exchange: Exchange, progress: Progress | None = None) -> Decision:
        """Same as `judge`, in a worker thread; cancelling the task ends the scoring."""
        return await in_thread(lambda cancel: self.judge(exchange, progress, cancel=cancel))

    def run(
        self,
        exchange: Exchange,
        resources: Resources = NO_RESOURCES,
        *,
        progress: Progress = NOT_BEGUN,
        cancel: threading.Event | None = None,
    ) -> Outcome:
        """Judge an answer, carry out the policy's retries, fallbacks and review, and return what the caller gets.

        Args:
            exchange: the first answer.
            resources: retrievers and models for retries and fallbacks; a step without its resource is skipped and
                recorded.
            progress: progress of an earlier call that raised `PostponedError`; this answer is then its next attempt.
            cancel: set, from another thread, when the outcome is no longer needed.

        Raises:
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
            PostponedError: the chain in the resources makes the next attempt in another call.
            CancelledError: (of `asyncio`) `cancel` was set; nothing is recorded.
        """
        run = QuestionRun(self._current(), resources, clock=self._clock, progress=progress, cancel=cancel)
        return self._recorded(run.run(exchange))

    async def arun(self, exchange: Exchange, resources: Resources = NO_RESOURCES) -> Outcome:
        """Same as `run`, in a worker thread; cancelling the task ends the scoring, and no policy step follows."""
        return await in_thread(lambda cancel: self.run(exchange, resources, cancel=cancel))

    def run_unjudged(
        self,
        exchange: Exchange,
        error: ScoringError,
        resources: Resources = NO_RESOURCES,
        *,
        cancel: threading.Event | None = None,
    ) -> Outcome:
        """Apply the policy's `on_error` to an answer that cannot be judged, and return what the caller gets.

        Args:
            exchange: the answer, with whatever is known about it.
            error: why it cannot be judged.
            resources: retrievers and models for the policy's steps.
            cancel: as for `run`.
        """
        run = QuestionRun(self._current(), resources, clock=self._clock, cancel=cancel)
        return self._recorded(run.run(exchange, error))

    def run_unanswered(
        self,
        exchange: Exchange,
        error: Exception,
        resources: Resources = NO_RESOURCES,
        *,
        cancel: threading.Event | None = None,
    ) -> Outcome:
        """Ask the policy's fallback models a question that the model gave no answer to, and judge what they answer.

        Args:
            exchange: the question, with an empty answer.
            error: why the model gave none.
            resources: the fallback models.
            cancel: as for `run`.

        Raises:
            UnansweredError: none of them gave an answer either; nothing is recorded.
            UncalibratedError: as for `run`.
            CancelledError: (of `asyncio`) `cancel` was set.
        """
        run = QuestionRun(self._current(), resources, clock=self._clock, cancel=cancel)
        return self._recorded(run.run_unanswered(exchange, error))

    def run_batch(
        self,
        exchanges: Sequence[Exchange],
        resources: Sequence[Resources] | None = None,
        *,
        cancel: threading.Event | None = None,
    ) -> list[Outcome]:
        """Return the outcomes of many answers, in order; the first attempts are scored in padded batches.

        The time limit for scoring the batch is the sum of its questions' time budgets.

        Args:
            exchanges: the first answers.
            resources: retrievers and models for retries and fallbacks, for each answer.
            cancel: as for `run`, for the whole batch.
        """
        parts, exchanges = self._current(), [with_context(exchange) for exchange in exchanges]
        limit_s = None if parts.budget_s is None else parts.budget_s * len(exchanges)
        scored: Sequence[Score | Exception | None]
        try:
            scored = keep_time(
                lambda timeout_s: parts.scorer.score_batch(exchanges, timeout_s=timeout_s, cancel=cancel),
                limit_s,
                cancel,
            )
        except TimeoutError as error:
            scored = [error] * len(exchanges)
        except Exception as error:  # noqa: BLE001 - scored one by one, each answer gets its own error
            _log.warning("batch scoring failed, scoring one by one: %s", in_log(error))
            scored = [None] * len(exchanges)
        outcomes: list[Outcome] = []
        for exchange, own, score in zip(exchanges, resources or [NO_RESOURCES] * len(exchanges), scored, strict=True):
            run = QuestionRun(self._current(), own, clock=self._clock, cancel=cancel)
            outcomes.append(self._recorded(run.run(exchange, score)))
        return outcomes

    def emit(self, record: Record) -> None:
        """Send a record to telemetry; a failure is logged and never reaches the caller."""
        sink = self._current().sink
        if sink is not None:
            try:
                sink.emit(record)
            except Exception as error:  # noqa: BLE001 - logging must not cost the caller the answer
                _log.warning("a record could not be logged: %s", in_log(error))

    def close(self) -> None:
        """Write out pending telemetry."""
        sink = self._current().sink
        if sink is not None:
            sink.close()

    def _recorded(self, outcome: Outcome) -> Outcome:
        self.emit(outcome.record)
        return outcome
