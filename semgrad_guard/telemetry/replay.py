"""Logged fields -> Record, so that a policy can be tried on what was logged."""

from __future__ import annotations

import math
from datetime import datetime
from typing import TYPE_CHECKING, Any

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import (
    RUN_KEY,
    Abstain,
    Accept,
    AnswerWithWarning,
    Attempt,
    Confidence,
    Contribution,
    Decision,
    Exchange,
    ExchangeId,
    Failure,
    FallbackModel,
    Fingerprint,
    HumanReview,
    Message,
    Passage,
    Prompt,
    Record,
    RetryRetrieval,
    ReviewId,
    Ruling,
    Score,
    SpanScore,
    Status,
    Verdict,
)
from semgrad_guard.telemetry.fields import VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Step

_STEPS = {
    step.action.value: step for step in (Accept, RetryRetrieval, FallbackModel, HumanReview, Abstain, AnswerWithWarning)
}
_WITHHELD: dict[str, Any] = {Abstain.action.value: {"message": ""}}
"""Parameters without a default that `log_text: false` leaves out."""


class RecordFieldsError(SemGradGuardError, ValueError):
    """Logged fields are not those of a record."""

    def __init__(self, why: str) -> None:
        """Keep what is wrong with them."""
        self.why = why
        super().__init__(
            f"not a logged record: {why}; expected a line that the `jsonl` sink of this or an older version wrote"
        )


def record_from_fields(said: Mapping[str, Any]) -> Record:
    """Return the record that was logged.

    Texts that were logged come back; without them questions, prompts and answers are empty, and as many passages as
    there were come back with their retrieval scores. Token ids are never logged.

    Raises:
        RecordFieldsError: a field is missing or has another type.
    """
    version = said.get("version")
    if version != VERSION:
        why = f"`version` is {version!r}, this release reads {VERSION}"
        raise RecordFieldsError(why)
    try:
        return _record(said)
    except KeyError as error:
        why = f"field {error} is missing"
        raise RecordFieldsError(why) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise RecordFieldsError(str(error)) from error


def _record(said: Mapping[str, Any]) -> Record:
    return Record(
        id=ExchangeId(said["id"]),
        at=datetime.fromisoformat(said["at"]),
        status=Status(said["status"]),
        text=said.get("text", ""),
        attempts=tuple(attempt_from_fields(a) for a in said["attempts"]),
        policy=said["policy"],
        seconds=said["seconds"],
        scoring_s=said["scoring_s"],
        review_id=ReviewId(said["review_id"]) if said["review_id"] else None,
        reused=said.get("reused", False),
        failures=tuple(_failure(f) for f in said["failures"]),
        answer_id=ExchangeId(said["answer_id"]) if said["answer_id"] else None,
        follows=ExchangeId(said["follows"]) if said.get("follows") else None,
        ruling=_ruling(said["ruling"], ReviewId(said["review_id"])) if said.get("ruling") else None,
    )


def attempt_from_fields(said: Mapping[str, Any]) -> Attempt:
    """Return the attempt that `attempt_fields` wrote; a `KeyError` or `TypeError` says that it is none."""
    judged_at = said["judged_at"]
    step_failure = said["step_failure"]
    return Attempt(
        exchange=_exchange(said),
        decision=_decision(said),
        failure=_failure(step_failure) if step_failure else None,
        judged_at=datetime.fromisoformat(judged_at) if judged_at else None,
    )


def _exchange(said: Mapping[str, Any]) -> Exchange:
    run = {RUN_KEY: said["run"]} if said["run"] else {}
    return Exchange(
        id=ExchangeId(said["id"]),
        prompt=_prompt(said.get("prompt", "")),
        answer=said.get("answer", ""),
        question=said.get("question"),
        passages=_passages(said),
        tags=frozenset(said["tags"]),
        metadata={**said["metadata"], **run},
        attempt=said["attempt"],
        author=said["author"],
        on_policy=said["on_policy"],
    )


def _prompt(said: str | list[dict[str, str]]) -> Prompt:
    if isinstance(said, str):
        return said
    return tuple(Message(m["role"], m["content"]) for m in said)


def _passages(said: Mapping[str, Any]) -> tuple[Passage, ...]:
    if "passages" in said:
        return tuple(Passage(p["text"], p["source"], p["score"]) for p in said["passages"])
    return tuple(Passage("", score=score) for score in said["passage_scores"])


def _decision(said: Mapping[str, Any]) -> Decision:
    return Decision(
        step=_step(said["action"], said["step"]),
        rule=said["rule"],
        why=said.get("why", ""),
        exchange_id=ExchangeId(said["id"]),
        score=_score(said) if "method" in said else None,
        confidence=_confidence(said),
        failure=_failure(said["failure"]) if said["failure"] else None,
    )


def _step(action: str, said: Mapping[str, Any]) -> Step:
    kind = _STEPS.get(action)
    if kind is None:
        why = f"`action` is {action!r}, known are {', '.join(_STEPS)}"
        raise RecordFieldsError(why)
    return kind(**{**_WITHHELD.get(action, {}), **said})


def _confidence(said: Mapping[str, Any]) -> Confidence:
    return Confidence(
        value=said["confidence"],
        why=said.get("confidence_why", ""),
        profile=said["profile"],
        contributions=tuple(Contribution(c["signal"], c["weight"], c.get("text", "")) for c in said["contributions"]),
        drifted=said["drifted"],
    )


def _score(said: Mapping[str, Any]) -> Score:
    value = said["score"]
    return Score(
        method=said["method"],
        value=math.nan if value is None else value,
        signals=said["signals"],
        fingerprint=Fingerprint(**said["fingerprint"]),
        model=said["scorer"],
        path=said["path"],
        n_prompt_tokens=said["n_prompt_tokens"],
        n_answer_tokens=said["n_answer_tokens"],
        seconds=said["scoring_s"] or 0.0,
        spans=tuple(SpanScore(s["start"], s["end"], s["signals"], s["confidence"]) for s in said["spans"]),
    )


def _ruling(said: Mapping[str, Any], review_id: ReviewId) -> Ruling:
    return Ruling(
        review_id=review_id,
        verdict=Verdict(said["verdict"]),
        text=said.get("text", ""),
        by=said.get("by", ""),
        at=datetime.fromisoformat(said["at"]),
    )


def _failure(said: Mapping[str, Any]) -> Failure:
    return Failure(said["stage"], said["type"], said.get("message", ""))
