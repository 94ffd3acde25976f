"""Carries out one step of the policy: retrieve and answer again, ask another model, ask a person, or settle."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from semgrad_guard.errors import (
    FallbackFailedError,
    QueueUnavailableError,
    RetrievalFailedError,
    ReviewError,
    StepUnavailableError,
)
from semgrad_guard.flow import (
    Abstain,
    Accept,
    AnswerWithWarning,
    FallbackModel,
    NewAttempt,
    Passage,
    Progress,
    RetryRetrieval,
    Status,
    Verdict,
)
from semgrad_guard.ports import AnswerModel, Retriever, RetrievingChain
from semgrad_guard.routing.deadline import Deadline, call_before

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from semgrad_guard.flow import Attempt, Decision, Exchange, HumanReview, ReviewId, Ruling
    from semgrad_guard.ports import QueryRewriter, ReviewQueue


class PostponedError(Exception):
    """Raised by `RetrievingChain.answer_again` when the new answer will come as another call.

    An agent searches again by going on with its graph: the guard's run ends here without a record, and the agent's next
    final answer is judged by `Guard.run(exchange, resources, progress=error.progress)`.
    """

    def __init__(self) -> None:
        """Begin without a progress; the guard fills it in."""
        self.progress = Progress()
        super().__init__("the new answer comes in another call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Retrievers, models and chains by which the policy's steps act; a step without its resource is skipped."""

    chain: AnswerModel | RetrievingChain | None = None
    """Answers the question again: from passages found by `retriever`, or with a retriever of its own."""
    retriever: Retriever | None = None
    retrievers: Mapping[str, Retriever] = field(default_factory=dict[str, "Retriever"])
    """Other retrievers by the name that the policy uses."""
    rewriter: QueryRewriter | None = None
    fallbacks: Mapping[str, AnswerModel] = field(default_factory=dict[str, "AnswerModel"])
    """Fallback models by the name that the policy uses."""


NO_RESOURCES = Resources()


T = TypeVar("T")

TRANSIENT_TRIES = 3
"""How often a call that fails for a passing reason is made before the step counts as failed."""
DEFAULT_TOP_K = 4
"""Passages of a first attempt whose number is unknown: LangChain's and LlamaIndex' retrievers return 4 and 2."""


def next_attempt(step: NewAttempt, exchange: Exchange, resources: Resources, deadline: Deadline) -> Exchange:
    """Return the exchange of a new attempt at the same question.

    Nothing of the earlier answer goes into the new prompt.

    Args:
        step: what the policy chose.
        exchange: the attempt that was not good enough.
        resources: what can be acted with.
        deadline: end of the policy's time budget; the step's own `timeout_s` ends it earlier.

    Raises:
        RoutingError: the step could not be carried out; the cause is kept.
        PostponedError: the new attempt will come as another call.
    """
    deadline = deadline.within(step.timeout_s)
    if isinstance(step, RetryRetrieval):
        return _retrieve_again(step, exchange, resources, deadline)
    return _ask_fallback(step, exchange, resources, deadline)


def _ask_fallback(step: FallbackModel, exchange: Exchange, resources: Resources, deadline: Deadline) -> Exchange:
    model = resources.fallbacks.get(step.name)
    if model is None:
        known = ", ".join(sorted(resources.fallbacks)) or "none"
        advice = f"pass fallbacks={{{step.name!r}: llm}}"
        msg = f"no fallback model {step.name!r} was given to this guard (given: {known}): {advice}"
        raise StepUnavailableError(msg)
    try:
        return _patiently(lambda: model.answer(exchange, None), deadline, f"fallback model {step.name!r}")
    except Exception as error:
        msg = f"fallback model {step.name!r} gave no answer: {type(error).__name__}: {error}"
        raise FallbackFailedError(msg) from error


def _retrieve_again(step: RetryRetrieval, exchange: Exchange, resources: Resources, deadline: Deadline) -> Exchange:
    chain = resources.chain
    if chain is None:
        msg = "this guard can't answer again: wrap the chain, as in SemGradGuard(...).wrap(chain, retriever=retriever)"
        raise StepUnavailableError(msg)
    try:
        query = _query(step, exchange, resources, deadline)
        if isinstance(chain, RetrievingChain):
            return _patiently(lambda: chain.answer_again(exchange, query=query, step=step), deadline, "answering again")
        return _retrieve_then_answer(step, exchange, resources, chain, deadline=deadline, query=query)
    except (RetrievalFailedError, StepUnavailableError, PostponedError):
        raise
    except Exception as error:
        msg = f"retrieving again failed: {type(error).__name__}: {error}"
        raise RetrievalFailedError(msg) from error


def _query(step: RetryRetrieval, exchange: Exchange, resources: Resources, deadline: Deadline) -> str:
    question = exchange.question
    if not question:
        msg = "the question is not known, so nothing can be retrieved for it: give the guard the question"
        raise StepUnavailableError(msg)
    rewriter = resources.rewriter
    if not step.rewrite_query or rewriter is None:
        return question
    return _patiently(lambda: rewriter.rewrite(question), deadline, "rewriting the query").strip() or question


def _retrieve_then_answer(
    step: RetryRetrieval,
    exchange: Exchange,
    resources: Resources,
    chain: AnswerModel,
    *,
    deadline: Deadline,
    query: str,
) -> Exchange:
    retriever = _retriever(step, resources)
    top_k = wanted_passages(step, exchange)
    found = _patiently(lambda: retriever.retrieve(query, top_k), deadline, "retrieval")
    passages = worth_reading(step, exchange, found)
    return _patiently(lambda: chain.answer(exchange, passages), deadline, "answering again")


