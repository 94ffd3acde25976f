"""Exchange -> Decision, without side effects; what fails on the way becomes the policy's `on_error`."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from semgrad_guard.errors import NonFiniteScoreError, UncalibratedError
from semgrad_guard.flow import UNCALIBRATED, Abstain, Decision, Failure
from semgrad_guard.guard.scoring_time import score_within

if TYPE_CHECKING:
    from semgrad_guard.flow import Confidence, Exchange, Progress, Score
    from semgrad_guard.guard.parts import Parts

_log = logging.getLogger("semgrad_guard")


def judge(parts: Parts, exchange: Exchange, progress: Progress, scored: Score | Exception | None = None) -> Decision:
    """Return what the policy chooses for one attempt.

    Args:
        parts: the stages.
        exchange: the attempt.
        progress: what has happened to the question so far.
        scored: the score, or the error that scoring ended with, when it was already taken in a batch.

    Raises:
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    stage = "scoring"
    try:
        score = _score(parts, exchange, progress, scored)
        stage = "calibration"
        confidence = parts.calibrator.confidence(exchange, score)
        if score.spans:
            score = parts.calibrator.with_span_confidences(score)
    except Exception as error:  # noqa: BLE001 - whatever fails, the answer must take `on_error`
        _log.warning("could not judge an answer (%s): %s: %s", stage, type(error).__name__, error)
        return on_error(parts, exchange, Failure.of(stage, error), progress)
    return decide(parts, exchange, score, confidence, progress)


def decide(parts: Parts, exchange: Exchange, score: Score, confidence: Confidence, progress: Progress) -> Decision:
    """Return what the policy chooses for a scored attempt.

    Raises:
        UncalibratedError: there is no confidence and the policy says that this is an error.
    """
    try:
        return parts.decider.decide(exchange, score, confidence, progress)
    except UncalibratedError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever fails, the answer must take `on_error`
        _log.warning("the policy could not decide: %s: %s", type(error).__name__, error)
        return on_error(parts, exchange, Failure.of("policy", error), progress)


def on_error(parts: Parts, exchange: Exchange, failure: Failure, progress: Progress) -> Decision:
    """Return what the policy wants done with an answer that could not be judged; abstain if even that fails."""
    try:
        return parts.decider.decide_failure(exchange, failure, progress)
    except Exception as error:  # noqa: BLE001 - the last line of defence
        _log.exception("the policy could not say what to do on an error: the answer is held back")
        return Decision(
            step=Abstain(message=parts.abstain_message),
            rule="on_error",
            why=f"{failure.stage} failed ({failure.type}), and so did the policy ({type(error).__name__}: {error})",
            exchange_id=exchange.id,
            confidence=UNCALIBRATED,
            failure=failure,
        )


def _score(parts: Parts, exchange: Exchange, progress: Progress, scored: Score | Exception | None) -> Score:
    if isinstance(scored, Exception):
        raise scored
    left_s = None if parts.budget_s is None else parts.budget_s - progress.elapsed_s
    score = scored or score_within(parts.scorer, exchange, left_s)
    if not math.isfinite(score.value):
        raise NonFiniteScoreError(score.method)
    return score
