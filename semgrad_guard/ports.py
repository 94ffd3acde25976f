"""The protocols between the stages and the outside: scorer, retriever, queue, sink and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from semgrad_guard.errors import ScoringError
    from semgrad_guard.flow import (
        Attempt,
        BesideToolCalls,
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
    """Turns exchanges into raw uncertainty scores, in this process or remotely.

    A scorer should stop with an error and free its resources when `timeout_s` seconds have passed or `cancel` is set.
    The guard does not rely on this: with a time limit it calls the scorer in a separate thread, stops waiting two
    seconds after the limit, and drops later results. A score that arrives after `cancel` was set is also dropped.
    """

    @property
    def name(self) -> str:
        """Readable name of the scoring model."""
        ...

    def fingerprint(self, *, proxy: bool = False) -> Fingerprint:
        """Return what the scores depend on apart from the exchange."""
        ...

    def score(
        self, exchange: Exchange, *, timeout_s: float | None = None, cancel: threading.Event | None = None
    ) -> Score:
        """Return the score of one exchange.

        Args:
            exchange: the exchange to score.
            timeout_s: time limit in seconds, which includes loading a model; `None` sets no limit.
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
            exchanges: the exchanges to score.
            timeout_s: time limit in seconds for the whole batch; `None` sets no limit.
            cancel: as for `score`.

        Raises:
            TimeoutError: it took longer than `timeout_s`; a scorer may instead return an error for each missing score.
        """
        ...


@runtime_checkable
class Calibrator(Protocol):
    """Turns a score into a confidence."""

    def confidence(self, exchange: Exchange, score: Score) -> Confidence:
        """Return calibrated P(answer is correct), or a confidence of `None` with the reason."""
        ...

    def with_span_confidences(self, score: Score) -> Score:
        """Return the score with a confidence for each span that can be calibrated."""
        ...


@runtime_checkable
class Decider(Protocol):
    """Chooses the next step, without side effects."""

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
class RulesBesideTools(Protocol):
    """A decider that says what happens to text beside a request for tools; any other has it judged."""

    def beside_tool_calls(self, exchange: Exchange) -> tuple[BesideToolCalls, str]:
        """Return what happens to such a text, and the rule that says so."""
        ...


@runtime_checkable
class RulesWithoutAnswer(Protocol):
    """A decider that says who answers where the model gave no answer; any other leaves the question unanswered."""

    def without_answer(self, exchange: Exchange, failure: Failure, progress: Progress) -> Decision | None:
        """Return the decision to ask another model for the first answer; `None` where none is left to ask."""
        ...


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for a question.

    `AnswerModel.answer` gets the chosen passages unchanged, so an adapter can find its own documents by them
    (`semgrad_guard.routing.DocumentMap`).
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
    """A chain whose fields `retry_retrieval` may change, as the policy says under `configurable`."""

    def with_configurable(self, fields: Mapping[str, Json]) -> AnswerModel:
        """Return the chain with these fields set."""
        ...


@runtime_checkable
class RetrievingChain(Protocol):
    """A chain that retrieves and answers again in one call, because the guard cannot reach its retriever.

    If the chain is also an `AnswerModel`, this is used only where the guard has no retriever for the step.
    """

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        """Return the exchange of a new attempt.

        Args:
            exchange: the attempt that was not good enough; only its question and tags may be used.
            query: the text to retrieve with; the question itself unless it was rewritten.
            step: how to retrieve this time.

        Raises:
            PostponedError: (of `routing`) the new answer will come in another call of the guard.
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
        """Store an answer for review, durably and only once for each exchange id.

        Raises:
            QueueUnavailableError: the answer could not be stored.
        """
        ...

    def wait(self, review_id: ReviewId, timeout_s: float) -> Ruling | None:
        """Wait up to `timeout_s` seconds for the verdict and return it, or `None`."""
        ...


@runtime_checkable
class DecidableQueue(ReviewQueue, Protocol):
    """A queue that accepts verdicts which are given elsewhere.

    `op` identifies a verdict, in at most 64 characters: a second call with the same `op` changes nothing. Every method
    raises `ItemNotFoundError` for an unknown item, `IllegalMoveError` for an item that already has a verdict, and
    `AlreadyClaimedError` for an item that another reviewer has claimed.

    `by` and `reviewer` name the person who decided (at most 200 characters). A queue on its own database trusts the
    name: that person acts, holds leases and is named in the verdict. A review site trusts only the token: its account
    acts (`account/token` holds leases and is named in the verdict), and the audit trail records the person as
    `on_behalf_of`. Naming a person therefore gives no access to that person's items.
    """

    def approve(self, review_id: ReviewId, by: str, *, op: str | None = None) -> object:
        """Approve the answer as it is."""
        ...

    def edit(self, review_id: ReviewId, by: str, text: str, *, op: str | None = None) -> object:
        """Approve a text in place of the answer.

        Raises:
            EmptyTextError: the text is blank.
        """
        ...

    def reject(self, review_id: ReviewId, by: str, reason: str = "", *, op: str | None = None) -> object:
        """Hold the answer back for good."""
        ...

    def release(self, review_id: ReviewId, reviewer: str, *, force: bool = False) -> object:
        """Put a claimed item back; with `force`, also one that another reviewer has claimed.

        Raises:
            ReviewError: `force` was used at a review site, and the token's account is not an administrator's.
        """
        ...


@runtime_checkable
class Sink(Protocol):
    """Sends records to where people read them. It must not raise, block for long or change anything."""

    def emit(self, record: Record) -> None:
        """Log one record."""
        ...

    def close(self) -> None:
        """Write out pending records."""
        ...


@runtime_checkable
class TextModel(Protocol):
    """Anything that continues a prompt with text."""

    def complete(self, prompt: Prompt) -> str:
        """Return the model's answer to a prompt."""
        ...
