"""Carries out one step of the policy: retrieve and answer again, ask another model, ask a person, or settle.

An adapter provides its framework's part in `Resources`. For `retry_retrieval` this is a `Retriever`, whose
`retrieve(query, top_k)` calls the framework's retriever and turns documents into passages, and an `AnswerModel`, whose
`answer(exchange, passages)` asks the chain again; `DocumentMap` finds the documents of passages. The rest is done here:
rewriting the query, the number of passages, leaving out unused ones, refusing those that failed before, time limits,
and trying again after temporary faults.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar, assert_never

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from semgrad_guard.deadline import Deadline, call_before
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
    Passage,
    Progress,
    RetryRetrieval,
    Status,
    Verdict,
)
from semgrad_guard.ports import AnswerModel, ConfigurableChain, RetrievingChain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from semgrad_guard.flow import Attempt, Decision, Exchange, HumanReview, NewAttempt, ReviewId, Ruling, Settling
    from semgrad_guard.ports import QueryRewriter, Retriever, ReviewQueue


class PostponedError(Exception):
    """Raised by `RetrievingChain.answer_again` when the new answer will come in another call.

    An agent searches again by continuing its graph. The guard's run ends here without a record, and the agent's next
    final answer is judged by `Guard.run(exchange, resources, progress=error.progress)`.
    """

    def __init__(self) -> None:
        """Create the error with empty progress, which the guard replaces."""
        self.progress = Progress()
        super().__init__("the new answer comes in another call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Retrievers, models and chains that the policy's steps use; a step without its resource is skipped."""

    chain: AnswerModel | RetrievingChain | None = None
    """Answers the question again: from the passages that a retriever below finds (`AnswerModel`), or with its own
    retriever (`RetrievingChain`). A chain that is both uses its own only where no retriever is given and the step
    names none. An `AnswerModel` that is a `ConfigurableChain` gets the step's `configurable` fields."""
    retriever: Retriever | None = None
    """The chain's own retriever."""
    chain_query: Callable[[Exchange], str] | None = None
    """Returns the query that the chain sent to its retriever in an attempt, for a chain that rewords the question, for
    example to make it independent of a chat. A retry without `rewrite_query` sends the same query. If left out, the
    question is sent."""
    retrievers: Mapping[str, Retriever] = field(default_factory=dict[str, "Retriever"])
    """Other retrievers by the name that the policy uses."""
    rewriter: QueryRewriter | None = None
    fallbacks: Mapping[str, AnswerModel] = field(default_factory=dict[str, "AnswerModel"])
    """Fallback models by the name that the policy uses."""


NO_RESOURCES = Resources()

T = TypeVar("T")


class DocumentMap(Generic[T]):
    """Remembers the framework's document of each passage, for one question.

    Example:
        >>> documents = DocumentMap(lambda text: Passage(text.strip()))
        >>> documents.documents_of(documents.passages_of([" one ", " two "])[:1])
        [' one ']
    """

    def __init__(self, to_passage: Callable[[T], Passage]) -> None:
        """Create an empty map.

        Args:
            to_passage: turns a document into a passage.
        """
        self._to_passage = to_passage
        self._documents: dict[Passage, T] = {}

    def passages_of(self, documents: Iterable[T]) -> list[Passage]:
        """Return the documents as passages, in order and without duplicates."""
        by_passage = {self._to_passage(document): document for document in documents}
        self._documents |= by_passage
        return list(by_passage)

    def documents_of(self, passages: Iterable[Passage]) -> list[T]:
        """Return the documents of these passages; passages from elsewhere are left out."""
        return [self._documents[passage] for passage in passages if passage in self._documents]


TRANSIENT_TRIES = 3
"""How often a call with temporary faults is made before the step counts as failed."""
DEFAULT_TOP_K = 4
"""Assumed number of passages where it is unknown: LangChain's and LlamaIndex's retrievers return 4 and 2."""


