"""What goes wrong around the guard: bounded, typed, recorded, and nothing passes from one request to another."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.llms import CompletionResponse
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from typing_extensions import override

from llama_index_semgrad import SemGradGuard
from semgrad_guard.errors import NonFiniteScoreError, NotGuardableError
from semgrad_guard.flow import FallbackModel, RetryRetrieval, Status
from tests.adapters.llama_index.index_and_llm import QUESTION, ScriptedLLM, index, llm
from tests.fakes import LadderDecider, MemorySink, guard_of

if TYPE_CHECKING:
    from llama_index.core.schema import NodeWithScore, QueryBundle

    from semgrad_guard.flow import Record

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."


def down(_: str) -> str:
    """Fail like a model server."""
    raise RuntimeError("no model server")


class Nothing(BaseRetriever):
    """Finds nothing."""

    @override
    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return []


def test_an_engine_that_raises_raises_as_before_and_is_recorded() -> None:
    """The caller's own handling of its own errors must go on working."""
    sink = MemorySink()
    engine = SemGradGuard(guard=guard_of(sink=sink)).wrap(index().as_query_engine(llm=llm(down)))
    with pytest.raises(RuntimeError, match="no model server"):
        engine.query(QUESTION)
    (record,) = sink.records
    assert (record.status, record.text, record.failures[0].type) == (Status.ABSTAINED, "", "RuntimeError")
    assert record.attempts[0].exchange.question == QUESTION


def test_a_stream_that_dies_halfway_gives_nothing_out() -> None:
    """Half an answer was not judged, so it does not pass."""
    sink = MemorySink()
    model = llm(GOOD, dies_after=1)
    engine = SemGradGuard(guard=guard_of(sink=sink)).wrap(index().as_query_engine(llm=model, streaming=True))
    with pytest.raises(ConnectionResetError):
        engine.query(QUESTION)
    assert [f.type for f in sink.records[0].failures] == ["ConnectionResetError"]


def test_an_annotated_stream_that_dies_halfway_says_so() -> None:
    """The reader sees the error, and the record says that no judgement was made."""
    sink = MemorySink()
    model = llm(GOOD, dies_after=1)
    guard = SemGradGuard(guard=guard_of(sink=sink), stream="annotate")
    response = guard.wrap(index().as_query_engine(llm=model, streaming=True)).query(QUESTION)
    stream = response.response_gen
    assert next(stream) == "Marie "
    with pytest.raises(ConnectionResetError):
        next(stream)
    assert "semgrad" not in response.metadata
    assert [f.type for f in sink.records[0].failures] == ["ConnectionResetError"]


async def test_an_async_stream_that_dies_halfway_gives_nothing_out() -> None:
    """Same promise."""
    sink = MemorySink()
    model = llm(GOOD, dies_after=1)
    inner = index().as_query_engine(llm=model, streaming=True, use_async=True)
    with pytest.raises(ConnectionResetError):
        await SemGradGuard(guard=guard_of(sink=sink)).wrap(inner).aquery(QUESTION)
    assert len(sink.records) == 1


class WaitingLLM(ScriptedLLM):
    """Waits for an event before it answers."""

    reached: Any = None
    go_on: Any = None

    @override
    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        self.reached.set()
        await self.go_on.wait()
        return CompletionResponse(text=self._write(prompt))


async def test_a_cancelled_request_is_recorded_and_leaves_nothing_behind() -> None:
    """The next request must not meet what the cancelled one left."""
    sink = MemorySink()
    model = WaitingLLM(reply=lambda _: GOOD, reached=asyncio.Event(), go_on=asyncio.Event())
    guard = guard_of(scores={GOOD: 0.1}, sink=sink)
    engine = SemGradGuard(guard=guard).wrap(index().as_query_engine(llm=model, use_async=True))
    task = asyncio.create_task(engine.aquery(QUESTION))
    await model.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [f.type for f in sink.records[0].failures] == ["CancelledError"]
    model.go_on.set()
    assert (await engine.aquery(QUESTION)).response == GOOD
    assert guard.parts.scorer.seen[0].metadata["model_calls"] == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_a_retriever_that_finds_nothing_takes_on_error(streaming: bool) -> None:
    """The engine's fixed text is no answer of a model: a confidence for it would be made up."""
    sink = MemorySink()
    guard = guard_of(default=0.0, sink=sink)
    engine = RetrieverQueryEngine(Nothing(), get_response_synthesizer(llm=llm(GOOD), streaming=streaming))
    response = SemGradGuard(guard=guard).wrap(engine).query(QUESTION)
    assert str(response) == "I do not know."
    assert response.metadata["semgrad"]["error"].startswith("PromptNotFoundError")
    assert not guard.parts.scorer.seen
    assert sink.records[0].failures[0].type == "PromptNotFoundError"


