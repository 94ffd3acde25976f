"""Retrieving again and asking another model."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest

from semgrad_guard.errors import FallbackFailedError, RetrievalFailedError, StepUnavailableError
from semgrad_guard.flow import Exchange, FallbackModel, Fingerprint, Passage, RetryRetrieval, Score
from semgrad_guard.routing import Deadline, DocumentMap, Resources, next_attempt
from semgrad_guard.routing.steps import is_transient, wanted_passages, worth_reading
from tests.fakes import Answerer, ListRetriever

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from semgrad_guard.flow import Json

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


@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        ((0.4, 0.3, 0.05), ["ocean", "cars", "new"]),
        ((0.4, 0.05, None), ["ocean", "new"]),
        ((0.01, 0.4, 0.4), ["ocean", "cars", "ships", "new"]),
        ((), ["ocean", "new"]),
    ],
)
def test_a_passage_that_was_read_is_kept(shares: tuple[float | None, ...], kept: list[str]) -> None:
    """An answer in other words shares none with its passage; attention says that it was read."""
    score = Score(
        method="m",
        value=1.0,
        signals={},
        fingerprint=Fingerprint(model="m", dtype="float32", template="", settings=""),
        model="m",
        passage_attention=shares,
    )
    passages = (Passage("ocean"), Passage("cars"), Passage("ships"))
    first = Exchange(prompt="p", answer="by the ocean", question="q", passages=passages, score=score)
    step = RetryRetrieval(drop_unused=True)
    assert [p.text for p in worth_reading(step, first, [*passages, Passage("new")])] == kept


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


@dataclass
class Both:
    """A chain that answers from passages or, where it must, retrieves by itself."""

    fields: Mapping[str, Json] = field(default_factory=dict)

    def answer(self, exchange: Exchange, passages: Sequence[Passage] | None) -> Exchange:
        return exchange.next_attempt(prompt="", answer=f"given {dict(self.fields)}", passages=tuple(passages or ()))

    def answer_again(self, exchange: Exchange, *, query: str, step: RetryRetrieval) -> Exchange:
        return exchange.next_attempt(prompt=query, answer=f"found {dict(step.configurable)}", passages=())

    def with_configurable(self, fields: Mapping[str, Json]) -> Both:
        return replace(self, fields=fields)


@pytest.mark.parametrize(
    ("step", "retriever", "answer"),
    [
        (RetryRetrieval(), ListRetriever(["two"]), "given {}"),
        (RetryRetrieval(retriever="web"), None, "given {}"),
        (RetryRetrieval(), None, "found {}"),
        (RetryRetrieval(configurable={"k": 9}), ListRetriever(["two"]), "given {'k': 9}"),
        (RetryRetrieval(configurable={"k": 9}), None, "found {'k': 9}"),
    ],
)
def test_a_chain_retrieves_by_itself_only_where_no_retriever_was_given(
    step: RetryRetrieval, retriever: ListRetriever | None, answer: str
) -> None:
    """One retry for all frameworks: theirs is used only where ours cannot be; `configurable` fields reach both."""
    resources = Resources(chain=Both(), retriever=retriever, retrievers={"web": ListRetriever(["three"])})
    assert next_attempt(step, FIRST, resources, NO_LIMIT).answer == answer


def test_an_unknown_retriever_names_the_known_ones() -> None:
    """A typo in the policy must not end in another retriever."""
    resources = Resources(chain=Both(), retriever=ListRetriever(["two"]), retrievers={"web": ListRetriever(["three"])})
    with pytest.raises(StepUnavailableError, match=r"'wep' was given to this guard \(given: web\)"):
        next_attempt(RetryRetrieval(retriever="wep"), FIRST, resources, NO_LIMIT)


@pytest.mark.parametrize(
    ("rewritten", "chain_query", "query"),
    [
        (None, "whales in biology", "whales in biology"),
        ("cetacean definition", "whales in biology", "cetacean definition"),
        (FIRST.question, "whales in biology", "whales in biology"),
        (None, "", FIRST.question),
    ],
)
def test_a_retry_asks_what_the_chain_asked(rewritten: str | None, chain_query: str, query: str) -> None:
    """A question out of a chat means nothing without it; what a rewriter found is better still."""

    class Rewriter:
        def rewrite(self, question: str) -> str:
            return rewritten or ""

    retriever = ListRetriever(["two"])
    _retry(
        RetryRetrieval(top_k=2, rewrite_query=rewritten is not None),
        retriever,
        rewriter=Rewriter(),
        chain_query=lambda _: chain_query,
    )
    assert retriever.queries == [(query, 2)]


def test_a_frameworks_documents_are_found_again_by_their_passages() -> None:
    """An adapter's chain answers from documents with all that they carry, not from texts made of texts."""
    documents: DocumentMap[tuple[str, object]] = DocumentMap(lambda document: Passage(document[0]))
    read: list[tuple[str, object]] = []

    class Index:
        def retrieve(self, query: str, top_k: int) -> Sequence[Passage]:
            return documents.passages_of([("one", "a"), ("two", "b"), ("two", "b"), ("three", "c")])

    def reply(_: Exchange, passages: Sequence[Passage] | None) -> str:
        read.extend(documents.documents_of(passages or ()))
        return "again"

    step = RetryRetrieval(drop_unused=True)
    next_attempt(step, FIRST, Resources(chain=Answerer(reply), retriever=Index()), NO_LIMIT)
    assert read == [("two", "b"), ("three", "c")]
    assert documents.documents_of([Passage("from elsewhere")]) == []


def test_an_unknown_step_is_not_sent_to_a_fallback_model() -> None:
    """A step that somebody adds and forgets here must be noticed."""

    class Ticket:
        name = "big"
        timeout_s = None

    unknown: Any = Ticket()
    asked: list[Exchange] = []
    big = Answerer(lambda exchange, _: str(asked.append(exchange)))
    with pytest.raises(AssertionError):
        next_attempt(unknown, FIRST, Resources(fallbacks={"big": big}), NO_LIMIT)
    assert asked == []


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
