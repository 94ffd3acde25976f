"""Every way in which the frameworks stream; each returns all that its reader can see, also if it ends in an error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGenerationChunk
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph import END, START, StateGraph
from llama_index.core.chat_engine import ContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from typing_extensions import override

from llama_index_semgrad import ReviewNeededEvent, ReviewWorkflow
from llama_index_semgrad import SemGradGuard as LlamaIndexGuard
from semgrad_guard.adapter_kit.contract import reachable
from tests.adapters.llama_index.index_and_llm import index, join_writers
from tests.contract import drivers
from tests.contract.drivers import ChatWriter, fallbacks_of, own_loop, written_by

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from semgrad_guard.adapter_kit.contract import Case

CHAINS = (
    drivers.LangChainChain(),
    drivers.LangChainWrap(),
    drivers.LangChainRag(),
    drivers.LangChainMapping(),
    drivers.LangChainParser(),
)


class StreamingWriter(ChatWriter):
    """Writes word by word."""

    @override
    def _stream(self, messages: Any, *_: Any, **__: Any) -> Iterator[ChatGenerationChunk]:
        for piece in re.findall(r"\S+\s*", self.writer.write()):
            yield ChatGenerationChunk(message=AIMessageChunk(piece))


class Seen:
    """What a reader of a stream sees, also until it ends in an error: every piece, and the pieces in one."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    @property
    def everything(self) -> str:
        joined = "".join(piece if isinstance(piece, str) else getattr(piece, "text", "") for piece in self.pieces)
        return joined + reachable(self.pieces)

    def all_of(self, stream: Any) -> None:
        for piece in stream:
            self.pieces.append(piece)

    async def aall_of(self, stream: Any) -> None:
        async for piece in stream:
            self.pieces.append(piece)


def _stream_of(driver: Any) -> Callable[[Case, Seen], None]:
    return lambda case, seen: seen.all_of(driver.chain(case).stream({"question": case.question}))


def _astream_of(driver: Any) -> Any:
    async def read(case: Case, seen: Seen) -> None:
        await seen.aall_of(driver.chain(case).astream({"question": case.question}))

    return read


def _events_of(driver: Any) -> Any:
    async def read(case: Case, seen: Seen) -> None:
        async for event in driver.chain(case).astream_events({"question": case.question}, version="v2"):
            if not event["parent_ids"]:  # the guarded whole; the model's own run shows what it writes
                seen.pieces += [event["data"].get("chunk"), event["data"].get("output")]

    return read


MODES = ["messages", "updates", "values", "custom"]


def _agent_stream(case: Case, seen: Seen) -> None:
    seen.all_of(drivers.LangChainAgent().agent(case).stream(_asked(case), stream_mode=MODES))


async def _agent_astream(case: Case, seen: Seen) -> None:
    await seen.aall_of(drivers.LangChainAgent().agent(case).astream(_asked(case), stream_mode=MODES))


def _asked(case: Case) -> dict[str, Any]:
    return {"messages": [HumanMessage(case.question)]}


def _node_stream(case: Case, seen: Seen) -> None:
    for mode, chunk in drivers.LangGraphNode().graph(case).stream(_asked(case), stream_mode=MODES):
        seen.pieces += _of_guard(mode, chunk)


async def _node_astream(case: Case, seen: Seen) -> None:
    async for mode, chunk in drivers.LangGraphNode().graph(case).astream(_asked(case), stream_mode=MODES):
        seen.pieces += _of_guard(mode, chunk)


def _of_guard(mode: str, chunk: Any) -> list[Any]:
    """Return what the guard's node gave; what the model's node before it gives is not judged yet."""
    if mode == "messages":
        return [chunk] if chunk[1]["langgraph_node"] == "guard" else []
    return [chunk["guard"]] if mode == "updates" and "guard" in chunk else []


