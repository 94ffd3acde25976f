"""Only listening: every answer once, with its own prompt, and nothing changed."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import ChatMessage, ChatResponse
from llama_index.core.llms.callbacks import llm_chat_callback
from llama_index.core.memory import ChatMemoryBuffer
from typing_extensions import override

from llama_index_semgrad import SemGradEventHandler, SemGradGuard
from llama_index_semgrad.events import AnswerTracker
from llama_index_semgrad.watcher import WATCHER, install
from semgrad_guard.errors import NonFiniteScoreError
from semgrad_guard.flow import Status
from tests.adapters.llama_index.index_and_llm import PASSAGES, QUESTION, ScriptedLLM, index, join_writers, llm
from tests.fakes import MemoryQueue, MemorySink, guard_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GOOD, BAD = "Marie Curie.", "It was Albert Einstein."
SCORES = {GOOD: 0.1, BAD: 0.9}


@pytest.fixture(name="listen")
def _listen() -> Iterator[Callable[..., MemorySink]]:
    """Return a way to listen with a fresh handler; the dispatcher is put back afterwards."""
    root = get_dispatcher()
    before, listeners = list(root.event_handlers), list(WATCHER.listeners)

    def listen(*, scores: Any = None, default: float = 0.1, queue: MemoryQueue | None = None, **options: Any) -> Any:
        sink = MemorySink()
        guard = guard_of(scores=scores or SCORES, default=default, sink=sink, queue=queue)
        handler = SemGradEventHandler(guard=guard, **options)
        root.add_event_handler(handler)
        return sink, handler

    yield listen
    root.event_handlers[:] = before
    WATCHER.listeners[:] = listeners


def memory() -> ChatMemoryBuffer:
    """Return a memory in this process."""
    return ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)


def test_an_answer_is_judged_and_not_changed(listen: Any) -> None:
    """Observing a doubtful answer logs it, and gives it all the same."""
    sink, _ = listen()
    model = llm(BAD)
    response = index().as_query_engine(llm=model, similarity_top_k=2).query(QUESTION)
    assert response.response == BAD
    assert "semgrad" not in response.metadata
    (record,) = sink.records
    assert (record.text, record.status) == (BAD, Status.WARNED)
    exchange = record.attempts[0].exchange
    assert (exchange.prompt, exchange.question, len(exchange.passages)) == (model.prompts[0], QUESTION, 2)


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
def test_each_way_of_asking_gives_one_record(listen: Any, is_chat: bool, streaming: bool) -> None:
    """LlamaIndex reports some calls twice, and streams after the query ended."""
    sink, _ = listen()
    engine = index().as_query_engine(llm=llm(GOOD, is_chat=is_chat), similarity_top_k=2, streaming=streaming)
    assert str(engine.query(QUESTION)) == GOOD
    (record,) = sink.records
    exchange = record.attempts[0].exchange
    assert (record.text, exchange.question, len(exchange.passages)) == (GOOD, QUESTION, 2)


@pytest.mark.parametrize("is_chat", [False, True])
@pytest.mark.parametrize("streaming", [False, True])
async def test_each_async_way_gives_one_record(listen: Any, is_chat: bool, streaming: bool) -> None:
    """Async twins pass on what the sync method reported."""
    sink, _ = listen()
    inner = llm(GOOD, is_chat=is_chat)
    engine = index().as_query_engine(llm=inner, similarity_top_k=2, streaming=streaming, use_async=True)
    response = await engine.aquery(QUESTION)
    text = "".join([p async for p in response.async_response_gen()]) if streaming else response.response
    assert text == GOOD
    (record,) = sink.records
    exchange = record.attempts[0].exchange
    assert (record.text, exchange.question, len(exchange.passages)) == (GOOD, QUESTION, 2)


def test_a_bare_model_call_is_an_answer_too(listen: Any) -> None:
    """Not everybody has an engine."""
    sink, _ = listen()
    llm(GOOD).complete(QUESTION)
    llm(GOOD, is_chat=True).chat([])
    "".join(r.delta or "" for r in llm(GOOD).stream_complete(QUESTION))
    assert [record.text for record in sink.records] == [GOOD] * 3
    assert sink.records[0].attempts[0].exchange.prompt == QUESTION


async def test_bare_async_calls_are_judged_once(listen: Any) -> None:
    """Same promise."""
    sink, _ = listen()
    await llm(GOOD).acomplete(QUESTION)
    async for _ in await llm(GOOD, is_chat=True).astream_chat([]):
        pass
    assert [record.text for record in sink.records] == [GOOD] * 2


def test_a_chat_turn_is_one_answer_however_many_calls_it_made(listen: Any) -> None:
    """A reworded question is no answer."""
    sink, _ = listen()
    model = llm(lambda p: GOOD if PASSAGES[0] in p else "reworded: Who discovered radium?", is_chat=True)
    engine = CondensePlusContextChatEngine.from_defaults(index().as_retriever(), llm=model, memory=memory())
    engine.chat(QUESTION)
    engine.chat(QUESTION)
    assert [record.text for record in sink.records] == [GOOD, GOOD]
    assert {record.attempts[0].exchange.question for record in sink.records} == {QUESTION}


def test_a_chat_stream_is_one_answer(listen: Any) -> None:
    """It is written by a thread of LlamaIndex' own."""
    sink, _ = listen()
    engine = SimpleChatEngine.from_defaults(llm=llm(GOOD, is_chat=True), memory=memory())
    assert "".join(engine.stream_chat(QUESTION).response_gen) == GOOD
    join_writers()
    (record,) = sink.records
    assert (record.text, record.attempts[0].exchange.question) == (GOOD, QUESTION)


