"""Judging an answer that its reader already has, and recording what went wrong outside the guard."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator

    from llama_index_semgrad.exchanges import Judgeable
    from semgrad_guard.guard import Guard

_log = logging.getLogger("semgrad_guard")

CHAIN_FAILED = "chain"
"""Rule of a record about an engine that raised: no policy chose anything."""


def observe(guard: Guard, made: Judgeable, cancel: threading.Event | None = None) -> Outcome:
    """Judge an answer and log the record; nothing of the policy is carried out.

    Raises:
        ScoringError: the answer cannot be judged.
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    if made.error is not None:
        raise made.error
    decision = guard.judge(made.exchange, cancel=cancel)
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