def _retriever(step: RetryRetrieval, resources: Resources) -> Retriever:
    retriever = resources.retrievers.get(step.retriever) if step.retriever else resources.retriever
    if retriever is None:
        name = repr(step.retriever) if step.retriever else "of the chain"
        msg = f"no retriever {name} was given to this guard: pass it to wrap(chain, retriever=..., retrievers={{...}})"
        raise StepUnavailableError(msg)
    return retriever


def wanted_passages(step: RetryRetrieval, exchange: Exchange) -> int:
    """Return how many passages to ask for: the step's `top_k`, else twice as many as the attempt had."""
    return step.top_k or 2 * (len(exchange.passages) or DEFAULT_TOP_K)


def worth_reading(step: RetryRetrieval, exchange: Exchange, found: Sequence[Passage]) -> tuple[Passage, ...]:
    """Return the passages to answer from.

    Args:
        step: with `drop_unused`, passages of the failed attempt of which no word reached its answer are left out.
        exchange: the attempt that was not good enough.
        found: what the retriever returned.

    Raises:
        RetrievalFailedError: nothing was found, or the very passages that already failed, so asking again can't help.
    """
    before = {passage.text for passage in exchange.passages}
    kept = list(found)
    if step.drop_unused:
        words = answer_words(exchange)
        kept = [passage for passage in found if passage.text not in before or words & _words(passage.text)] or kept
    if not kept:
        msg = "the retriever returned no passages: nothing new to answer from"
        raise RetrievalFailedError(msg)
    if before and {passage.text for passage in kept} == before:
        msg = "the retriever returned the same passages as before: answering again can't help"
        raise RetrievalFailedError(msg)
    return tuple(kept)


def answer_words(exchange: Exchange) -> frozenset[str]:
    """Return the lower-case words of the answer that carry content and are not the question's own."""
    return frozenset(w for w in _words(exchange.answer) if len(w) > 3 or w.isdigit()) - _words(exchange.question or "")


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _patiently(call: Callable[[], T], deadline: Deadline, what: str) -> T:
    """Return what a call returns; passing faults are tried again with jittered backoff while time is left."""
    remaining = deadline.remaining_s()
    stop = stop_after_attempt(TRANSIENT_TRIES)
    retrying = Retrying(
        retry=retry_if_exception(is_transient),
        stop=stop if remaining is None else stop | stop_after_delay(remaining),
        wait=wait_random_exponential(multiplier=0.1, max=2),
        reraise=True,
    )
    result: T = retrying(call_before, deadline, call, what)
    return result


def is_transient(error: BaseException) -> bool:
    """Return whether trying again may help: connection faults and the service saying so (429, 5xx), not a time-out."""
    if isinstance(error, TimeoutError):
        return False
    status = getattr(error, "status_code", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return isinstance(error, ConnectionError) or type(error).__name__ in {
        "ConnectError",
        "APIConnectionError",
        "ReadError",
    }


def hand_over(
    step: HumanReview, exchange: Exchange, decision: Decision, attempts: Sequence[Attempt], queue: ReviewQueue | None
) -> tuple[ReviewId, Ruling | None]:
    """Return the id of the stored review item and, where the policy waits and a person was quick, the verdict.

    Args:
        step: what the policy chose.
        exchange: the best attempt, which the person reads.
        decision: why it is handed over.
        attempts: all attempts, oldest first.
        queue: where it is stored.

    Raises:
        ReviewError: it could not be stored; the cause is kept.
        StepUnavailableError: there is no queue.
    """
    if queue is None:
        msg = "the policy asks for human review but names no queue: add `review: {url: sqlite:///review.db}`"
        raise StepUnavailableError(msg)
    try:
        review_id = queue.submit(exchange, decision, attempts)
    except ReviewError:
        raise
    except Exception as error:
        msg = f"the review queue did not take the answer: {type(error).__name__}: {error}"
        raise QueueUnavailableError(msg) from error
    if step.wait_s <= 0:
        return review_id, None
    try:
        return review_id, queue.wait(review_id, step.wait_s)
    except Exception:  # noqa: BLE001 - the item is stored: not seeing the verdict now only means that it is pending
        return review_id, None


@dataclass(frozen=True, slots=True)
class Settled:
    """Text for the caller, and what kind of text it is."""

    text: str
    status: Status


def settle(step: Accept | AnswerWithWarning | Abstain, exchange: Exchange) -> Settled:
    """Return what the caller gets for a step that needs nobody else."""
    if isinstance(step, Accept):
        return Settled(exchange.answer, Status.ANSWERED)
    if isinstance(step, AnswerWithWarning):
        text = f"{step.warning}\n\n{exchange.answer}" if step.warning else exchange.answer
        return Settled(text, Status.WARNED)
    return Settled(step.message, Status.ABSTAINED)


def settle_review(ruling: Ruling | None, *, pending: str, abstain: str) -> Settled:
    """Return what the caller gets for an answer that was handed to a person.

    Args:
        ruling: the verdict; `None` while there is none.
        pending: message for a caller who does not wait any longer.
        abstain: message for a rejected or expired answer.
    """
    if ruling is None:
        return Settled(pending, Status.PENDING)
    if ruling.verdict in {Verdict.APPROVED, Verdict.EDITED}:
        return Settled(ruling.text, Status.REVIEWED)
    return Settled(abstain, Status.ABSTAINED)
