"""Retries and fallbacks in real engines: really retrieved again, really asked again, nothing of the bad answer left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.query_engine import CitationQueryEngine, CustomQueryEngine
from typing_extensions import override

from llama_index_semgrad import SemGradGuard
from semgrad_guard.errors import NotGuardableError
from semgrad_guard.flow import FallbackModel, RetryRetrieval
from tests.adapters.llama_index.index_and_llm import PASSAGES, QUESTION, index, llm
from tests.fakes import LadderDecider, MemorySink, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."
RETRY = RetryRetrieval(top_k=4)
BIG = FallbackModel(name="big")
REWRITTEN = "radium watch dials painted"


def guard(*steps: Any, sink: MemorySink | None = None) -> Guard:
    """Return a guard that accepts only the good answer and goes down these steps for any other."""
    return guard_of(scores={GOOD: 0.1}, default=0.9, decider=LadderDecider(steps), sink=sink)


def sees(prompt: str) -> list[int]:
    """Return which passages stand in a prompt."""
    return [i for i, passage in enumerate(PASSAGES) if passage in prompt]


def knows_from(passages: int) -> Any:
    """Return a model that knows the answer once it reads that many passages."""
    return llm(lambda prompt: GOOD if len(sees(prompt)) >= passages else BAD)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_retry_retrieves_more_and_answers_again(streaming: bool) -> None:
    """More passages may hold what the first ones lacked."""
    model = knows_from(4)
    engine = index().as_query_engine(llm=model, similarity_top_k=2, streaming=streaming)
    response = SemGradGuard(guard=guard(RETRY)).wrap(engine).query(QUESTION)
    assert str(response) == GOOD
    assert [len(sees(prompt)) for prompt in model.prompts] == [2, 4]
    assert len(response.source_nodes) == 4
    assert response.metadata["semgrad"]["n_attempts"] == 2


async def test_a_retry_works_for_async_callers() -> None:
    """The retry runs in a worker thread; the caller only awaits."""
    engine = index().as_query_engine(llm=knows_from(4), similarity_top_k=2)
    response = await SemGradGuard(guard=guard(RETRY)).wrap(engine).aquery(QUESTION)
    assert response.response == GOOD


def test_nothing_of_the_bad_answer_reaches_the_next_prompt() -> None:
    """A model that reads its own mistake repeats it."""
    model = knows_from(4)
    engine = index().as_query_engine(llm=model, similarity_top_k=2)
    SemGradGuard(guard=guard(RETRY)).wrap(engine).query(QUESTION)
    assert len(model.prompts) == 2
    assert BAD not in model.prompts[1]


def test_a_rewritten_query_is_for_retrieval_only() -> None:
    """The user asked the question, not the search query."""

    def reply(prompt: str) -> str:
        if "Search query" in prompt:
            return f'"{REWRITTEN}"\n'
        return GOOD if 5 in sees(prompt) and 4 in sees(prompt) else BAD

    model = llm(reply)
    sink = MemorySink()
    step = RetryRetrieval(top_k=3, rewrite_query=True)
    engine = index().as_query_engine(llm=model, similarity_top_k=2)
    asked = index(PASSAGES)
    retriever = asked.as_retriever(similarity_top_k=1)
    queries: list[str] = []
    seen = type(retriever)._retrieve
    retriever._retrieve = lambda bundle: queries.append(bundle.query_str) or seen(retriever, bundle)
    engine = SemGradGuard(guard=guard(step, sink=sink)).wrap(engine, retriever=retriever)
    engine.query(QUESTION)
    assert queries == [REWRITTEN]
    assert QUESTION in model.prompts[-1]
    assert REWRITTEN not in model.prompts[-1]
    assert sink.records[0].attempts[-1].exchange.question == QUESTION


def test_the_same_passages_again_are_not_worth_an_answer() -> None:
    """Asking the same again costs time and gives the same."""
    sink = MemorySink()
    model = llm(BAD)
    engine = index().as_query_engine(llm=model, similarity_top_k=6)
    response = SemGradGuard(guard=guard(RETRY, sink=sink)).wrap(engine).query(QUESTION)
    assert response.response == "I do not know."
    assert len(model.prompts) == 1
    assert [f.type for f in sink.records[0].failures] == ["RetrievalFailedError"]


def test_postprocessors_work_on_a_retry_as_on_the_first_answer() -> None:
    """A filter that the engine applies must not be lost."""
    model = llm(BAD)
    engine = index().as_query_engine(
        llm=model, similarity_top_k=1, node_postprocessors=[SimilarityPostprocessor(similarity_cutoff=0.1)]
    )
    SemGradGuard(guard=guard(RetryRetrieval(top_k=6))).wrap(engine).query(QUESTION)
    assert [sees(prompt) for prompt in model.prompts] == [[0], [0, 5]]


def test_another_retriever_by_name() -> None:
    """The policy names it, the code gives it."""
    model = llm(lambda prompt: GOOD if "Polonium" in prompt else BAD)
    other = index(("Polonium was found by Marie Curie too.",)).as_retriever(similarity_top_k=1)
    engine = index().as_query_engine(llm=model, similarity_top_k=2)
    step = RetryRetrieval(retriever="archive")
    response = SemGradGuard(guard=guard(step)).wrap(engine, retrievers={"archive": other}).query(QUESTION)
    assert response.response == GOOD


def test_a_retriever_and_a_synthesizer_make_a_guarded_engine() -> None:
    """Who has no engine need not make one."""
    model = knows_from(4)
    engine = SemGradGuard(guard=guard(RETRY)).wrap(
        retriever=index().as_retriever(similarity_top_k=2), synthesizer=get_response_synthesizer(llm=model)
    )
    assert engine.query(QUESTION).response == GOOD
    assert [len(sees(prompt)) for prompt in model.prompts] == [2, 4]


def test_the_wrapped_engine_is_not_changed() -> None:
    """Others may use the same engine and retriever at the same time."""
    engine = index().as_query_engine(llm=knows_from(4), similarity_top_k=2)
    SemGradGuard(guard=guard(RETRY)).wrap(engine).query(QUESTION)
    assert engine.retriever.similarity_top_k == 2
    assert engine.query(QUESTION).response == BAD


def test_a_fallback_model_answers_from_the_same_passages_and_template() -> None:
    """Only the model changes; its answer is judged like any other."""
    small, big = llm(BAD), llm(GOOD, name="big-one")
    engine = index().as_query_engine(llm=small, similarity_top_k=2)
    response = SemGradGuard(guard=guard(BIG)).wrap(engine, fallbacks={"big": big}).query(QUESTION)
    assert response.response == GOOD
    assert big.prompts == small.prompts
    assert response.metadata["semgrad"]["author"] == "big-one"
    assert len(response.source_nodes) == 2


def test_a_fallback_after_a_retry_reads_what_the_retry_found() -> None:
    """The better passages are not thrown away."""
    big = llm(GOOD)
    engine = index().as_query_engine(llm=llm(BAD), similarity_top_k=2)
    response = SemGradGuard(guard=guard(RETRY, BIG)).wrap(engine, fallbacks={"big": big}).query(QUESTION)
    assert response.response == GOOD
    assert len(sees(big.prompts[0])) == 4
    assert response.metadata["semgrad"]["n_attempts"] == 3


def test_a_fallback_that_is_an_engine() -> None:
    """A whole other pipeline may be the fallback."""
    other = index(("Radium: Marie Curie.",)).as_query_engine(llm=llm(GOOD))
    engine = index().as_query_engine(llm=llm(BAD), similarity_top_k=2)
    response = SemGradGuard(guard=guard(BIG)).wrap(engine, fallbacks={"big": other}).query(QUESTION)
    assert response.response == GOOD
    assert [n.text for n in response.source_nodes] == ["Radium: Marie Curie."]


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_fallback_for_an_engine_that_hides_its_model(is_chat: bool) -> None:
    """The model is asked directly, from the question and the passages."""

    class Hidden(CustomQueryEngine):
        @override
        def custom_query(self, query_str: str) -> str:
            return BAD

    big = llm(GOOD, is_chat=is_chat)
    response = SemGradGuard(guard=guard(BIG)).wrap(Hidden(), fallbacks={"big": big}).query(QUESTION)
    assert response.response == GOOD
    assert QUESTION in big.prompts[0]


def test_a_fallback_in_an_engine_that_makes_other_nodes_of_what_it_retrieves() -> None:
    """A citation engine numbers its sources; numbering them twice would spoil the prompt."""
    small, big = llm(BAD), llm(GOOD)
    engine = CitationQueryEngine.from_args(index(), llm=small, similarity_top_k=2)
    response = SemGradGuard(guard=guard(RETRY, BIG)).wrap(engine, fallbacks={"big": big}).query(QUESTION)
    assert response.response == GOOD
    assert "Source 4:" in small.prompts[1]
    assert big.prompts[0].count("Source 1:") == small.prompts[1].count("Source 1:")
    SemGradGuard(guard=guard(BIG)).wrap(engine, fallbacks={"big": big}).query(QUESTION)
    assert big.prompts[1] == small.prompts[0]


def test_a_fallback_that_fails_is_a_failed_step() -> None:
    """The ladder goes on and the record says why."""

    def down(_: str) -> str:
        raise RuntimeError("out of quota")

    sink = MemorySink()
    engine = index().as_query_engine(llm=llm(BAD), similarity_top_k=2)
    guarded = SemGradGuard(guard=guard(BIG, RETRY, sink=sink)).wrap(engine, fallbacks={"big": llm(down)})
    assert guarded.query(QUESTION).response == "I do not know."
    (record,) = sink.records
    assert [f.type for f in record.failures] == ["FallbackFailedError"]
    assert "out of quota" in record.failures[0].message
    assert len(record.attempts) == 2


def test_a_retry_without_a_retriever_is_a_failed_step() -> None:
    """An engine that keeps its retriever to itself can still be guarded, only not retried."""

    class Hidden(CustomQueryEngine):
        @override
        def custom_query(self, query_str: str) -> str:
            return BAD

    sink = MemorySink()
    response = SemGradGuard(guard=guard(RETRY, sink=sink)).wrap(Hidden()).query(QUESTION)
    assert response.response == "I do not know."
    assert [f.type for f in sink.records[0].failures] == ["StepUnavailableError"]


def test_a_retriever_given_for_an_engine_that_hides_its_own() -> None:
    """With a synthesizer beside it, the retry has all it needs."""

    class Hidden(CustomQueryEngine):
        @override
        def custom_query(self, query_str: str) -> str:
            return BAD

    model = knows_from(4)
    guarded = SemGradGuard(guard=guard(RETRY)).wrap(
        Hidden(), retriever=index().as_retriever(), synthesizer=get_response_synthesizer(llm=model)
    )
    assert guarded.query(QUESTION).response == GOOD
    with pytest.raises(NotGuardableError, match="synthesizer="):
        SemGradGuard(guard=guard(RETRY)).wrap(Hidden(), retriever=index().as_retriever())


def test_what_cannot_be_guarded_is_refused_with_advice() -> None:
    """Mistakes show when the engine is built, not at the first question."""
    with pytest.raises(NotGuardableError, match="retriever= and synthesizer="):
        SemGradGuard(guard=guard()).wrap()
    with pytest.raises(NotGuardableError, match="query or chat engine"):
        SemGradGuard(guard=guard()).wrap(llm(GOOD))
    engine = index().as_query_engine(llm=llm(GOOD))
    with pytest.raises(NotGuardableError, match="fallback 'big' is a str"):
        SemGradGuard(guard=guard()).wrap(engine, fallbacks={"big": "openai:gpt"})
