"""`answering` around engines: streams that are read later, and retries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_semgrad import SemGradGuard, answering
from semgrad_guard.flow import FallbackModel, RetryRetrieval
from tests.adapters.llama_index.index_and_llm import PASSAGES, QUESTION, index, llm
from tests.fakes import LadderDecider, TableScorer, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard

NODES = [TextNode(text="one"), NodeWithScore(node=TextNode(text="two"), score=0.5)]


def stated(guard: Guard) -> list[tuple[str | None, list[str], str | None]]:
    """Question and passages of every exchange that was scored."""
    assert isinstance(guard.parts.scorer, TableScorer)
    return [(e.question, [p.text for p in e.passages], e.passages_from) for e in guard.parts.scorer.seen]


async def test_asynchronous_queries_know_what_is_stated() -> None:
    """Judging happens in a worker thread."""
    guard = guard_of(default=0.1)
    with answering(question="Who?", passages=NODES):
        await SemGradGuard(guard=guard).wrap(index().as_query_engine(llm=llm("a"))).aquery(QUESTION)
    assert stated(guard) == [("Who?", ["one", "two"], "stated")]


def test_a_stream_may_be_read_after_the_block() -> None:
    """It is judged when it has been read."""
    guard = guard_of(default=0.1)
    engine = SemGradGuard(guard=guard, stream="annotate").wrap(index().as_query_engine(llm=llm("a b"), streaming=True))
    with answering(passages="one"):
        response = engine.query(QUESTION)
    assert "".join(response.response_gen) == "a b"
    assert stated(guard) == [(QUESTION, ["one"], "stated")]


def test_a_retry_is_judged_by_what_it_retrieved() -> None:
    """Not by what was stated for the first answer, which the model no longer reads."""
    decider = LadderDecider([RetryRetrieval(top_k=4), FallbackModel(name="big")])
    guard = guard_of(default=0.9, decider=decider)
    engine = index().as_query_engine(llm=llm("a"), similarity_top_k=2)
    with answering(question="Who?", passages=NODES):
        SemGradGuard(guard=guard).wrap(engine, fallbacks={"big": llm("b")}).query(QUESTION)
    first, *others = stated(guard)
    assert first == ("Who?", ["one", "two"], "stated")
    assert [(question, len(texts), found) for question, texts, found in others] == [("Who?", 4, "retriever")] * 2
    assert all(any(text in shown for text in PASSAGES) for _, texts, _ in others for shown in texts)


def test_a_fallback_is_judged_by_what_was_stated() -> None:
    """It answers the same question from the same texts."""
    guard = guard_of(default=0.9, decider=LadderDecider([FallbackModel(name="big")]))
    engine = index().as_query_engine(llm=llm("a"), similarity_top_k=2)
    with answering(question="Who?", passages=NODES):
        SemGradGuard(guard=guard).wrap(engine, fallbacks={"big": llm("b")}).query(QUESTION)
    assert stated(guard) == [("Who?", ["one", "two"], "stated")] * 2
