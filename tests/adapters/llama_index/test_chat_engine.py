"""Guarded chat engines: what the caller gets, and what gets into the conversation."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer, Memory
from sqlalchemy.ext.asyncio import create_async_engine
from typing_extensions import override

from llama_index_semgrad import GuardedChatEngine, SemGradGuard
from semgrad_guard.errors import NotGuardableError
from semgrad_guard.flow import FallbackModel, RetryRetrieval
from tests.adapters.llama_index.index_and_llm import PASSAGES, QUESTION, ScriptedLLM, index, llm
from tests.fakes import LadderDecider, MemorySink, guard_of

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."
MESSAGE = "I do not know."
SCORES = {GOOD: 0.1, BAD: 0.9}


def memory() -> ChatMemoryBuffer:
    """Return a memory in this process."""
    return ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)


def simple(model: ScriptedLLM) -> BaseChatEngine:
    """Return an engine without retrieval."""
    return SimpleChatEngine.from_defaults(llm=model, memory=memory())


def context(model: ScriptedLLM) -> BaseChatEngine:
    """Return an engine that retrieves for every message."""
    return ContextChatEngine.from_defaults(index().as_retriever(similarity_top_k=2), llm=model, memory=memory())


def condense_context(model: ScriptedLLM) -> BaseChatEngine:
    """Return an engine that rewords the message first."""
    return CondensePlusContextChatEngine.from_defaults(
        index().as_retriever(similarity_top_k=2), llm=model, memory=memory()
    )


def condense(model: ScriptedLLM) -> BaseChatEngine:
    """Return an engine around a query engine."""
    inner = index().as_query_engine(llm=model, similarity_top_k=2)
    return CondenseQuestionChatEngine.from_defaults(inner, llm=model, memory=memory())


ENGINES = pytest.mark.parametrize("make", [simple, context, condense_context, condense])


def guarded(make: Any, text: Any, *steps: Any, stream: Any = "buffer", **options: Any) -> GuardedChatEngine:
    """Return a guarded chat engine whose model writes a text."""
    guard = guard_of(scores=SCORES, decider=LadderDecider(steps))
    return SemGradGuard(guard=guard, stream=stream).wrap(make(llm(text, is_chat=True)), **options)


def conversation(engine: BaseChatEngine) -> list[str]:
    """Return the conversation."""
    return [f"{m.role.value}: {m.content}" for m in engine.chat_history]


@ENGINES
def test_a_confident_answer_comes_out_and_is_remembered(make: Any) -> None:
    """Nothing may change where nothing is doubted."""
    engine = guarded(make, GOOD)
    response = engine.chat(QUESTION)
    assert type(response) is AgentChatResponse
    assert (response.response, response.metadata["semgrad"]["status"]) == (GOOD, "answered")
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {GOOD}"]


@ENGINES
def test_a_withheld_answer_is_neither_in_the_response_nor_in_the_conversation(make: Any) -> None:
    """The next turn reads the conversation: a bad answer in it would come out a turn later."""
    engine = guarded(make, BAD)
    response = engine.chat(QUESTION)
    assert response.response == MESSAGE
    assert "Einstein" not in repr(vars(response))
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {MESSAGE}"]


@ENGINES
async def test_the_async_twin_gives_the_same(make: Any) -> None:
    """Services are async."""
    engine = guarded(make, BAD)
    response = await engine.achat(QUESTION)
    assert response.response == MESSAGE
    assert "Einstein" not in repr(vars(response))
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {MESSAGE}"]


@ENGINES
def test_a_buffered_stream_gives_the_judged_text(make: Any) -> None:
    """Not one token of a withheld answer may pass."""
    engine = guarded(make, BAD)
    response = engine.stream_chat(QUESTION)
    assert isinstance(response, StreamingAgentChatResponse)
    assert response.metadata["semgrad"]["status"] == "abstained"
    assert "Einstein" not in repr(vars(response))
    assert "".join(response.response_gen) == MESSAGE
    assert str(response) == MESSAGE
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {MESSAGE}"]


@ENGINES
async def test_a_buffered_async_stream_gives_the_judged_text(make: Any) -> None:
    """Same promise."""
    engine = guarded(make, GOOD)
    response = await engine.astream_chat(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == GOOD
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {GOOD}"]


@ENGINES
def test_an_annotated_stream_passes_and_is_judged_at_its_end(make: Any) -> None:
    """Who must stream live gets the confidence with the last token."""
    engine = guarded(make, BAD, stream="annotate")
    response = engine.stream_chat(QUESTION)
    assert "".join(response.response_gen) == BAD
    assert response.metadata["semgrad"]["confidence"] == pytest.approx(0.1)
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {BAD}"]


@ENGINES
async def test_an_annotated_async_stream_is_judged_at_its_end(make: Any) -> None:
    """Same promise."""
    engine = guarded(make, BAD, stream="annotate")
    response = await engine.astream_chat(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == BAD
    assert response.metadata["semgrad"]["confidence"] == pytest.approx(0.1)
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {BAD}"]


@pytest.mark.parametrize("make", [context, condense_context, condense])
def test_a_retry_retrieves_more_and_sees_no_earlier_attempt(make: Any) -> None:
    """A model that reads its own mistake repeats it."""
    model = llm(lambda p: GOOD if sum(x in p for x in PASSAGES) >= 4 else BAD, is_chat=True)
    guard = guard_of(scores=SCORES, decider=LadderDecider([RetryRetrieval(top_k=4)]))
    engine = SemGradGuard(guard=guard).wrap(make(model))
    response = engine.chat(QUESTION)
    assert (response.response, response.metadata["semgrad"]["n_attempts"]) == (GOOD, 2)
    assert not any(BAD in prompt for prompt in model.prompts)
    assert conversation(engine) == [f"user: {QUESTION}", f"assistant: {GOOD}"]


@ENGINES
def test_a_fallback_model_answers_in_the_same_conversation(make: Any) -> None:
    """Earlier turns belong to the question."""
    big = llm(GOOD, is_chat=True)
    engine = guarded(make, BAD, FallbackModel(name="big"), fallbacks={"big": big})
    engine.chat("Hello, I am Ada.")
    response = engine.chat(QUESTION)
    assert response.response == GOOD
    assert conversation(engine)[-2:] == [f"user: {QUESTION}", f"assistant: {GOOD}"]
    if make is not condense:  # that one lets the small model put earlier turns into a reworded question
        assert "Ada" in big.prompts[-1]
        assert BAD not in "".join(big.prompts)


def test_a_given_history_replaces_the_conversation() -> None:
    """As in the wrapped engine."""
    engine = guarded(simple, GOOD)
    engine.chat("before")
    engine.chat(QUESTION, chat_history=[ChatMessage(role="user", content="I am Ada.")])
    assert conversation(engine) == ["user: I am Ada.", f"user: {QUESTION}", f"assistant: {GOOD}"]
    engine.reset()
    assert conversation(engine) == []


async def test_llama_index_own_default_memory_works_across_attempts() -> None:
    """It lives in an async database of the caller's event loop, while a retry runs in a worker thread."""
    model = llm(lambda p: GOOD if sum(x in p for x in PASSAGES) >= 4 else BAD, is_chat=True)
    guard = guard_of(scores=SCORES, decider=LadderDecider([RetryRetrieval(top_k=4)]))
    database = create_async_engine("sqlite+aiosqlite:///:memory:")
    kept = Memory.from_defaults(token_limit=3000, tokenizer_fn=str.split, async_engine=database)
    inner = ContextChatEngine.from_defaults(index().as_retriever(similarity_top_k=2), llm=model, memory=kept)
    engine = SemGradGuard(guard=guard).wrap(inner)
    for _ in range(2):
        assert (await engine.achat(QUESTION)).response == GOOD
    assert [m.content for m in await kept.aget_all()] == [QUESTION, GOOD] * 2
    await database.dispose()