def next_attempt(step: NewAttempt, exchange: Exchange, resources: Resources, deadline: Deadline) -> Exchange:
    """Make a new attempt at the same question and return its exchange.

    The new prompt contains nothing of the earlier answer.

    Args:
        step: the step that the policy chose.
        exchange: the attempt that was not good enough.
        resources: the retrievers, models and chains to use.
        deadline: end of the policy's time budget; the step's `timeout_s` may end it earlier.

    Raises:
        RoutingError: the step could not be carried out; the cause is kept.
        PostponedError: the new attempt will come in another call.
    """
    deadline = deadline.within(step.timeout_s)
    match step:
        case RetryRetrieval():
            return _retrieve_again(step, exchange, resources, deadline)
        case FallbackModel():
            return _ask_fallback(step, exchange, resources, deadline)
        case _:
            assert_never(step)


def _ask_fallback(step: FallbackModel, exchange: Exchange, resources: Resources, deadline: Deadline) -> Exchange:
    model = resources.fallbacks.get(step.name)
    if model is None:
        given = ", ".join(sorted(resources.fallbacks)) or "none"
        advice = f"pass fallbacks={{{step.name!r}: llm}}"
        msg = f"no fallback model {step.name!r} was given to this guard (given: {given}): {advice}"
        raise StepUnavailableError(msg)
    try:
        return _with_retries(lambda: model.answer(exchange, None), deadline, f"fallback model {step.name!r}")
    except Exception as error:
        msg = f"fallback model {step.name!r} gave no answer: {type(error).__name__}: {error}"
        raise FallbackFailedError(msg) from error


def _retrieve_again(step: RetryRetrieval, exchange: Exchange, resources: Resources, deadline: Deadline) -> Exchange:
    chain = resources.chain
    if chain is None:
        msg = "this guard can't answer again: wrap the chain, as in SemGradGuard(...).wrap(chain, retriever=retriever)"
        raise StepUnavailableError(msg)
    has_retriever = step.retriever is not None or resources.retriever is not None
    try:
        query = _query(step, exchange, resources, deadline)
        if isinstance(chain, RetrievingChain) and not (has_retriever and isinstance(chain, AnswerModel)):
            return _with_retries(
                lambda: chain.answer_again(exchange, query=query, step=step), deadline, "answering again"
            )
        passages = _retrieve(step, exchange, _retriever(step, resources), query, deadline)
        return _answer(step, exchange, chain, passages, deadline)
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
    if step.rewrite_query and rewriter is not None:
        rewritten = _with_retries(lambda: rewriter.rewrite(question), deadline, "rewriting the query").strip()
        if rewritten and rewritten != question:
            return rewritten
    return (resources.chain_query(exchange) if resources.chain_query else "") or question


def _retriever(step: RetryRetrieval, resources: Resources) -> Retriever:
    if step.retriever is None:
        if resources.retriever is None:
            msg = "this guard knows no retriever: pass retriever=retriever, as in wrap(chain, retriever=retriever)"
            raise StepUnavailableError(msg)
        return resources.retriever
    named = resources.retrievers.get(step.retriever)
    if named is None:
        given = ", ".join(sorted(resources.retrievers)) or "none"
        advice = f"pass retrievers={{{step.retriever!r}: retriever}}"
        msg = f"no retriever {step.retriever!r} was given to this guard (given: {given}): {advice}"
        raise StepUnavailableError(msg)
    return named


def _retrieve(
    step: RetryRetrieval, exchange: Exchange, retriever: Retriever, query: str, deadline: Deadline
) -> tuple[Passage, ...]:
    top_k = wanted_passages(step, exchange)
    found = _with_retries(lambda: retriever.retrieve(query, top_k), deadline, "retrieval")
    return worth_reading(step, exchange, found)


def _answer(
    step: RetryRetrieval, exchange: Exchange, chain: AnswerModel, passages: tuple[Passage, ...], deadline: Deadline
) -> Exchange:
    if step.configurable and isinstance(chain, ConfigurableChain):
        chain = chain.with_configurable(step.configurable)
    return _with_retries(lambda: chain.answer(exchange, passages), deadline, "answering again")


def wanted_passages(step: RetryRetrieval, exchange: Exchange) -> int:
    """Return how many passages to ask for: the step's `top_k`, else twice as many as the attempt had."""
    return step.top_k or 2 * (len(exchange.passages) or DEFAULT_TOP_K)


