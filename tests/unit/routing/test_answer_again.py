"""Retrieving again and asking another model."""

from __future__ import annotations

import threading

import pytest

from semgrad_guard.errors import FallbackFailedError, RetrievalFailedError, StepUnavailableError
from semgrad_guard.flow import Exchange, FallbackModel, Passage, RetryRetrieval
from semgrad_guard.routing import Deadline, Resources, next_attempt
from semgrad_guard.routing.steps import is_transient, wanted_passages, worth_reading
from tests.fakes import Answerer, ListRetriever

NO_LIMIT = Deadline(None)
FIRST = Exchange(prompt="p", answer="It is a mammal.", question="What is a whale?", passages=(Passage("one"),))


def _retry(step: RetryRetrieval, retriever: ListRetriever, exchange: Exchange = FIRST, **more: object) -> Exchange:
    chain = Answerer(lambda _, passages: f"from {len(passages or ())}")
    return next_attempt(step, exchange, Resources(chain=chain, retriever=retriever, **more), NO_LIMIT)  # type: ignore[arg-type]


def test_a_retry_reads_more_passages() -> None:
    """The point of a retry."""
    again = _retry(RetryRetrieval(top_k=3), ListRetriever(["one", "two", "three"]))
    assert (again.answer, again.attempt, len(again.passages)) == ("from 3", 2, 3)


def test_nothing_of_the_earlier_answer_reaches_the_next_prompt() -> None:
    """A bad answer in the prompt pollutes the next one."""
    again = _retry(RetryRetrieval(top_k=3), ListRetriever(["one", "two", "three"]))
    assert "mammal" not in str(again.prompt)
    assert again.score is None
    assert again.answer_ids is None


def test_without_top_k_twice_as_many_passages_are_asked_for() -> None:
    """A retry with the same number could only find the same."""
    assert wanted_passages(RetryRetrieval(), FIRST) == 2


def test_a_rewritten_query_is_for_retrieval_only() -> None:
    """The model answers the user's question, not the rewording."""

    class Rewriter:
        def rewrite(self, question: str) -> str:
            return "cetacean definition"

    retriever = ListRetriever(["one", "two"])
    again = _retry(RetryRetrieval(top_k=2, rewrite_query=True), retriever, rewriter=Rewriter())
    assert retriever.queries == [("cetacean definition", 2)]
    assert again.question == "What is a whale?"
    assert "cetacean" not in str(again.prompt)


@pytest.mark.parametrize("texts", [["one"], []])
def test_a_retry_that_cannot_help_is_a_failed_step(texts: list[str]) -> None:
    """The same passages, or none, would only cost another wrong answer."""
    with pytest.raises(RetrievalFailedError):
        _retry(RetryRetrieval(top_k=3), ListRetriever(texts))


def test_passages_that_gave_nothing_to_the_answer_are_dropped() -> None:
    """They only distract."""
    first = Exchange(
        prompt="p", answer="a marine mammal", question="q", passages=(Passage("a mammal"), Passage("cars"))
    )
    found = [Passage("a mammal"), Passage("cars"), Passage("new")]
    kept = worth_reading(RetryRetrieval(drop_unused=True), first, found)
    assert [p.text for p in kept] == ["a mammal", "new"]


def test_the_cause_of_a_failed_retrieval_is_kept() -> None:
    """Whoever mends it needs the first error."""
    with pytest.raises(RetrievalFailedError) as caught:
        _retry(RetryRetrieval(top_k=2), ListRetriever([], fault=KeyError("index")))
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_passing_fault_is_tried_again() -> None:
    """A dropped connection must not cost the retry."""

    class Flaky(ListRetriever):
        def retrieve(self, query: str, top_k: int) -> list[Passage]:
            self.queries.append((query, top_k))
            if len(self.queries) < 2:
                raise ConnectionResetError
            return [Passage("one"), Passage("two")]

    flaky = Flaky([])
    assert _retry(RetryRetrieval(top_k=2), flaky).answer == "from 2"
    assert len(flaky.queries) == 2


def test_a_permanent_fault_is_not_tried_again() -> None:
    """Waiting does not mend a wrong key."""
    retriever = ListRetriever([], fault=PermissionError("wrong key"))
    with pytest.raises(RetrievalFailedError):
        _retry(RetryRetrieval(top_k=2), retriever)
    assert len(retriever.queries) == 1


def test_a_fallback_that_takes_too_long_is_a_failed_step() -> None:
    """The caller's patience is the policy's, not the model's."""
    release = threading.Event()
    slow = Answerer(lambda _, __: str(release.wait(10)))
    with pytest.raises(FallbackFailedError) as caught:
        next_attempt(FallbackModel(name="big", timeout_s=0.05), FIRST, Resources(fallbacks={"big": slow}), NO_LIMIT)
    release.set()
    assert isinstance(caught.value.__cause__, TimeoutError)


def test_an_unknown_fallback_names_the_known_ones() -> None:
    """A typo in the policy is found by reading the record."""
    with pytest.raises(StepUnavailableError, match="small"):
        next_attempt(
            FallbackModel(name="big"), FIRST, Resources(fallbacks={"small": Answerer(lambda _, __: "")}), NO_LIMIT
        )


@pytest.mark.parametrize(
    ("resources", "exchange"),
    [
        (Resources(), FIRST),
        (Resources(chain=Answerer(lambda _, __: "")), FIRST),
        (Resources(chain=Answerer(lambda _, __: ""), retriever=ListRetriever([])), Exchange(prompt="p", answer="a")),
    ],
)
def test_a_retry_without_chain_retriever_or_question_is_unavailable(resources: Resources, exchange: Exchange) -> None:
    """Each missing thing is named, none crashes."""
    with pytest.raises(StepUnavailableError):
        next_attempt(RetryRetrieval(top_k=2), exchange, resources, NO_LIMIT)


def test_a_chain_with_its_own_retriever_answers_in_one_go() -> None:
    """Chains that own their retriever are asked through one call."""

    class Chain:
        def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
            return exchange.next_attempt(prompt=query, answer=f"top {step.top_k}", passages=())

    again = next_attempt(RetryRetrieval(top_k=9), FIRST, Resources(chain=Chain()), NO_LIMIT)
    assert again.answer == "top 9"


class HttpError(Exception):
    """An HTTP error as client libraries raise it."""

    def __init__(self, status_code: int) -> None:
        self.status_code = status_code


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (HttpError(429), True),
        (HttpError(503), True),
        (HttpError(401), False),
        (TimeoutError(), False),
        (ValueError(), False),
    ],
)
def test_only_passing_faults_count_as_transient(error: Exception, transient: bool) -> None:
    """Time-outs have used the budget already; client errors stay errors."""
    assert is_transient(error) is transient