def test_a_retry_that_finds_nothing_keeps_the_better_attempt() -> None:
    """The ladder ends with what there was."""
    decider = LadderDecider([RetryRetrieval(retriever="empty")])
    sink = MemorySink()
    guard = guard_of(scores={BAD: 0.9}, decider=decider, sink=sink)
    engine = index().as_query_engine(llm=llm(BAD))
    response = SemGradGuard(guard=guard).wrap(engine, retrievers={"empty": Nothing()}).query(QUESTION)
    assert response.response == "I do not know."
    assert "no passages" in sink.records[0].failures[0].message


def test_a_scorer_that_fails_takes_on_error() -> None:
    """An answer that was not judged is never passed in silence."""
    guard = guard_of(scores={BAD: NonFiniteScoreError("logits")})
    response = SemGradGuard(guard=guard).wrap(index().as_query_engine(llm=llm(BAD))).query(QUESTION)
    assert response.response == "I do not know."
    assert (response.metadata["semgrad"]["rule"], response.metadata["semgrad"]["score"]) == ("on_error", None)


def test_an_error_that_repeats_the_answer_does_not_carry_it_out() -> None:
    """Database drivers print the values of a failed statement."""
    guard = guard_of(scores={BAD: RuntimeError(f"INSERT failed with ({BAD!r})")})
    response = SemGradGuard(guard=guard).wrap(index().as_query_engine(llm=llm(BAD))).query(QUESTION)
    assert "Einstein" not in repr(vars(response))
    assert response.metadata["semgrad"]["error"] == "RuntimeError"


def test_an_engine_that_returns_something_else_is_a_typed_error() -> None:
    """A bare AttributeError would leave the reader guessing."""

    class Odd(RetrieverQueryEngine):
        @override
        def _query(self, query_bundle: QueryBundle) -> Any:
            return "just text"

    engine = Odd(index().as_retriever(), get_response_synthesizer(llm=llm(GOOD)))
    guarded = SemGradGuard(guard=guard_of()).wrap(engine)
    with pytest.raises((NotGuardableError, ValueError), match=r"just text|Response"):
        guarded.query(QUESTION)


# --- many at once -----------------------------------------------------------------------------------------------------

N = 200
ASKED = re.compile(r"item (\d+)")


def own_answer(prompt: str) -> str:
    """Answer with the number in the question, wrong at first for every third."""
    number = int(ASKED.findall(prompt)[-1])
    return f"answer {number}"


def many() -> tuple[Any, MemorySink]:
    """Return a guarded engine in which every third answer is doubted, and a fallback answers it."""
    sink = MemorySink()
    scores = {f"answer {i}": 0.9 if i % 3 == 0 else 0.1 for i in range(N)} | {f"big {i}": 0.1 for i in range(N)}
    guard = guard_of(scores=scores, decider=LadderDecider([FallbackModel(name="big")]), sink=sink)
    big = llm(lambda prompt: f"big {ASKED.findall(prompt)[-1]}")
    inner = index().as_query_engine(llm=llm(own_answer), similarity_top_k=1)
    return SemGradGuard(guard=guard).wrap(inner, fallbacks={"big": big}), sink


def check(i: int, text: str | None, found: dict[str, Any], records: list[Record]) -> None:
    """Check that a request got its own answer, and that its record holds only its own text."""
    assert text == (f"big {i}" if i % 3 == 0 else f"answer {i}")
    assert found["n_attempts"] == (2 if i % 3 == 0 else 1)
    (record,) = [r for r in records if str(r.id) == found["id"]]
    for attempt in record.attempts:
        assert ASKED.findall(str(attempt.exchange.prompt))[-1] == str(i)
        assert attempt.exchange.answer.endswith(f" {i}")
        assert attempt.exchange.metadata["model_calls"] == 1


def test_two_hundred_threads_on_one_guard_never_mix() -> None:
    """A server has one guard and many requests."""
    engine, sink = many()
    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(lambda i: engine.query(f"What is item {i}?"), range(N)))
    for i, response in enumerate(responses):
        check(i, response.response, response.metadata["semgrad"], sink.records)


async def test_two_hundred_tasks_on_one_guard_never_mix() -> None:
    """Same promise for an async server."""
    engine, sink = many()
    responses = await asyncio.gather(*(engine.aquery(f"What is item {i}?") for i in range(N)))
    for i, response in enumerate(responses):
        check(i, response.response, response.metadata["semgrad"], sink.records)


def test_nothing_is_kept_after_a_request() -> None:
    """A watcher that remembered every call would grow for ever."""
    from llama_index_semgrad.watcher import WATCHER

    engine, _ = many()
    for i in range(20):
        engine.query(f"What is item {i}?")
    assert not WATCHER._open