def test_what_a_guard_decided_is_not_judged_again(listen: Any) -> None:
    """One question, one record."""
    sink, _ = listen()
    engine = SemGradGuard(guard=guard_of(scores=SCORES)).wrap(index().as_query_engine(llm=llm(BAD)))
    engine.query(QUESTION)
    assert sink.records == []


@pytest.mark.parametrize("stream", ["buffer", "annotate"])
def test_what_a_guarded_chat_decided_is_not_judged_again(listen: Any, stream: Any) -> None:
    """Nor what its stream let pass."""
    sink, _ = listen()
    inner = SimpleChatEngine.from_defaults(llm=llm(GOOD, is_chat=True), memory=memory())
    own = MemorySink()
    engine = SemGradGuard(guard=guard_of(scores=SCORES, sink=own), stream=stream).wrap(inner)
    engine.chat(QUESTION)
    assert "".join(engine.stream_chat(QUESTION).response_gen) == GOOD
    join_writers()
    assert sink.records == []
    assert len(own.records) == 2


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # LlamaIndex' writer thread raises too
def test_a_stream_that_dies_is_no_answer(listen: Any) -> None:
    """Half an answer was never given as one, and nothing of it is kept."""
    sink, _ = listen()
    dying = llm(GOOD, is_chat=True, dies_after=1)
    engine = SimpleChatEngine.from_defaults(llm=dying, memory=memory())
    with pytest.raises(ConnectionResetError):
        "".join(engine.stream_chat(QUESTION).response_gen)
    join_writers()
    assert sink.records == []
    (answers,) = (one for one in WATCHER.listeners if isinstance(one, AnswerTracker))
    assert (len(answers._open), len(answers._streams)) == (0, 0)


async def test_an_async_chat_stream_is_one_answer(listen: Any) -> None:
    """It is written by a task of LlamaIndex' own."""
    sink, _ = listen()
    engine = ContextChatEngine.from_defaults(index().as_retriever(), llm=llm(GOOD, is_chat=True), memory=memory())
    response = await engine.astream_chat(QUESTION)
    assert "".join([piece async for piece in response.async_response_gen()]) == GOOD
    (record,) = sink.records
    assert (record.text, record.attempts[0].exchange.question) == (GOOD, QUESTION)