def test_an_engine_that_hides_its_conversation_is_refused() -> None:
    """Its history would keep the withheld answer."""

    class Hidden(BaseChatEngine):
        @override
        def reset(self) -> None: ...

        @override
        def chat(self, message: str, chat_history: Any = None) -> Any: ...

        @override
        def stream_chat(self, message: str, chat_history: Any = None) -> Any: ...

        @override
        async def achat(self, message: str, chat_history: Any = None) -> Any: ...

        @override
        async def astream_chat(self, message: str, chat_history: Any = None) -> Any: ...

        @property
        @override
        def chat_history(self) -> list[ChatMessage]:
            return []

    with pytest.raises(NotGuardableError, match="guard the query engine"):
        SemGradGuard(guard=guard_of()).wrap(Hidden())


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # LlamaIndex' writer thread raises too
def test_a_stream_that_dies_halfway_leaves_the_conversation_as_it_was() -> None:
    """Half an answer is no turn."""
    sink = MemorySink()
    model = llm(GOOD, is_chat=True, dies_after=1)
    guard = SemGradGuard(guard=guard_of(scores=SCORES, sink=sink), stream="annotate")
    engine = guard.wrap(ContextChatEngine.from_defaults(index().as_retriever(), llm=model, memory=memory()))
    response = engine.stream_chat(QUESTION)
    with pytest.raises(ConnectionResetError):
        "".join(response.response_gen)
    assert conversation(engine) == []
    assert [f.type for f in sink.records[0].failures] == ["ConnectionResetError"]


def echo(prompt: str) -> str:
    """Answer with the last word of the last user message."""
    return "heard " + prompt.rsplit("user: ", maxsplit=1)[-1].split("assistant:", maxsplit=1)[0].strip()


async def test_turns_at_the_same_time_never_mix() -> None:
    """One engine may serve a web page's impatient user."""
    scores = {f"heard {i}": 0.1 for i in range(50)}
    engine = SemGradGuard(guard=guard_of(scores=scores)).wrap(simple(llm(echo, is_chat=True)))
    with ThreadPoolExecutor(16) as pool:
        threads = list(pool.map(lambda i: engine.chat(str(i)), range(25)))
    tasks = await asyncio.gather(*(engine.achat(str(i)) for i in range(25, 50)))
    assert [r.response for r in (*threads, *tasks)] == [f"heard {i}" for i in range(50)]
    history = conversation(engine)
    assert len(history) == 100
