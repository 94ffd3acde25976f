"""Judging answers that their reader already has: streams that pass at once, and engines that fail."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llama_index.core.base.response.schema import AsyncStreamingResponse, StreamingResponse

from llama_index_semgrad.convert import METADATA_KEY
from llama_index_semgrad.responses import Reply, mark
from llama_index_semgrad.watcher import capturing
from semgrad_guard.adapter_kit import findings
from semgrad_guard.flow import (
    Abstain,
    Accept,
    Attempt,
    Decision,
    Exchange,
    Failure,
    Outcome,
    Record,
    Status,
    utc_now,
)
from semgrad_guard.guard import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

    from llama_index_semgrad.exchanges import Judgeable
    from llama_index_semgrad.rerun import Question
    from llama_index_semgrad.watcher import ModelCall
    from semgrad_guard.flow import Json
    from semgrad_guard.guard import Guard

_log = logging.getLogger("semgrad_guard")

CHAIN_FAILED = "chain"
"""Rule of a record about an engine that raised: no policy chose anything."""


def observe(guard: Guard, made: Judgeable) -> Outcome:
    """Judge an answer and log the record; nothing of the policy is carried out.

    Raises:
        ScoringError: the answer cannot be judged.
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    if made.error is not None:
        raise made.error
    decision = guard.judge(made.exchange)
    status = Status.ANSWERED if isinstance(decision.step, Accept) else Status.WARNED
    return _logged(guard, made.exchange, decision, status)


@contextmanager
def recording_faults(guard: Guard, question: str) -> Generator[None, None, None]:
    """Log a record when the engine raises or its caller gives up; the error goes on to the caller as it is."""
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        failure = Failure.of(CHAIN_FAILED, error)
        _log.warning("a guarded engine gave no answer: %s: %s", failure.type, failure.message)
        exchange = Exchange(prompt=question, question=question)
        decision = Decision(
            step=Abstain(message=""),
            rule=CHAIN_FAILED,
            why=f"the engine gave no answer: {failure.type}",
            exchange_id=exchange.id,
            failure=failure,
        )
        _logged(guard, exchange, decision, Status.ABSTAINED)
        raise


def _logged(guard: Guard, exchange: Exchange, decision: Decision, status: Status) -> Outcome:
    parts = guard.parts
    attempt = Attempt(exchange, decision, judged_at=utc_now())
    seconds = decision.score.seconds if decision.score else 0.0
    record = Record(
        id=exchange.id,
        at=utc_now(),
        status=status,
        text=exchange.answer,
        attempts=(attempt,),
        policy=parts.policy,
        seconds=seconds,
        scoring_s=seconds,
        failures=(decision.failure,) if decision.failure else (),
        answer_id=exchange.id,
    )
    if parts.sink is not None:
        try:
            parts.sink.emit(record)
        except Exception:  # noqa: BLE001 - logging must not cost the caller the answer
            _log.exception("a record could not be logged")
    return Outcome(
        text=exchange.answer, status=status, decision=decision, exchange=exchange, attempts=(attempt,), record=record
    )


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


def verdict(guard: Guard, question: Question, reply: Reply, calls: list[ModelCall]) -> dict[str, Json]:
    """Return what the guard thinks of an answer that has passed; a failure becomes a value, the reader has the text."""
    made = question.first(reply, calls)
    try:
        return findings(observe(guard, made))
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
