"""Streams that pass at once and are judged at their end: the reader has the answer, the metadata says its worth."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse

from llama_index_semgrad.convert import METADATA_KEY, outcome_metadata
from llama_index_semgrad.observing import observe, recording_faults
from llama_index_semgrad.responses import Reply, mark
from llama_index_semgrad.watcher import capturing
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    import threading
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

    from llama_index_semgrad.attempts import Question
    from llama_index_semgrad.calls import ModelCall
    from semgrad_guard.flow import Json
    from semgrad_guard.guard import Guard

_log = logging.getLogger("semgrad_guard")


def annotated(first: StreamingResponse, calls: list[ModelCall], question: Question, guard: Guard) -> StreamingResponse:
    """Return a stream that fills `metadata["semgrad"]` when its last piece has passed."""
    metadata: dict[str, Any] = dict(first.metadata or {})

    def stream() -> Generator[str, None, None]:
        pieces: list[str] = []
        with recording_faults(guard, question.asker.question):
            for piece in drawn(iter(first.response_gen), calls):
                pieces.append(piece)
                yield piece
        metadata[METADATA_KEY] = verdict(guard, question, Reply(first, "".join(pieces)), calls)

    return mark(StreamingResponse(stream(), list(first.source_nodes), metadata))


def aannotated(
    first: AsyncStreamingResponse, calls: list[ModelCall], question: Question, guard: Guard
) -> AsyncStreamingResponse:
    """Same as `annotated`, for async streams; the judgement never blocks the event loop."""
    metadata: dict[str, Any] = dict(first.metadata or {})

    async def stream() -> AsyncGenerator[str, None]:
        pieces: list[str] = []
        with recording_faults(guard, question.asker.question):
            async for piece in adrawn(first.async_response_gen(), calls):
                pieces.append(piece)
                yield piece
        reply = Reply(first, "".join(pieces))
        metadata[METADATA_KEY] = await in_thread(verdict, guard, question, reply, calls)

    return mark(AsyncStreamingResponse(stream(), list(first.source_nodes), metadata))


def verdict(
    guard: Guard, question: Question, reply: Reply, calls: list[ModelCall], cancel: threading.Event | None = None
) -> dict[str, Json]:
    """Return what the guard thinks of an answer that has passed; a failure becomes a value, the reader has the text."""
    made = question.first(reply, calls)
    try:
        return outcome_metadata(observe(guard, made, cancel))
    except Exception as error:  # noqa: BLE001 - the answer is out: an exception now would only hide it
        _log.warning("a streamed answer could not be judged: %s: %s", type(error).__name__, error)
        return {"status": "unjudged", "error": f"{type(error).__name__}: {error}"}


def drawn(stream: Iterator[str], calls: list[ModelCall]) -> Iterator[str]:
    """Draw a stream piece by piece; model calls that it makes are captured, those of its reader are not."""
    end = object()
    while True:
        with capturing(calls):
            piece = next(stream, end)
        if piece is end:
            return
        yield str(piece)


async def adrawn(stream: AsyncIterator[str], calls: list[ModelCall]) -> AsyncIterator[str]:
    """Same as `drawn`."""
    while True:
        with capturing(calls):
            try:
                piece = await anext(stream)
            except StopAsyncIteration:
                return
        yield piece
