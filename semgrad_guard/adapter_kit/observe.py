"""Judging answers without touching them: records of what the policy would have done, in the background or at once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from semgrad_guard.errors import in_log
from semgrad_guard.flow import (
    Abstain,
    Accept,
    AnswerWithWarning,
    Attempt,
    Decision,
    Exchange,
    Failure,
    Outcome,
    Record,
    Status,
    utc_now_or_epoch,
)
from semgrad_guard.guard.question_run import NOT_BEGUN, judge
from semgrad_guard.ports import RulesBesideTools

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from semgrad_guard.adapter_kit.candidates import Candidate
    from semgrad_guard.guard import Guard

_log = logging.getLogger("semgrad_guard")

FAILED = "chain"
"""Rule of a record about a pipeline that raised: no policy chose anything."""


def observe(
    guard: Guard,
    candidate: Candidate,
    cancel: threading.Event | None = None,
    *,
    is_marked: bool = True,
    beside_tools: bool = False,
) -> Outcome:
    """Judge an answer that its reader already has and log the record; nothing of the policy is carried out.

    The record of an answer that cannot be judged says what failed.

    Args:
        guard: what judges and decides.
        candidate: the answer.
        cancel: set when the outcome is no longer needed.
        is_marked: whether the reader sees the decision beside the answer; the record calls a doubtful one warned then.
        beside_tools: whether it is no answer but text beside a request for tools; the record says so.

    Raises:
        CancelledError: (of `asyncio`) `cancel` was set.
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    started = time.perf_counter()
    if candidate.error is None:
        decision = guard.judge(candidate.exchange, cancel=cancel)
    else:
        decision = guard.judge_failed(candidate.exchange, candidate.error)
    warned = is_marked and not isinstance(decision.step, Accept)
    record = _record_of(
        guard, candidate.exchange, decision, Status.WARNED if warned else Status.ANSWERED, time.perf_counter() - started
    )
    return _recorded(guard, replace(record, beside_tool_calls="judge") if beside_tools else record)


def judge_beside_tools(guard: Guard, candidate: Candidate, cancel: threading.Event | None = None) -> Outcome:
    """Return what the caller gets of a text that stands beside a request for tools; its record is logged.

    The policy's `beside_tool_calls` says what happens: the text is judged, left out, or passes. A judged text stays
    where the policy would give it, and is left out otherwise: nothing is retrieved again for it, and no person asked.

    Args:
        guard: what judges and decides.
        candidate: the text, or why it cannot be judged.
        cancel: set when the outcome is no longer needed.

    Raises:
        CancelledError: (of `asyncio`) `cancel` was set.
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    started, exchange, decider = time.perf_counter(), candidate.exchange, guard.parts.decider
    handling, rule = decider.beside_tool_calls(exchange) if isinstance(decider, RulesBesideTools) else ("judge", "")
    if handling == "judge":
        decision = judge(guard.parts, exchange, NOT_BEGUN, candidate.error, cancel)
    else:
        step, does = (Abstain(message=""), "is left out") if handling == "blank" else (Accept(), "passes unjudged")
        why = f"text beside a request for tools {does}"
        decision = Decision(step=step, rule=rule, why=why, exchange_id=exchange.id)
    given = {Accept.action: Status.ANSWERED, AnswerWithWarning.action: Status.WARNED}
    status = given.get(decision.action, Status.ABSTAINED)
    record = _record_of(guard, exchange, decision, status, time.perf_counter() - started)
    text = "" if status is Status.ABSTAINED else exchange.answer
    return _recorded(guard, replace(record, text=text, beside_tool_calls=handling))


@contextmanager
def recording_faults(guard: Guard, question: str) -> Generator[None, None, None]:
    """Log a record when a pipeline raises or its caller gives up; the error goes on to the caller as it is."""
    try:
        yield
    except (Exception, asyncio.CancelledError) as error:
        failure = Failure.of(FAILED, error)
        _log.warning("a guarded pipeline gave no answer: %s", failure.type)
        exchange = Exchange(prompt=question, question=question)
        decision = Decision(
            step=Abstain(message=""),
            rule=FAILED,
            why=f"the pipeline gave no answer: {failure.type}",
            exchange_id=exchange.id,
            failure=failure,
        )
        _recorded(guard, _record_of(guard, exchange, decision, Status.ABSTAINED, 0.0))
        raise


def _record_of(guard: Guard, exchange: Exchange, decision: Decision, status: Status, seconds: float) -> Record:
    """Return the record of an answer with a single attempt."""
    now = utc_now_or_epoch()
    return Record(
        id=exchange.id,
        at=now,
        status=status,
        text=exchange.answer,
        attempts=(Attempt(exchange, decision, judged_at=now),),
        policy=guard.parts.policy,
        seconds=seconds,
        scoring_s=decision.score.seconds if decision.score else 0.0,
        failures=(decision.failure,) if decision.failure else (),
        answer_id=exchange.id,
    )


def _recorded(guard: Guard, record: Record) -> Outcome:
    """Log the record of a single attempt, and return its outcome."""
    guard.emit(record)
    (attempt,) = record.attempts
    return Outcome(
        text=record.text,
        status=record.status,
        decision=attempt.decision,
        exchange=attempt.exchange,
        attempts=record.attempts,
        record=record,
    )


class BackgroundJudge:
    """Judges answers one after the other in a thread of its own, so that no answer waits for its score.

    When too many wait, new ones are dropped, counted and, the first time, reported in the log.

    Args:
        limit: answers that may wait.
        name: name of the thread.
    """

    def __init__(self, limit: int = 1_000, name: str = "semgrad-guard observer") -> None:
        """Start nothing yet: the thread is made for the first answer and ends when there is nothing left to do."""
        self._limit, self._name = limit, name
        self._changed = threading.Condition()
        self._waiting: deque[Callable[[], object]] = deque()
        self._running = False
        self.dropped = 0
        """Answers that found no place."""

    def put(self, judge: Callable[[], object]) -> bool:
        """Take the judging of one answer; false when too many wait already, so it is dropped."""
        with self._changed:
            if len(self._waiting) >= self._limit:
                self.dropped += 1
                if self.dropped == 1:
                    _log.warning("%s: %d answers wait to be judged, so new ones are not", self._name, self._limit)
                return False
            self._waiting.append(judge)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            return True

    def flush(self, timeout_s: float | None = None) -> bool:
        """Wait until every answer taken so far is judged; false when that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    self._running = False
                    self._changed.notify_all()
                    return
                judge = self._waiting.popleft()
            try:
                judge()
            except Exception as error:  # noqa: BLE001 - the next answer must still be judged
                _log.warning("an answer could not be observed: %s", in_log(error))
