"""The steps that lead to a new attempt: retrieve again, or ask another model."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from semgrad_guard.errors import FallbackFailedError, RetrievalFailedError, StepUnavailableError
from semgrad_guard.flow import FallbackModel, NewAttempt, Passage, RetryRetrieval
from semgrad_guard.ports import AnswerModel, Retriever, RetrievingChain
from semgrad_guard.routing.deadline import Deadline, call_before
from semgrad_guard.routing.postponed import PostponedError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from semgrad_guard.flow import Exchange
    from semgrad_guard.routing.resources import Resources

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
