"""Record -> OpenTelemetry attributes.

The evaluation event follows the GenAI semantic conventions (repository `semantic-conventions-genai`, status
development), whose names are written out here because their Python constants move between releases. What the
conventions have no name for stands under `semgrad.`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.telemetry.fields import number, signals_fields, summary_fields
from semgrad_guard.telemetry.runs import RunRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Attempt, Record, Score

Attributes = dict[str, str | bool | int | float]

EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "semgrad_confidence"
"""What `gen_ai.evaluation.score.value` is: calibrated P(answer is correct). The label is the chosen action."""


def evaluation_attributes(attempt: Attempt, *, log_text: bool) -> Attributes:
    """Return the attributes of the `gen_ai.evaluation.result` event of one attempt."""
    decision = attempt.decision
    run = RunRef.of(attempt.exchange)
    return {
        **_known(
            {
                "gen_ai.evaluation.name": EVALUATION_NAME,
                "gen_ai.evaluation.score.value": number(decision.confidence.value),
                "gen_ai.evaluation.score.label": str(decision.action),
                "gen_ai.evaluation.explanation": decision.why if log_text else None,
                "gen_ai.response.id": run.response_id if run else None,
                "error.type": decision.failure.type if decision.failure else None,
            }
        ),
        **attempt_attributes(attempt),
    }


def attempt_attributes(attempt: Attempt) -> Attributes:
    """Return `semgrad.…` attributes of one attempt, without text."""
    decision, exchange = attempt.decision, attempt.exchange
    return {
        **_known(
            {
                "semgrad.attempt": exchange.attempt,
                "semgrad.action": str(decision.action),
                "semgrad.rule": decision.rule,
                "semgrad.confidence": number(decision.confidence.value),
                "semgrad.profile": decision.confidence.profile,
                "semgrad.drifted": decision.confidence.drifted,
                "semgrad.author": exchange.author,
            }
        ),
        **(_score(decision.score) if decision.score else {}),
    }


def record_attributes(record: Record, *, log_text: bool) -> Attributes:
    """Return `semgrad.…` attributes of a question."""
    said = {f"semgrad.{name}": value for name, value in summary_fields(record).items() if name != "at"}
    if record.failures:
        said["error.type"] = record.failures[0].type
    if log_text:
        said["semgrad.question"] = record.attempts[0].exchange.question if record.attempts else None
        said["semgrad.text"] = record.text
    return _known(said)


def decision_labels(attempt: Attempt) -> Attributes:
    """Return what the metrics of one decision are counted by: few values only."""
    score = attempt.decision.score
    return _known(
        {
            "semgrad.action": str(attempt.decision.action),
            "semgrad.rule": attempt.decision.rule,
            "semgrad.scorer": score.model if score else None,
        }
    )


def scoring_labels(score: Score) -> Attributes:
    """Return what scoring time is counted by."""
    return {"semgrad.scorer": score.model, "semgrad.method": score.method, "semgrad.path": score.path}


def _score(score: Score) -> Attributes:
    signals = {f"semgrad.signal.{name}": value for name, value in signals_fields(score.signals).items()}
    return _known(
        {
            "semgrad.method": score.method,
            "semgrad.score": number(score.value),
            "semgrad.scorer": score.model,
            "semgrad.proxy": score.proxy,
            "semgrad.path": score.path,
            "semgrad.prompt_tokens": score.n_prompt_tokens,
            "semgrad.answer_tokens": score.n_answer_tokens,
            **signals,
        }
    )


def _known(said: Mapping[str, object]) -> Attributes:
    """Leave out what is not known; attributes cannot be `None`."""
    return {name: value for name, value in said.items() if isinstance(value, str | bool | int | float)}
