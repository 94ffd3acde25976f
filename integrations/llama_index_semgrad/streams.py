"""Streams of guarded engines: judged before they begin, or passed on at once and judged at their end."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse
from llama_index.core.chat_engine.types import StreamingAgentChatResponse
from llama_index.core.llms import ChatMessage, ChatResponse, MessageRole

from llama_index_semgrad.convert import METADATA_KEY
from llama_index_semgrad.responses import Reply, mark
from llama_index_semgrad.watcher import capturing
from semgrad_guard.adapter_kit import findings, observe, recording_faults
from semgrad_guard.errors import in_log
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

    from llama_index.core.chat_engine.types import AgentChatResponse

    from llama_index_semgrad.convert import LlmCall
    from llama_index_semgrad.rerun import EngineRun
    from semgrad_guard.flow import Json
    from semgrad_guard.guard import Guard

StreamMode = Literal["buffer", "annotate"]
"""`buffer`: a stream begins when the answer was judged. `annotate`: it passes at once and is judged at its end."""


def passes(stream: StreamMode | None, guard: Guard) -> bool:
    """Return whether a stream passes before its answer is judged; by default where the guard only measures."""
    return stream == "annotate" or (stream is None and guard.only_measures)


_log = logging.getLogger("semgrad_guard")


# --- of query engines -------------------------------------------------------------------------------------------------


def annotated(first: StreamingResponse, calls: list[LlmCall], run: EngineRun, guard: Guard) -> StreamingResponse:
    """Return a stream that fills `metadata["semgrad"]` when its last piece has passed."""
    metadata: dict[str, Any] = dict(first.metadata or {})

    def stream() -> Generator[str, None, None]:
        pieces: list[str] = []
        with recording_faults(guard, run.question):
            for piece in captured_pieces(iter(first.response_gen), calls):
                pieces.append(piece)
                yield piece
        metadata[METADATA_KEY] = late_findings(guard, run, Reply(first, "".join(pieces)), calls)

    return mark(StreamingResponse(stream(), list(first.source_nodes), metadata))


def aannotated(
    first: AsyncStreamingResponse, calls: list[LlmCall], run: EngineRun, guard: Guard
) -> AsyncStreamingResponse:
    """Same as `annotated` for async streams; the judgement never blocks the event loop."""
    metadata: dict[str, Any] = dict(first.metadata or {})

    async def stream() -> AsyncGenerator[str, None]:
        pieces: list[str] = []
        with recording_faults(guard, run.question):
            async for piece in acaptured_pieces(first.async_response_gen(), calls):
                pieces.append(piece)
                yield piece
        reply = Reply(first, "".join(pieces))
        metadata[METADATA_KEY] = await in_thread(late_findings, guard, run, reply, calls)

    return mark(AsyncStreamingResponse(stream(), list(first.source_nodes), metadata))


def late_findings(
    guard: Guard, run: EngineRun, reply: Reply, calls: list[LlmCall], cancel: threading.Event | None = None
) -> dict[str, Json]:
    """Judge an answer that the reader already has, and return the findings.

    An error becomes a finding too: raised now, it would only cost the reader the text.
    """
    candidate = run.first(reply, calls)
    try:
        return findings(observe(guard, candidate, cancel))
    except Exception as error:  # noqa: BLE001 - see the docstring
        _log.warning("a streamed answer could not be judged: %s", in_log(error))
        return {"status": "unjudged", "error": f"{type(error).__name__}: {error}"}


def captured_pieces(stream: Iterator[str], calls: list[LlmCall]) -> Iterator[str]:
    """Read a stream piece by piece, and collect the model calls that it makes but not those of its reader."""
    end = object()
    while True:
        with capturing(calls):
            piece = next(stream, end)
        if piece is end:
            return
        yield str(piece)


async def acaptured_pieces(stream: AsyncIterator[str], calls: list[LlmCall]) -> AsyncIterator[str]:
    """Same as `captured_pieces` for async streams."""
    while True:
        with capturing(calls):
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
        yield piece


# --- of chat engines --------------------------------------------------------------------------------------------------


@dataclass
class GuardedStreamingChatResponse(StreamingAgentChatResponse):
    """A streaming chat response with the guard's findings."""

    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    """Under `semgrad`: confidence and decision; when annotating, filled at the end of the stream."""


def chat_stream_of(response: AgentChatResponse) -> GuardedStreamingChatResponse:
    """Return a chat response that was judged before as a stream of one piece."""
    text = response.response

    def stream() -> Generator[ChatResponse, None, None]:
        yield chat_piece(text, text)

    async def astream() -> AsyncGenerator[ChatResponse, None]:
        yield chat_piece(text, text)

    streaming = GuardedStreamingChatResponse(
        response=text,
        sources=response.sources,
        source_nodes=response.source_nodes,
        chat_stream=stream(),
        achat_stream=astream(),
        is_writing_to_memory=False,
        metadata=response.metadata or {},
    )
    return mark(streaming)


def annotated_chat(first: StreamingAgentChatResponse) -> GuardedStreamingChatResponse:
    """Return a response for an engine's stream that passes at once; the stream itself is put in by the caller."""
    response = GuardedStreamingChatResponse(
        sources=first.sources, source_nodes=first.source_nodes, is_writing_to_memory=False
    )
    return mark(response)


def chat_piece(text: str, piece: str) -> ChatResponse:
    """Return one piece of a chat stream.

    Args:
        text: the answer so far, with this piece.
        piece: what is new.
    """
    return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text), delta=piece)
