"""Reading a LlamaIndex response, and making one of the same type with the text that the guard allows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from pydantic import BaseModel, ValidationError

from llama_index_semgrad.convert import METADATA_KEY
from llama_index_semgrad.copies import cleaned_beside
from semgrad_guard.adapter_kit import findings, held_back, no_place, text_for
from semgrad_guard.errors import NotGuardableError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Iterable

    from llama_index.core.base.response.schema import RESPONSE_TYPE
    from llama_index.core.schema import NodeWithScore

    from semgrad_guard.flow import Outcome

R = TypeVar("R")

_MARK = "_semgrad_guarded"


@dataclass(frozen=True, slots=True)
class Reply:
    """A response that was read to its end."""

    native: Any
    text: str
    pieces: tuple[str, ...] = ()
    """The text as it was streamed."""

    @property
    def nodes(self) -> list[NodeWithScore]:
        """The nodes that it was written from."""
        return list(getattr(self.native, "source_nodes", None) or ())


def read(native: object) -> Reply:
    """Return a response with its text; a stream is read to its end.

    Raises:
        NotGuardableError: it is not a response of LlamaIndex.
    """
    if isinstance(native, Response):
        return Reply(native, native.response or "")
    if isinstance(native, PydanticResponse):
        return Reply(native, "" if native.response is None else native.response.model_dump_json())
    if isinstance(native, StreamingResponse):
        if native.response_txt is not None:
            return Reply(native, native.response_txt)
        return _in_pieces(native, native.response_gen)
    if isinstance(native, AsyncStreamingResponse):
        return Reply(native, str(native))
    msg = f"a query engine gave {type(native).__name__}, which is no response of LlamaIndex: return a Response"
    raise NotGuardableError(msg)


async def aread(native: object) -> Reply:
    """Same as `read` for async callers; a sync stream is read in a worker thread."""
    if isinstance(native, AsyncStreamingResponse):
        return _in_pieces(native, [piece async for piece in native.async_response_gen()])
    return await asyncio.to_thread(read, native)


def _in_pieces(native: object, stream: Iterable[str | None]) -> Reply:
    pieces = tuple(piece for piece in stream if piece)
    return Reply(native, "".join(pieces), pieces)


def guarded(like: RESPONSE_TYPE, reply: Reply, outcome: Outcome) -> RESPONSE_TYPE:
    """Return the response that the caller gets; no part of it holds a withheld answer.

    Raises:
        LowConfidenceError: the engine gives objects, and the answer must be held back.

    Args:
        like: the engine's own response; the result has its type.
        reply: the attempt that was returned, held back or handed on.
        outcome: what the guard decided.
    """
    native = reply.native
    metadata, nodes, left_out = cleaned_beside(outcome, native.metadata, reply.nodes)
    metadata[METADATA_KEY] = findings(outcome, left_out=left_out)
    if isinstance(like, PydanticResponse):
        return mark(PydanticResponse(_object(like, native, outcome), nodes, metadata))
    unchanged = not outcome.withheld and outcome.text == outcome.exchange.answer
    pieces = reply.pieces if unchanged and reply.pieces else (outcome.text,)
    if isinstance(like, StreamingResponse):
        return mark(StreamingResponse(replay(pieces), nodes, metadata))
    if isinstance(like, AsyncStreamingResponse):
        return mark(AsyncStreamingResponse(areplay(pieces), nodes, metadata))
    return mark(Response(outcome.text, nodes, metadata))


def _object(like: PydanticResponse, native: object, outcome: Outcome) -> BaseModel | None:
    """Return the object that the caller gets: the engine's, or that of a fallback model's or a reviewer's text.

    Raises:
        LowConfidenceError: the answer must be held back, or the text that takes its place is no object of that type.
    """
    if outcome.withheld:
        raise held_back(outcome)
    text = text_for(outcome, is_field=True)
    if isinstance(native, PydanticResponse) and text == outcome.exchange.answer:
        return native.response
    if like.response is None:
        return None
    try:
        return type(like.response).model_validate_json(text)
    except ValidationError:
        raise no_place(outcome) from None


def replay(pieces: Iterable[str]) -> Generator[str, None, None]:
    """Yield pieces of text."""
    yield from pieces


async def areplay(pieces: Iterable[str]) -> AsyncGenerator[str, None]:
    """Same as `replay` for async callers."""
    for piece in pieces:
        yield piece


def mark(response: R) -> R:
    """Mark a response as guarded.

    The mark is not in the metadata, because its keys are the ids of nodes, which anyone who writes nodes may choose.
    """
    vars(response)[_MARK] = True
    return response


def is_guarded(response: object) -> bool:
    """Return whether a response comes from a guarded engine."""
    return _MARK in getattr(response, "__dict__", {})
