"""A record with everything in it, for the page of trace keys: what is listed there is what the sinks make of it."""

from __future__ import annotations

from datetime import UTC, datetime

from semgrad_guard.flow import (
    RUN_KEY,
    Accept,
    Attempt,
    Confidence,
    Decision,
    Exchange,
    Failure,
    Fingerprint,
    Passage,
    Record,
    Score,
    Status,
)
from semgrad_guard.signals import SIGNALS

AT = datetime(2026, 1, 1, tzinfo=UTC)


def sample_record() -> Record:
    """Return the record of one answer with every signal, and with a failure on the way."""
    exchange = Exchange(
        prompt="Passage. Question?",
        answer="Answer.",
        question="Question?",
        passages=(Passage("Passage."),),
        author="my-model",
        metadata={RUN_KEY: {"run_id": "r", "response_id": "r"}},
    )
    fingerprint = Fingerprint(model="m", dtype="float32", template="t", settings="s", proxy=False)
    score = Score(
        method="hybridgrad",
        value=1.0,
        signals=dict.fromkeys(SIGNALS, 1.0),
        fingerprint=fingerprint,
        model="smollm2-135m",
        path="reused",
        n_prompt_tokens=1,
        n_answer_tokens=1,
        seconds=0.1,
    )
    failure = Failure("scoring", "ScoringError", "")
    decision = Decision(
        step=Accept(),
        rule="accept",
        why="confidence 0.90 >= 0.70",
        exchange_id=exchange.id,
        score=score,
        confidence=Confidence(value=0.9, profile="my-profile", why=""),
        failure=failure,
    )
    return Record(
        id=exchange.id,
        at=AT,
        status=Status.ANSWERED,
        text=exchange.answer,
        attempts=(Attempt(exchange=exchange, decision=decision, judged_at=AT),),
        policy="policy.yaml (0123)",
        seconds=0.2,
        scoring_s=0.1,
        answer_id=exchange.id,
        failures=(failure,),
    )