def test_its_own_errors_are_logged_and_reach_nobody(listen: Any, caplog: Any) -> None:
    """The dispatcher would swallow them without a word."""
    sink, handler = listen(scores={GOOD: NonFiniteScoreError("logits")}, on_outcome=lambda _: 1 / 0)
    assert index().as_query_engine(llm=llm(GOOD)).query(QUESTION).response == GOOD
    assert handler.guard
    assert sink.records[0].failures[0].type == "NonFiniteScoreError"
    assert "an answer could not be observed" in caplog.text


def test_nothing_of_the_policy_is_carried_out(listen: Any) -> None:
    """Observing must not fill the review queue."""
    queue = MemoryQueue()
    listen(queue=queue)
    index().as_query_engine(llm=llm(BAD)).query(QUESTION)
    assert queue.items == []


def test_a_background_worker_judges_without_making_an_answer_wait(listen: Any) -> None:
    """The score takes a backward pass; the caller has the answer already."""
    outcomes: list[Any] = []
    sink, handler = listen(background=True, on_outcome=outcomes.append)
    engine = index().as_query_engine(llm=llm(GOOD))
    for _ in range(5):
        engine.query(QUESTION)
    handler.flush()
    assert len(sink.records) == len(outcomes) == 5
    handler.close()


async def test_queries_at_the_same_time_never_mix(listen: Any) -> None:
    """Each record holds its own question, prompt and answer."""
    sink, _ = listen(default=0.1)
    model = llm(lambda p: "answer " + p.rpartition("item ")[2].partition("?")[0])
    engine = index().as_query_engine(llm=model, similarity_top_k=1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: engine.query(f"What is item {i}?"), range(30)))
    await asyncio.gather(*(engine.aquery(f"What is item {i}?") for i in range(30, 60)))
    assert len(sink.records) == 60
    for record in sink.records:
        exchange = record.attempts[0].exchange
        assert f"item {exchange.answer.split()[1]}?" in exchange.prompt
        assert exchange.question in exchange.prompt


def test_the_handlers_are_installed_once_even_when_some_were_removed() -> None:
    """An application may clear one list of the dispatcher; spans must not be told twice after that."""
    root = get_dispatcher()
    install()
    spans, events = list(root.span_handlers), list(root.event_handlers)
    root.event_handlers[:] = [h for h in events if h.class_name() != "SemGradEvents"]
    install()
    assert len(root.span_handlers) == len(spans)
    assert [h.class_name() for h in root.event_handlers].count("SemGradEvents") == 1


@pytest.mark.parametrize(("said", "recorded"), [("Let me see.", [("judge", "Let me see.")]), ("", [])])
def test_text_beside_a_request_for_tools_is_recorded_as_such(listen: Any, said: str, recorded: list[Any]) -> None:
    """It is no answer, and a request alone is nothing to judge."""
    sink, _ = listen(default=0.1)

    class Asking(ScriptedLLM):
        @llm_chat_callback()
        @override
        def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
            call = {"tool_calls": [{"name": "find"}]}
            return ChatResponse(message=ChatMessage(role="assistant", content=said, additional_kwargs=call))

    Asking(reply=None).chat([ChatMessage(role="user", content=QUESTION)])
    assert [(record.beside_tool_calls, record.text) for record in sink.records] == recorded


def test_nothing_is_kept_of_finished_answers(listen: Any) -> None:
    """A listener that remembered every span would grow for ever."""
    listen()
    engine = index().as_query_engine(llm=llm(GOOD), streaming=True)
    for _ in range(10):
        str(engine.query(QUESTION))
    index().as_query_engine(llm=llm(GOOD)).query(QUESTION)
    (answers,) = (one for one in WATCHER.listeners if isinstance(one, AnswerTracker))
    assert (len(answers._open), len(answers._streams)) == (0, 0)
