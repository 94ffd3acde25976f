"""Record or verdict -> the LangSmith feedback that says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from uuid import UUID, uuid5

from semgrad_guard.flow import Verdict
from semgrad_guard.telemetry.fields import answered_attempt, number, signals_fields
from semgrad_guard.telemetry.runs import RunRef

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Attempt, Exchange, Json, Record, Ruling

CONFIDENCE_KEY = "semgrad_confidence"
VERDICT_KEY = "semgrad_verdict"

_NAMESPACE = UUID("6a5c1c5e-5f0b-5c86-9d5c-7c2f4f3a8b10")
"""Makes feedback ids ours and repeatable: posting a record twice changes nothing."""

_SCORES = {Verdict.APPROVED: 1.0, Verdict.EDITED: 0.0, Verdict.REJECTED: 0.0}
"""Whether the model's own answer was right; nobody said so where a verdict expired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What is said about one traced run."""

    id: UUID
    key: str
    run: RunRef
    score: float | None
    """LangSmith keeps four decimals."""
    comment: str
    value: str | None = None
    correction: Mapping[str, str] | None = None
    details: Mapping[str, Json]
    """Raw numbers, which need not fit into a score."""
    by: Literal["model", "api"]
    """Who says it: a model, or a person through our API call."""
    source_run_id: str | None = None
    """The run that judged."""
    recorded: bool = False
    """True when the exchange itself says that LangSmith records the run."""


def confidence_feedback(record: Record, *, log_text: bool, within: RunRef | None = None) -> list[Feedback]:
    """Return a feedback for each attempt whose run is known.

    Args:
        record: the record.
        log_text: whether the policy's explanation is the comment, or only its rule.
        within: the run that the guard ran in. It is the source of the feedback, completes what the attempts' own runs
            leave open (all are in one trace), and gets the feedback where no attempt names its run.
    """
    named: dict[str, tuple[RunRef, Attempt]] = {}
    for attempt in record.attempts:
        ref = _completed(RunRef.of(attempt.exchange), within)
        if ref is not None and ref.run_id is not None:
            named.setdefault(ref.run_id, (ref, attempt))
    answer = answered_attempt(record)
    if not named and answer is not None and within is not None and within.run_id is not None:
        named[within.run_id] = within, answer
    return [_confidence(ref, attempt, within, log_text=log_text) for ref, attempt in named.values()]


def verdict_feedback(ruling: Ruling, exchange: Exchange, *, log_text: bool) -> Feedback | None:
    """Return what a person's verdict says about the run that wrote the answer.

    The score is 1 where the answer was approved as it was and 0 where it was edited or rejected.

    Returns:
        the feedback; `None` where the run is not known, or nobody decided before the deadline.
    """
    ref = RunRef.of(exchange)
    score = _SCORES.get(ruling.verdict)
    if ref is None or ref.run_id is None or score is None:
        return None
    edited = log_text and ruling.verdict is Verdict.EDITED
    reason = ruling.text if log_text and ruling.verdict is Verdict.REJECTED else ""
    return Feedback(
        id=_id(VERDICT_KEY, ref.run_id, ruling.review_id),
        key=VERDICT_KEY,
        run=ref,
        score=score,
        value=str(ruling.verdict),
        comment=reason,
        correction={"answer": ruling.text} if edited else None,
        by="api",
        details={"review_id": ruling.review_id, "at": ruling.at.isoformat()},
    )


def _completed(ref: RunRef | None, within: RunRef | None) -> RunRef | None:
    """Fill in trace and project from the guard's own run."""
    if ref is None or within is None:
        return ref
    return RunRef(
        run_id=ref.run_id,
        trace_id=ref.trace_id or within.trace_id,
        session_name=ref.session_name or within.session_name,
    )


def _confidence(ref: RunRef, attempt: Attempt, within: RunRef | None, *, log_text: bool) -> Feedback:
    decision, exchange = attempt.decision, attempt.exchange
    own = RunRef.of(exchange)
    details: dict[str, Json] = {
        "action": str(decision.action),
        "rule": decision.rule,
        "attempt": exchange.attempt,
        "profile": decision.confidence.profile,
    }
    if decision.score is not None:
        score = decision.score
        details |= {"method": score.method, "score": number(score.value), "scorer": score.model, "proxy": score.proxy}
        details["signals"] = signals_fields(score.signals)
    return Feedback(
        id=_id(CONFIDENCE_KEY, str(ref.run_id), str(exchange.id)),
        key=CONFIDENCE_KEY,
        run=ref,
        score=number(decision.confidence.value),
        comment=f"{decision.action} by {decision.rule}" + (f": {decision.why}" if log_text and decision.why else ""),
        details={name: value for name, value in details.items() if value is not None},
        by="model",
        source_run_id=within.run_id if within is not None and within.run_id != ref.run_id else None,
        recorded=bool(own and own.session_name),
    )


def _id(*parts: str) -> UUID:
    return uuid5(_NAMESPACE, "\n".join(parts))