def _whole_graph(case: Case) -> Any:
    """Return a graph in which the model's node and the guard's are one, so that all of its streams are judged."""
    builder = StateGraph(drivers.Chat)
    builder.add_node("answer", drivers.LangGraphNode().graph(case).with_config(tags=[TAG_NOSTREAM]))
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder.compile()


def _graph_stream(case: Case, seen: Seen) -> None:
    seen.all_of(_whole_graph(case).stream(_asked(case), stream_mode=MODES))


async def _graph_astream(case: Case, seen: Seen) -> None:
    await seen.aall_of(_whole_graph(case).astream(_asked(case), stream_mode=MODES))


def _query_engine(case: Case) -> Any:
    engine = index().as_query_engine(llm=written_by(case.model), similarity_top_k=2, streaming=True)
    return LlamaIndexGuard(guard=case.guard).wrap(engine, fallbacks=fallbacks_of(case))


def _query(case: Case, seen: Seen) -> None:
    with own_loop():
        response = _query_engine(case).query(case.question)
        seen.all_of(response.response_gen)
        seen.pieces.append(response)


async def _aquery(case: Case, seen: Seen) -> None:
    response = await _query_engine(case).aquery(case.question)
    await seen.aall_of(response.async_response_gen())
    seen.pieces.append(response)


def _chat_engine(case: Case) -> Any:
    memory = ChatMemoryBuffer.from_defaults(token_limit=3000, tokenizer_fn=str.split)
    retriever = index().as_retriever(similarity_top_k=2)
    engine = ContextChatEngine.from_defaults(retriever, llm=written_by(case.model), memory=memory)
    return LlamaIndexGuard(guard=case.guard).wrap(engine, fallbacks=fallbacks_of(case))


async def _workflow(case: Case, seen: Seen) -> None:
    handler = ReviewWorkflow(_query_engine(case)).run(question=case.question)
    try:
        async for event in handler.stream_events(expose_internal=True):
            if isinstance(event, ReviewNeededEvent):  # its `answer` is for reviewers only
                seen.pieces.append(event.model_dump(exclude={"answer"}))
                return
            seen.pieces.append(event)
        seen.pieces.append(await handler)
    finally:
        await handler.cancel_run()


def _chat(case: Case, seen: Seen) -> None:
    with own_loop():
        engine = _chat_engine(case)
        try:
            seen.all_of(engine.stream_chat(case.question).response_gen)
        finally:
            join_writers()
            seen.pieces.append(engine.chat_history)


async def _achat(case: Case, seen: Seen) -> None:
    engine = _chat_engine(case)
    try:
        response = await engine.astream_chat(case.question)
        await seen.aall_of(response.async_response_gen())
    finally:
        join_writers()
        seen.pieces.append(engine.chat_history)


WAYS: dict[str, Any] = {
    **{f"{type(driver).__name__}.stream": _stream_of(driver) for driver in CHAINS},
    **{f"{type(driver).__name__}.astream": _astream_of(driver) for driver in CHAINS},
    **{f"{type(driver).__name__}.astream_events": _events_of(driver) for driver in CHAINS},
    "LangChainAgent.stream": _agent_stream,
    "LangChainAgent.astream": _agent_astream,
    "LangGraphNode.stream": _node_stream,
    "LangGraphNode.astream": _node_astream,
    "LangGraphSubgraph.stream": _graph_stream,
    "LangGraphSubgraph.astream": _graph_astream,
    "LlamaIndexQuery.query": _query,
    "LlamaIndexQuery.aquery": _aquery,
    "LlamaIndexChat.stream_chat": _chat,
    "LlamaIndexChat.astream_chat": _achat,
    "LlamaIndexWorkflow.stream_events": _workflow,
}
"""Each reads the stream of a case's answer."""
ASKS_AGAIN = [way for way in WAYS if not way.startswith(("LangChainChain", "LangChainMapping", "LangChainParser"))]
"""Those whose guard can ask a fallback model."""
