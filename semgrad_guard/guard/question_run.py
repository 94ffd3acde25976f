"""Carries one question from its first answer to its outcome: judge, answer again, settle."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from semgrad_guard.context import with_context
from semgrad_guard.deadline import call_before
from semgrad_guard.errors import NonFiniteScoreError, UnansweredError, UncalibratedError, in_log
from semgrad_guard.flow import (
    UNCALIBRATED,
    Abstain,
    Accept,
    AnswerWithWarning,
    Attempt,
    Decision,
    Failure,
    FallbackModel,
    HumanReview,
    Outcome,
    Progress,
    Record,
    Status,
    utc_now_or_epoch,
)
from semgrad_guard.ports import RulesWithoutAnswer
from semgrad_guard.routing import (
    Deadline,
    PostponedError,
    Resources,
    Settled,
    hand_over,
    next_attempt,
    settle,
    settle_review,
)

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from semgrad_guard.flow import Confidence, Exchange, NewAttempt, ReviewId, Ruling, Score
    from semgrad_guard.guard.verdict_loop import EarlierVerdicts, VerdictLoop
    from semgrad_guard.ports import Calibrator, Decider, ReviewQueue, Scorer, Sink

T = TypeVar("T")

SCORER_GRACE_S = 2.0
"""Extra seconds that a scorer gets after its time limit to stop by itself and say why."""


def keep_time(score: Callable[[float | None], T], limit_s: float | None, cancel: threading.Event | None) -> T:
    """Run a scorer within a time limit and return its result.

    With a time limit the scorer runs in a separate thread, so a scorer that ignores the limit is not waited for.

    Args:
        score: calls the scorer with the given `timeout_s`.
        limit_s: seconds left, below 0 when they are used up; `None` sets no limit.
        cancel: set when the question is cancelled.

    Raises:
        TimeoutError: the scorer took longer than the limit and `SCORER_GRACE_S`.
        CancelledError: the question was cancelled; the scorer's result or error is dropped.
    """
    timeout_s = None if limit_s is None else max(0.0, limit_s)
    deadline = Deadline.after(None if timeout_s is None else timeout_s + SCORER_GRACE_S)
    try:
        return call_before(deadline, lambda: score(timeout_s), "scoring")
    finally:
        if cancel is not None and cancel.is_set():
            raise asyncio.CancelledError


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The stages of a guard; replace any of them with `dataclasses.replace`."""

    scorer: Scorer
    calibrator: Calibrator
    decider: Decider
    queue: ReviewQueue | None = None
    earlier: EarlierVerdicts | None = None
    """Earlier verdicts to give again for the same question; with `None` a person is asked each time."""
    verdicts: VerdictLoop | None = None
    """Passes verdicts on while the program runs."""
    sink: Sink | None = None
    abstain_message: str
    """Message for the caller when a person rejects the answer, or when no step can be carried out."""
    budget_s: float | None = None
    """Seconds for all attempts at one question, scoring included; `None` sets no limit."""
    policy: str = "policy"
    """Origin and digest of the policy, for records."""


_log = logging.getLogger("semgrad_guard")


def judge(
    parts: Parts,
    exchange: Exchange,
    progress: Progress,
    scored: Score | Exception | None = None,
    cancel: threading.Event | None = None,
) -> Decision:
    """Score one attempt and return the policy's decision about it.

    Args:
        parts: the stages.
        exchange: the attempt.
        progress: what has happened to the question so far.
        scored: the score, or the error of scoring, if the attempt was already scored in a batch.
        cancel: set when the decision is no longer needed.

    Raises:
        CancelledError: (of `asyncio`) `cancel` was set.
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    stage = "scoring"
    try:
        score = _score(parts, exchange, progress, scored, cancel)
        stage = "calibration"
        confidence = parts.calibrator.confidence(exchange, score)
        if score.spans:
            score = parts.calibrator.with_span_confidences(score)
        score = replace(score, vectors={})  # read; thousands of numbers that no log needs
    except Exception as error:  # noqa: BLE001 - whatever fails, the answer must take `on_error`
        _log.warning("could not judge an answer (%s): %s", stage, in_log(error))
        return on_error(parts, exchange, Failure.of(stage, error), progress)
    return decide(parts, exchange, score, confidence, progress)


def decide(parts: Parts, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
    """Return the policy's decision about a scored attempt.

    Raises:
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    try:
        return parts.decider.decide(exchange, score, confidence, progress)
    except UncalibratedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever fails, the answer must take `on_error`
        _log.warning("the policy could not decide: %s", in_log(error))
        return on_error(parts, exchange, Failure.of("policy", error), progress)


