"""The protocols by which the stages meet each other and the outside: scorer, retriever, queue, sink and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import (
        Attempt,
        Confidence,
        Decision,
        Exchange,
        Failure,
        Fingerprint,
        Json,
        Passage,
        Progress,
        Prompt,
        Record,
        RetryRetrieval,
        ReviewId,
        Ruling,
        Score,
    )


@runtime_checkable
class Scorer(Protocol):
    """Turns exchanges into raw uncertainty scores; a remote scorer implements the same.

    A scorer should stop with an error when `timeout_s` seconds have passed or `cancel` is set, and free what it holds.
    The guard does not rely on it: where there is a limit, it calls the scorer in a thread of its own, stops waiting two
    seconds after the limit, and drops what comes later. A score that comes after `cancel` was set is dropped too.
    """

    @property
    def name(self) -> str:
        """Readable name of the scoring model."""
        ...

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what its scores depend on beside the exchange."""
        ...

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score of one exchange.

        Args:
            exchange: what to score.
            timeout_s: how many seconds it may take, loading a model included; `None` sets no limit.
            cancel: set, from another thread, when the score is no longer needed.

        Raises:
            ScoringError: the exchange cannot be scored, or the scorer stopped early.
            TimeoutError: it took longer than `timeout_s`.
        """
        ...

    def score_batch(
        self,
        exchanges: Sequence[Exchange],
        *,
        timeout_s: float | None = None,
        cancel: threading.Event | None = None,
    ) -> list[Score | ScoringError]:
        """Return one score or error for each exchange, in order; one bad exchange does not spoil the others.

        Args:
            exchanges: what to score.
            timeout_s: how many seconds the whole batch may take; `None` sets no limit.
            cancel: as for `score`.

        Raises:
            TimeoutError: it took longer than `timeout_s`; a scorer may also put an error in the place of each score
                that is missing.
        """
        ...


@runtime_checkable
class Calibrator(Protocol):
    """Turns a score into a confidence."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        """Return calibrated P(answer is correct), or a confidence of `None` that says why there is none."""
        ...

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score with a confidence for each of its spans, where there can be one."""
        ...


@runtime_checkable
class Decider(Protocol):
    """Chooses the next step; pure."""

    def best(self, exchange: Exchange, decision: Decision, progress: Progress) -> Exchange:
        """Return the attempt with the highest confidence among the earlier ones and the present one."""
        ...

    def decide_failure(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
        """Return what happens to an answer that could not be judged (the policy's `on_error`)."""
        ...

    def decide(self, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
        """Return the step for a judged exchange.

        Raises:
            UncalibratedError: there is no confidence and the policy says that this is an error.
        """
        ...


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for a question.

    Those that are answered from reach `AnswerModel.answer` as they are returned here, so an adapter can find its own
    documents by them (`semgrad_guard.routing.DocumentMap`).
    """

    def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
        """Return at most about `top_k` passages, best first."""
        ...


@runtime_checkable
class AnswerModel(Protocol):
    """Answers a question again, from passages or from a prompt: the chain being guarded, or a fallback model."""

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        """Return the exchange of a new attempt.

        Args:
            exchange: the attempt that was not good enough; only its question, prompt and tags may be used.
            passages: the passages to answer from; `None` keeps the prompt as it was.
        """
        ...


@runtime_checkable
class ConfigurableChain(Protocol):
    """A chain of which `retry_retrieval` may change the fields that the policy names under `configurable`."""

    def with_configurable(self, fields: Mapping[str, Json]) -> AnswerModel:
        """Return the same chain with these fields."""
        ...


@runtime_checkable
class RetrievingChain(Protocol):
    """A chain that retrieves and answers again in one go, because the guard cannot reach its retriever.

    A chain that is an `AnswerModel` too is asked in this way only where the guard has no retriever for the step.
    """

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Return the exchange of a new attempt.

        Args:
            exchange: the attempt that was not good enough; only its question and tags may be used.
            query: the text to retrieve with; the question itself unless it was rewritten.
            step: how to retrieve this time.

        Raises:
            PostponedError: (of `routing`) the new answer will come as another call of the guard.
        """
        ...


@runtime_checkable
class QueryRewriter(Protocol):
    """Rewords a question for retrieval."""

    def rewrite(self, question: str) -> str:
        """Return the question in other words, for retrieval only."""
        ...


@runtime_checkable
class ReviewQueue(Protocol):
    """Keeps answers for people to judge."""

    def submit(self, exchange: Exchange, decision: Decision, attempts: Sequence[Attempt] = ()) -> ReviewId:
        """Store an answer for review, durably and idempotently by the exchange's id.

        Raises:
            QueueUnavailableError: it could not be stored.
        """
        ...

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:
        """Return the verdict, or `None` when there is none after `timeout_s` seconds."""
        ...


@runtime_checkable
class DecidableQueue(ReviewQueue, Protocol):
    """A queue that takes verdicts, for verdicts that are given elsewhere.

    `op` names a verdict, in at most 64 characters: the same name given twice is done once. Every method raises
    `ItemNotFoundError` for an unknown item, `IllegalMoveError` where the item has its verdict, and
    `AlreadyClaimedError` where somebody else holds it.

    `by` and `reviewer` name the person who decided (at most 200 characters). A queue that works on its own database
    believes the name: that person acts, holds leases and is named by the verdict. A review site believes only the
    token: its account acts (`account/token` holds leases and is named by the verdict), and the audit trail keeps the
    person beside it, as `on_behalf_of`. Naming somebody therefore gives no right to what they hold.
    """

    def approve(self, review_id: ReviewId, by: str, *, op: str | None = None) -> object:
        """Let the answer out as it is."""
        ...

    def edit(self, review_id: ReviewId, by: str, text: str, *, op: str | None = None) -> object:
        """Let out a text in place of the answer.

        Raises:
            EmptyTextError: the text is blank.
        """
        ...

    def reject(self, review_id: ReviewId, by: str, reason: str = "", *, op: str | None = None) -> object:
        """Hold the answer back for good."""
        ...

    def release(self, review_id: ReviewId, reviewer: str, *, force: bool = False) -> object:
        """Put a claimed item back; `force` does so for somebody else's.

        Raises:
            ReviewError: a review site was told to `force`, and the token's account is not an administrator's.
        """
        ...


@runtime_checkable
class Sink(Protocol):
    """Takes records to where people read them. It must not raise, block for long or change anything."""

    def emit(self, record: Record) -> None:
        """Log one record."""
        ...

    def close(self) -> None:
        """Write out what is still under way."""
        ...


@runtime_checkable
class TextModel(Protocol):
    """Anything that continues a prompt with text."""

    def complete(self, prompt: Prompt) -> str:
        """Return the model's answer to a prompt."""
        ...
