"""`answering` in chains: threads, tasks, streams and retries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda

from langchain_semgrad import SemGradGuard, answering
from semgrad_guard.flow import FallbackModel, RetryRetrieval
from tests.adapters.langchain.chains import PROMPT, echo, model_of, seen_by
from tests.adapters.langchain.rag import Facts, Reader, rag
from tests.fakes import LadderDecider, guard_of

if TYPE_CHECKING:
    from semgrad_guard.guard import Guard


def stated(guard: Guard) -> list[tuple[str | None, list[str], str | None]]:
    """Question and passages of every exchange that was scored."""
    return [(e.question, [p.text for p in e.passages], e.passages_from) for e in seen_by(guard)]


def test_the_threads_of_a_batch_know_what_is_stated(guard: Guard) -> None:
    """The block is entered in the thread that calls `batch`."""
    chain = PROMPT | echo() | SemGradGuard(guard=guard)
    with answering(question="Who?", passages=[Document("one"), "two"]):
        chain.batch([{"question": f"q{i}"} for i in range(10)])
    assert stated(guard) == [("Who?", ["one", "two"], "stated")] * 10


async def test_asynchronous_chains_know_what_is_stated(guard: Guard) -> None:
    """Judging happens in a worker thread."""
    chain = PROMPT | echo() | SemGradGuard(guard=guard)
    with answering(question="Who?"):
        await chain.ainvoke({"question": "q"})
        await chain.abatch([{"question": "q"}] * 2)
        async for _ in chain.astream({"question": "q"}):
            pass
    assert [question for question, *_ in stated(guard)] == ["Who?"] * 4


def test_a_function_states_what_its_own_model_read(guard: Guard) -> None:
    """The guard comes after the block has ended, and each question of a batch has its own passages."""
    inner = PROMPT | echo() | StrOutputParser()

    def answer(question: str) -> str:
        with answering(passages=[f"about {question}"]):
            return inner.invoke({"question": question})

    (RunnableLambda(answer) | SemGradGuard(guard=guard)).batch([f"q{i}" for i in range(10)])
    assert stated(guard) == [(f"q{i}", [f"about q{i}"], "stated") for i in range(10)]


def test_a_retry_is_judged_by_what_it_retrieved() -> None:
    """Not by what was stated for the first answer, which the model no longer reads; a fallback reads that again."""
    decider = LadderDecider([RetryRetrieval(top_k=3), FallbackModel(name="big")])
    guard, facts = guard_of(default=0.9, decider=decider), Facts()
    fallbacks: Any = {"big": model_of("9 facts")}
    guarded = SemGradGuard(guard=guard).wrap(rag(facts, Reader()), retriever=facts, fallbacks=fallbacks)
    with answering(question="Who?", passages=["one"]):
        guarded.invoke("q")
    retrieved = ("Who?", ["Fact 0.", "Fact 1.", "Fact 2."], "retriever")
    assert stated(guard) == [("Who?", ["one"], "stated"), retrieved, retrieved]