def on_error(parts: Parts, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
    """Return the policy's decision about an answer that could not be judged; abstain if the policy fails too."""
    try:
        return parts.decider.decide_failure(exchange, failure, progress)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        _log.warning("the policy failed to handle an error: the answer is held back: %s", in_log(error))
        return Decision(
            step=Abstain(message=parts.abstain_message),
            rule="on_error",
            why=f"{failure.stage} failed ({failure.type}), and so did the policy ({type(error).__name__}: {error})",
            exchange_id=exchange.id,
            confidence=UNCALIBRATED,
            failure=failure,
        )


def _score(
    parts: Parts,
    exchange: Exchange,
    progress: Progress,
    scored: Score | Exception | None,
    cancel: threading.Event | None,
) -> Score:
    if isinstance(scored, Exception):
        raise scored
    left_s = None if parts.budget_s is None else parts.budget_s - progress.elapsed_s
    score = scored or keep_time(
        lambda timeout_s: parts.scorer.score(exchange, timeout_s=timeout_s, cancel=cancel), left_s, cancel
    )
    if not math.isfinite(score.value):
        raise NonFiniteScoreError(score.method)
    return score


MAX_STEPS = 100
"""Number of steps after which a policy that does not end is stopped."""
NOT_BEGUN = Progress()
"""The progress of a new question."""


class QuestionRun:
    """The state of one question while the policy is carried out; one object serves one call of `Guard.run`."""

    def __init__(
        self,
        parts: Parts,
        resources: Resources,
        *,
        clock: Callable[[], float],
        progress: Progress = NOT_BEGUN,
        cancel: threading.Event | None = None,
    ) -> None:
        """Start the clock, or continue from an earlier call that was postponed.

        Args:
            parts: the stages.
            resources: retrievers and models for retries and fallbacks.
            clock: returns seconds; where they go back, no time has passed, and where it fails, all that the policy
                allows.
            progress: progress of the postponed call.
            cancel: set when the outcome is no longer needed.
        """
        self._parts, self._resources, self._clock, self._cancel = parts, resources, clock, cancel
        self._elapsed_s = progress.elapsed_s
        self._started = self._read_clock() - progress.elapsed_s
        left_s = None if parts.budget_s is None else parts.budget_s - progress.elapsed_s
        self._deadline = Deadline.after(left_s, self._elapsed)
        self._earlier_attempts = progress.attempts
        self._tried = dict(progress.tried)
        self._exhausted = progress.exhausted
        self._failures = list(progress.failures)
        self._judged_at = utc_now_or_epoch()

    def run(self, exchange: Exchange, scored: Score | Exception | None = None) -> Outcome:
        """Return the outcome of a question whose first answer is `exchange`.

        Raises:
            UncalibratedError: there is no confidence and the policy says that this is an error.
            PostponedError: the next attempt will come in another call.
            CancelledError: (of `asyncio`) the question was cancelled.
        """
        exchange = with_context(exchange)
        return self._carry_on(exchange, self._judge(exchange, scored))

    def run_unanswered(self, exchange: Exchange, error: Exception) -> Outcome:
        """Return the outcome of a question that the model gave no answer to: the policy's fallback models are asked.

        Args:
            exchange: the question, with an empty answer.
            error: why there is none.

        Raises:
            UnansweredError: none of them gave an answer either; there is nothing to judge or hold back.
            UncalibratedError: there is no confidence and the policy says that this is an error.
            CancelledError: (of `asyncio`) the question was cancelled.
        """
        exchange, failure, decider = with_context(exchange), Failure.of("answer", error), self._parts.decider
        self._failures.append(failure)
        while isinstance(decider, RulesWithoutAnswer):
            decision = decider.without_answer(exchange, failure, self._progress())
            if decision is None or decision.step.ends_question is True:
                break
            retried = self._answered_again(exchange, decision, decision.step)
            if isinstance(retried, Exception):
                self._note_failed(decision, retried)
            else:
                return self._carry_on(retried, self._judged_again(retried, decision, decision.step))
        raise UnansweredError(failure.message, tuple(other.message for other in self._failures[1:])) from error

    def _carry_on(self, exchange: Exchange, decision: Decision) -> Outcome:
        """Take the steps that the policy chooses, until one ends the question."""
        for _ in range(MAX_STEPS - sum(self._tried.values())):
            step = decision.step
            if step.ends_question is True:
                return self._end(exchange, decision)
            exchange, decision = self._take_step(exchange, decision, step)
        failure = Failure("policy", "EndlessPolicyError", f"the policy took {MAX_STEPS} steps without an end")
        return self._end(exchange, on_error(self._parts, exchange, failure, self._progress()))

    def _judge(self, exchange: Exchange, scored: Score | Exception | None = None) -> Decision:
        decision = judge(self._parts, exchange, self._progress(), scored, self._cancel)
        self._judged_at = utc_now_or_epoch()
        return decision

    def _elapsed(self) -> float:
        """Return the seconds that the question has taken, earlier calls included."""
        passed_s = self._read_clock() - self._started
        if not math.isfinite(passed_s):
            passed_s = self._parts.budget_s or 0.0
        self._elapsed_s = max(self._elapsed_s, passed_s)
        return self._elapsed_s

    def _read_clock(self) -> float:
        try:
            return float(self._clock())
        except Exception as error:  # noqa: BLE001 - what cannot be timed can still be judged
            _log.warning("the clock cannot be read: %s", in_log(error))
            return math.nan

    def _progress(self) -> Progress:
        return Progress(
            attempts=self._earlier_attempts,
            tried=dict(self._tried),
            exhausted=self._exhausted,
            elapsed_s=self._elapsed(),
            failures=tuple(self._failures),
        )

    def _take_step(self, exchange: Exchange, decision: Decision, step: NewAttempt) -> tuple[Exchange, Decision]:
        """Return the next attempt and its decision; if the step fails, the same attempt and the next step."""
        retried = self._answered_again(exchange, decision, step)
        if isinstance(retried, Exception):
            return exchange, self._step_failed(exchange, decision, retried)
        return retried, self._judged_again(retried, decision, step)

    def _answered_again(self, exchange: Exchange, decision: Decision, step: NewAttempt) -> Exchange | Exception:
        """Return the next attempt, or why there is none."""
        self._tried[decision.rule] = self._tried.get(decision.rule, 0) + 1
        try:
            judged = replace(exchange, score=decision.score or exchange.score)  # says which passages were read
            retried = with_context(next_attempt(step, judged, self._resources, self._deadline))
        except PostponedError as postponed:
            self._earlier_attempts = (*self._earlier_attempts, Attempt(exchange, decision, judged_at=self._judged_at))
            postponed.progress = self._progress()
            raise
        except Exception as error:  # noqa: BLE001 - a step that fails must not take the answer with it
            return error
        self._earlier_attempts = (*self._earlier_attempts, Attempt(exchange, decision, judged_at=self._judged_at))
        return retried

    def _judged_again(self, retried: Exchange, decision: Decision, step: NewAttempt) -> Decision:
        if isinstance(step, FallbackModel) and step.unscored:
            self._judged_at = utc_now_or_epoch()
            return _unscored(retried, decision, step)
        return self._judge(retried)

    def _note_failed(self, decision: Decision, error: Exception) -> None:
        _log.info("step %s failed: %s", decision.rule, in_log(error))
        self._failures.append(Failure.of(decision.action.value, error))
        self._exhausted |= {decision.rule}

    def _step_failed(self, exchange: Exchange, decision: Decision, error: Exception) -> Decision:
        self._note_failed(decision, error)
        if decision.score is None:
            return on_error(self._parts, exchange, self._failures[-1], self._progress())
        return decide(self._parts, exchange, decision.score, decision.confidence, self._progress())

    def _end(self, exchange: Exchange, decision: Decision) -> Outcome:
        attempts = (*self._earlier_attempts, Attempt(exchange, decision, judged_at=self._judged_at))
        chosen = exchange if isinstance(decision.step, Accept) else self._best(exchange, decision)
        ruling = self._earlier_verdict(chosen, decision)
        if ruling is None:
            settled, review_id, decision = self._settle(chosen, decision, attempts)
        else:
            decision = replace(decision, why=f"{decision.why}; {ruling.by} answered this question before")
            settled, review_id = Settled(ruling.text, Status.REVIEWED), ruling.review_id
        attempts = (*self._earlier_attempts, Attempt(exchange, decision, judged_at=self._judged_at))
        return Outcome(
            text=settled.text,
            status=settled.status,
            decision=decision,
            exchange=chosen,
            attempts=attempts,
            record=replace(self._record(settled, attempts, review_id), answer_id=chosen.id, reused=ruling is not None),
            review_id=review_id,
            reused=ruling is not None,
        )

    def _earlier_verdict(self, exchange: Exchange, decision: Decision) -> Ruling | None:
        """Return a person's earlier verdict on the question, if the decision is to ask a person."""
        earlier = self._parts.earlier
        return earlier.find(exchange) if earlier is not None and isinstance(decision.step, HumanReview) else None

    def _best(self, exchange: Exchange, decision: Decision) -> Exchange:
        try:
            return self._parts.decider.best(exchange, decision, self._progress())
        except Exception as error:  # noqa: BLE001 - comparing must not cost the caller the answer
            _log.warning("could not compare the attempts: the last one is used: %s", in_log(error))
            return exchange

    def _settle(
        self, exchange: Exchange, decision: Decision, attempts: tuple[Attempt, ...]
    ) -> tuple[Settled, ReviewId | None, Decision]:
        step = decision.step
        if isinstance(step, HumanReview):
            try:
                shown = _decision_shown(exchange, decision, attempts)
                review_id, ruling = hand_over(step, exchange, shown, attempts, self._parts.queue)
            except Exception as error:  # noqa: BLE001 - an answer that cannot reach a person is held back
                return self._not_handed_over(exchange, decision, error)
            abstain = self._parts.abstain_message
            return settle_review(ruling, pending=step.message, abstain=abstain), review_id, decision
        if (
            step.ends_question is False
        ):  # a retry chosen by `on_error` or a custom decider cannot be carried out any more
            step = Abstain(message=self._parts.abstain_message)
        return settle(step, exchange), None, decision

    def _not_handed_over(
        self, exchange: Exchange, decision: Decision, error: Exception
    ) -> tuple[Settled, ReviewId | None, Decision]:
        _log.warning("could not hand an answer to a person: %s", in_log(error))
        failure = Failure.of(HumanReview.action.value, error)
        self._failures.append(failure)
        fallen_back = on_error(self._parts, exchange, failure, self._progress())
        fail_closed = Abstain(message=self._parts.abstain_message)
        step = fallen_back.step if isinstance(fallen_back.step, Abstain | AnswerWithWarning) else fail_closed
        fallen_back = replace(fallen_back, step=step, score=decision.score, confidence=decision.confidence)
        return settle(step, exchange), None, fallen_back

    def _record(self, settled: Settled, attempts: tuple[Attempt, ...], review_id: ReviewId | None) -> Record:
        of_decisions = [attempt.decision.failure for attempt in attempts if attempt.decision.failure]
        others = [failure for failure in of_decisions if failure not in self._failures]
        return Record(
            id=attempts[0].exchange.id,
            at=utc_now_or_epoch(),
            status=settled.status,
            text=settled.text,
            attempts=attempts,
            policy=self._parts.policy,
            seconds=self._elapsed(),
            scoring_s=sum(a.decision.score.seconds for a in attempts if a.decision.score),
            review_id=review_id,
            failures=(*self._failures, *others),
        )


def _decision_shown(exchange: Exchange, decision: Decision, attempts: tuple[Attempt, ...]) -> Decision:
    """Return the last decision with the score and confidence of the attempt that the person will read."""
    own = next((a.decision for a in attempts if a.exchange.id == exchange.id), decision)
    return replace(decision, exchange_id=exchange.id, score=own.score, confidence=own.confidence)


def _unscored(exchange: Exchange, decision: Decision, step: FallbackModel) -> Decision:
    return Decision(
        step=Accept(),
        rule=decision.rule,
        why=f"the policy passes answers of fallback model {step.name!r} without judging them",
        exchange_id=exchange.id,
    )