def worth_reading(step: RetryRetrieval, exchange: Exchange, found: Sequence[Passage]) -> tuple[Passage, ...]:
    """Return the passages to answer from.

    Args:
        step: with `drop_unused`, passages of the failed attempt that gave its answer nothing are left out: those that
            share no word with it and, where the model's attention is known, got less than half of an even share of it.
        exchange: the attempt that was not good enough.
        found: the passages that the retriever returned; their order is kept.

    Raises:
        RetrievalFailedError: no passages were found, or the same ones as before, so asking again cannot help.
    """
    before = {passage.text for passage in exchange.passages}
    kept = list(found)
    if step.drop_unused:
        unused = _unused(exchange)
        kept = [passage for passage in found if passage.text not in unused] or kept
    if not kept:
        msg = "the retriever returned no passages: nothing new to answer from"
        raise RetrievalFailedError(msg)
    if before and {passage.text for passage in kept} == before:
        msg = "the retriever returned the same passages as before: answering again can't help"
        raise RetrievalFailedError(msg)
    return tuple(kept)


LITTLE_READ = 0.5
"""A passage with less of the attention than this part of an even share counts as not read."""


def _unused(exchange: Exchange) -> frozenset[str]:
    """Return the texts of passages that gave an answer nothing."""
    words = answer_words(exchange)
    shares = exchange.score.passage_attention if exchange.score else ()
    if len(shares) != len(exchange.passages):
        shares = (None,) * len(exchange.passages)
    known = [share for share in shares if share is not None]
    little = LITTLE_READ * sum(known) / len(known) if known else 0.0
    return frozenset(
        passage.text
        for passage, share in zip(exchange.passages, shares, strict=True)
        if not words & _words(passage.text) and (share is None or share < little)
    )


def answer_words(exchange: Exchange) -> frozenset[str]:
    """Return the lower-case content words of the answer that are not in the question."""
    return frozenset(w for w in _words(exchange.answer) if len(w) > 3 or w.isdigit()) - _words(exchange.question or "")


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.lower()))


def _with_retries(call: Callable[[], T], deadline: Deadline, what: str) -> T:
    """Make a call and return its result; after temporary faults it is tried again with jittered backoff."""
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
    """Return whether trying again may help: after connection faults and statuses 429 and 5xx, not after a time-out."""
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
    """Store an answer for review and return the item's id, and the verdict if it comes within the step's `wait_s`.

    Args:
        step: the step that the policy chose.
        exchange: the best attempt, which the person reads.
        decision: why the answer needs review.
        attempts: all attempts, oldest first.
        queue: the review queue.

    Raises:
        ReviewError: the answer could not be stored; the cause is kept.
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
    except Exception:  # noqa: BLE001 - the item is stored, so a verdict that cannot be read now is only pending
        return review_id, None


@dataclass(frozen=True, slots=True)
class Settled:
    """Text for the caller, and what kind of text it is."""

    text: str
    status: Status


def settle(step: Settling, exchange: Exchange) -> Settled:
    """Return what the caller gets for a step that ends the question without a person."""
    match step:
        case Accept():
            return Settled(exchange.answer, Status.ANSWERED)
        case AnswerWithWarning():
            warned = bool(step.warning) and is_prose(exchange.answer)
            return Settled(f"{step.warning}\n\n{exchange.answer}" if warned else exchange.answer, Status.WARNED)
        case Abstain():
            return Settled(step.message, Status.ABSTAINED)
        case _:
            assert_never(step)


_FENCES = ("```", "~~~")


def is_prose(text: str) -> bool:
    """Return whether people read a text, so that a warning may stand before it; programs read data, such as JSON."""
    text = text.strip()
    is_data = text[:1] == "{" or (text[:1], text[-1:]) in {("[", "]"), ("<", ">")}
    is_fenced = len(text) >= 6 and text.startswith(_FENCES) and text.endswith(text[:3])
    return not (is_data or is_fenced)


def settle_review(ruling: Ruling | None, *, pending: str, abstain: str) -> Settled:
    """Return what the caller gets for an answer that was handed to a person.

    Args:
        ruling: the verdict; `None` while there is none.
        pending: message for a caller who no longer waits.
        abstain: message for a rejected or expired answer.
    """
    if ruling is None:
        return Settled(pending, Status.PENDING)
    if ruling.verdict in {Verdict.APPROVED, Verdict.EDITED}:
        return Settled(ruling.text, Status.REVIEWED)
    return Settled(abstain, Status.ABSTAINED)
