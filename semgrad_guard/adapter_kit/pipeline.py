"""A guard around any pipeline: five functions say how it is asked, and the policy does the rest.

This is the whole way from a framework to the guard. Frameworks that are called in many ways (streams, batches, agents)
take the parts that they need from the other files of the kit; a pipeline that is asked and answers needs no more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Generic, Literal, Protocol

from semgrad_guard.adapter_kit.candidates import Attempts, Candidate, Value, candidate_of, run_guard
from semgrad_guard.adapter_kit.cleaner import Cleaner
from semgrad_guard.adapter_kit.findings import findings, held_back
from semgrad_guard.adapter_kit.means import Means, check_means
from semgrad_guard.adapter_kit.observe import recording_faults
from semgrad_guard.adapter_kit.options import check_option
from semgrad_guard.adapter_kit.withheld import withheld_by
from semgrad_guard.errors import ScoringError
from semgrad_guard.flow import Exchange
from semgrad_guard.guard import in_thread
from semgrad_guard.routing import Resources

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Sequence

    from semgrad_guard.adapter_kit.candidates import Answer, ModelCall
    from semgrad_guard.flow import Json, Outcome, Passage
    from semgrad_guard.guard import Guard
    from semgrad_guard.ports import QueryRewriter

_log = logging.getLogger("semgrad_guard")

OnWithheld = Literal["message", "raise"]
"""What a withheld answer becomes: the policy's message in its place, or a `LowConfidenceError`."""


class Pipeline(Protocol[Value]):
    """What a framework supplies: five functions over its own values."""

    def ask(self, question: str, passages: Sequence[Passage] | None, model: str | None) -> Value:
        """Return what the pipeline gives for a question.

        Args:
            question: the user's question.
            passages: the passages to answer from; `None` lets the pipeline retrieve as always.
            model: name of a fallback model to ask; `None` asks the pipeline's own.
        """
        ...

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """Return at most about `top_k` passages, best first."""
        ...

    def calls(self, value: Value) -> Sequence[ModelCall]:
        """Return the model calls that were made for a value, oldest first."""
        ...

    def read(self, value: Value) -> Answer:
        """Return the text of a value, and the passages that it was written from."""
        ...

    def give(self, value: Value, text: str, found: dict[str, Json]) -> Value:
        """Return a value with a text in the answer's place and the guard's findings beside it.

        Args:
            value: what the pipeline gave, without the texts in it that repeat a withheld answer; it is not changed, and
                nothing of the answer may stay in the result.
            text: what the caller gets.
            found: confidence, decision and reason as plain JSON values.
        """
        ...


class GuardedPipeline(Generic[Value]):
    """A pipeline under a guard: it asks, and gives what the policy allows.

    Args:
        pipeline: the framework's five functions.
        guard: what judges and decides.
        fallbacks: names of fallback models that `pipeline.ask` knows.
        rewriter: rewords a question for retrieval, where the policy asks for that.
        on_withheld: `"message"` gives the policy's message in a withheld answer's place; `"raise"` raises
            `LowConfidenceError`.

    Raises:
        OptionError: `on_withheld` has an unknown value.
        StepUnavailableError: the policy names a fallback model that the pipeline does not know.
    """

    def __init__(
        self,
        pipeline: Pipeline[Value],
        guard: Guard,
        *,
        fallbacks: Collection[str] = (),
        rewriter: QueryRewriter | None = None,
        on_withheld: OnWithheld = "message",
    ) -> None:
        check_option("on_withheld", on_withheld, ("message", "raise"))
        advice = "GuardedPipeline(pipeline, guard, {})"
        check_means(guard, Means(retrieves=True, fallbacks=fallbacks, may_have_more=True, advice=advice))
        self.pipeline, self.guard = pipeline, guard
        self._fallbacks, self._rewriter, self._raises = tuple(fallbacks), rewriter, on_withheld == "raise"

    def ask(self, question: str, *, tags: Collection[str] = (), cancel: threading.Event | None = None) -> Value:
        """Return the guarded answer to a question.

        Args:
            question: the user's question.
            tags: what the policy's overrides may match.
            cancel: set, from another thread, when the answer is no longer needed.

        Raises:
            LowConfidenceError: the answer was held back, and `on_withheld` is `"raise"`.
            UncalibratedError: there is no confidence and the policy says `on_uncalibrated: error`.
            CancelledError: (of `asyncio`) `cancel` was set.
        """
        with recording_faults(self.guard, question):
            value = self.pipeline.ask(question, None, None)
        run = _PipelineRun(self.pipeline, question, frozenset(tags))
        outcome = self._outcome(run, value, cancel)
        if outcome.withheld and self._raises:
            raise held_back(outcome)
        value, left_out = run.attempts.values[outcome.exchange.id], list[str]()
        if (withheld := withheld_by(outcome)) is not None:
            cleaner = Cleaner(withheld)
            value, left_out = cleaner.clean(value), cleaner.left_out
        return self.pipeline.give(value, outcome.text, findings(outcome, left_out=left_out))

    async def aask(self, question: str, *, tags: Collection[str] = ()) -> Value:
        """Same as `ask` in a worker thread; cancelling the task ends the question."""
        return await in_thread(lambda cancel: self.ask(question, tags=tags, cancel=cancel))

    def _outcome(self, run: _PipelineRun[Value], value: Value, cancel: threading.Event | None) -> Outcome:
        resources = Resources(
            chain=run,
            retriever=self.pipeline,
            rewriter=self._rewriter,
            fallbacks={name: _Fallback(run, name) for name in self._fallbacks},
        )
        return run_guard(self.guard, run.first(value), resources, cancel)


@dataclass(slots=True)
class _PipelineRun(Generic[Value]):
    """One question to a pipeline."""

    pipeline: Pipeline[Value]
    question: str
    tags: frozenset[str]
    attempts: Attempts[Value] = field(default_factory=Attempts[Value])

    def first(self, value: Value) -> Candidate:
        """Return the first answer as something to judge; one that cannot be read takes the policy's `on_error`."""
        try:
            candidate = self._candidate(value)
        except Exception as error:  # noqa: BLE001 - an answer that cannot be read must not break the pipeline
            _log.warning("could not read what a pipeline gave: %s", type(error).__name__)
            why = ScoringError(f"could not read what the pipeline gave: {type(error).__name__}: {error}")
            candidate = Candidate(Exchange(question=self.question, tags=self.tags), why)
        return self.attempts.first(candidate, value)

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return a new attempt by the pipeline's own model."""
        return self.again(exchange, passages, None)

    def again(self, earlier: Exchange, passages: Sequence[Passage] | None, model: str | None) -> Exchange:
        """Ask the question once more; nothing of the earlier answer is in it."""
        value = self.pipeline.ask(self.question, passages, model)
        return self.attempts.following(earlier, self._candidate(value), value)

    def _candidate(self, value: Value) -> Candidate:
        answer = self.pipeline.read(value)
        candidate = candidate_of(answer, self.pipeline.calls(value), question=self.question)
        return Candidate(replace(candidate.exchange, tags=answer.tags | self.tags), candidate.error)


@dataclass(frozen=True, slots=True)
class _Fallback(Generic[Value]):
    """One fallback model, asked the same question with the passages of the attempt that was not good enough."""

    run: _PipelineRun[Value]
    name: str

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return a new attempt by the fallback model."""
        return self.run.again(exchange, passages or exchange.passages, self.name)
