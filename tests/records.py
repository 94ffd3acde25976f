"""Records with every field filled, for the telemetry tests."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from semgrad_guard.flow import (
    Abstain,
    Accept,
    Attempt,
    Confidence,
    Contribution,
    Decision,
    Exchange,
    ExchangeId,
    Failure,
    Fingerprint,
    Message,
    Passage,
    Record,
    RetryRetrieval,
    ReviewId,
    Score,
    SpanScore,
    Status,
)

RUN_ID = "11111111-1111-4111-8111-111111111111"
TRACE_ID = "22222222-2222-4222-8222-222222222222"


def make_score(value: float = 0.25, **changes: Any) -> Score:
    """Score with every field filled."""
    fingerprint = Fingerprint(model="m1", dtype="float32", template="t1", settings="position=-3", proxy=False)
    score = Score(
        method="hybridgrad",
        value=value,
        signals={"hybridgrad": value, "semgrad": 1.5e-7},
        fingerprint=fingerprint,
        model="tiny",
        path="reused",
        n_prompt_tokens=12,
        n_answer_tokens=3,
        seconds=0.125,
        spans=(SpanScore(0, 5, {"semgrad": 2e-7}, 0.5),),
    )
    return replace(score, **changes)


def make_attempt(name: str, confidence: float | None = 0.9, *, text: str = "Paris", **changes: Any) -> Attempt:
    """Attempt number 1 with every text field holding `text`."""
    exchange = Exchange(
        id=ExchangeId(name),
        question=f"question {text}",
        prompt=(Message("system", f"system {text}"), Message("user", f"user {text}")),
        answer=f"answer {text}",
        passages=(Passage(f"passage {text}", source=f"source {text}", score=0.75),),
        tags=frozenset({"medical", "beta"}),
        metadata={
            "note": f"note {text}",
            "tenant": 7,
            "run": {"run_id": RUN_ID, "trace_id": TRACE_ID, "session_name": "p"},
        },
        author="writer",
        prompt_ids=(1, 2),
        answer_ids=(3,),
    )
    decision = Decision(
        step=Accept(),
        rule="accept",
        why=f"0.9 >= 0.7 {text}",
        exchange_id=exchange.id,
        score=make_score(),
        confidence=Confidence(
            value=confidence,
            why=f"why {text}",
            profile="rag",
            contributions=(Contribution("semgrad", -0.5, f"because {text}"),),
        ),
    )
    return replace(Attempt(exchange, decision), **changes)


def make_record(*attempts: Attempt, text: str = "Paris", **changes: Any) -> Record:
    """Record of these attempts; without any, of a retry that ended in a refusal after a failed step."""
    if not attempts:
        first, second = make_attempt("a1", 0.4, text=text), make_attempt("a2", 0.2, text=text)
        attempts = (
            replace(
                first,
                decision=replace(
                    first.decision,
                    step=RetryRetrieval(top_k=8, configurable={"k": text}),
                    rule="escalate[0].retry_retrieval",
                ),
                judged_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            ),
            replace(
                second,
                exchange=replace(second.exchange, attempt=2),
                decision=replace(
                    second.decision,
                    step=Abstain(message=f"message {text}"),
                    rule="on_error",
                    failure=Failure("scoring", "EmptyAnswerError", f"failure {text}"),
                ),
                failure=Failure("human_review", "QueueUnavailableError", f"step {text}"),
            ),
        )
    record = Record(
        id=attempts[0].exchange.id,
        at=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
        status=Status.ABSTAINED,
        text=f"text {text}",
        attempts=attempts,
        policy="policy.yaml sha256:ab",
        seconds=2.5,
        scoring_s=0.25,
        review_id=ReviewId("r1"),
        failures=(Failure("scoring", "EmptyAnswerError", f"failure {text}"),),
    )
    return replace(record, **changes)
