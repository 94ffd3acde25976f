"""Record -> the one JSON-able form that every sink takes its fields from.

The top level is flat: `id`, `status`, `action`, `rule`, `confidence`, `score` … say how the question ended and fit
into trace metadata and span attributes as they are (`summary_fields`). Only `attempts` and `failures` are lists, of
such flat mappings again. The reserved `run` of an exchange (see `semgrad_guard.telemetry.runs`) is a field of its
attempt and never part of its `metadata`.

Without `log_text` no free text is left: questions, prompts, passages with their sources, answers, messages,
explanations, error messages and textual metadata are gone. Ids, numbers, tags, rules, actions and names of models,
profiles, signals and error types stay. Token ids, which are the text in another alphabet, are never logged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from semgrad_guard.telemetry.runs import RunRef, user_metadata

if TYPE_CHECKING:
    from semgrad_guard.flow import (
        Attempt,
        Confidence,
        Exchange,
        Failure,
        Json,
        Passage,
        Prompt,
        Record,
        Ruling,
        Score,
        SpanScore,
        Step,
    )

VERSION = 1
"""Number of this form; it grows when a reader of older lines would misread newer ones."""

MAX_DEPTH = 16
"""Levels of nesting kept of a caller's metadata."""

STEP_TEXTS = frozenset({"message", "warning", "configurable"})
"""Parameters of steps that hold text of the policy's author."""


def record_fields(record: Record, *, log_text: bool) -> dict[str, Json]:
    """Return everything a record says, as JSON values.

    Args:
        record: the record.
        log_text: whether texts are kept; see above for what goes without.
    """
    return {
        "version": VERSION,
        **summary_fields(record),
        **(
            {"text": record.text, "why": record.attempts[-1].decision.why if record.attempts else ""}
            if log_text
            else {}
        ),
        "ruling": _ruling(record.ruling, log_text=log_text) if record.ruling else None,
        "failures": [_failure(f, log_text=log_text) for f in record.failures],
        "attempts": [attempt_fields(a, log_text=log_text) for a in record.attempts],
    }


def summary_fields(record: Record) -> dict[str, Json]:
    """Return how a question ended, in flat fields without text.

    `action` and `rule` are those of the last decision; confidence and score are those of the attempt that the caller
    got, or that was held back or handed on.
    """
    answer = answered_attempt(record)
    last = record.attempts[-1].decision if record.attempts else None
    return {
        "id": str(record.id),
        "at": record.at.isoformat(),
        "status": str(record.status),
        "action": str(last.action) if last else None,
        "rule": last.rule if last else None,
        "confidence": number(answer.decision.confidence.value) if answer else None,
        **(_score_summary(answer.decision.score) if answer and answer.decision.score else {}),
        "n_attempts": len(record.attempts),
        "error_type": record.failures[0].type if record.failures else None,
        "policy": record.policy,
        "seconds": number(record.seconds),
        "scoring_s": number(record.scoring_s),
        "review_id": record.review_id,
        "reused": record.reused,
        "answer_id": record.answer_id,
        "follows": record.follows,
        "verdict": str(record.ruling.verdict) if record.ruling else None,
    }


def attempt_fields(attempt: Attempt, *, log_text: bool) -> dict[str, Json]:
    """Return one attempt in flat fields."""
    exchange, decision = attempt.exchange, attempt.decision
    run = RunRef.of(exchange)
    return {
        **_exchange(exchange, log_text=log_text),
        "run": run.fields() if run else None,
        "judged_at": attempt.judged_at.isoformat() if attempt.judged_at else None,
        "action": str(decision.action),
        "rule": decision.rule,
        **({"why": decision.why} if log_text else {}),
        "step": _step(decision.step, log_text=log_text),
        **_confidence(decision.confidence, log_text=log_text),
        **(_score(decision.score) if decision.score else {}),
        "failure": _failure(decision.failure, log_text=log_text) if decision.failure else None,
        "step_failure": _failure(attempt.failure, log_text=log_text) if attempt.failure else None,
    }


def answered_attempt(record: Record) -> Attempt | None:
    """Return the attempt that the caller got, or that was held back or handed on; `None` only where there is none."""
    for attempt in record.attempts:
        if attempt.exchange.id == record.answer_id:
            return attempt
    return max(reversed(record.attempts), key=_confidence_or_less, default=None)


def number(value: float | None) -> float | None:
    """Return a finite number as it is, and `None` for what JSON cannot hold."""
    return float(value) if value is not None and math.isfinite(value) else None


def plain(value: object, depth: int = 0) -> Json:
    """Return anything as JSON values; what JSON cannot hold becomes its text."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return number(value)
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        return {str(k): plain(v, depth + 1) for k, v in value.items()}
    if depth < MAX_DEPTH and isinstance(value, Iterable) and not isinstance(value, bytes):
        return [plain(v, depth + 1) for v in value]
    return str(value)


def _confidence_or_less(attempt: Attempt) -> float:
    value = number(attempt.decision.confidence.value)
    return -1.0 if value is None else value


def _exchange(exchange: Exchange, *, log_text: bool) -> dict[str, Json]:
    said = user_metadata(exchange)
    texts: dict[str, Json] = {
        "question": exchange.question,
        "prompt": _prompt(exchange.prompt),
        "answer": exchange.answer,
        "passages": [_passage(p) for p in exchange.passages],
    }
    return {
        "id": str(exchange.id),
        "attempt": exchange.attempt,
        "author": exchange.author,
        "on_policy": exchange.on_policy,
        "tags": plain(sorted(exchange.tags)),
        "metadata": plain(said if log_text else {k: v for k, v in said.items() if _is_no_text(v)}),
        "n_passages": len(exchange.passages),
        "passage_scores": [number(p.score) for p in exchange.passages],
        **(texts if log_text else {}),
    }


def _is_no_text(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float)


def _prompt(prompt: Prompt) -> Json:
    if isinstance(prompt, str):
        return prompt
    return [{"role": m.role, "content": m.content} for m in prompt]


def _passage(passage: Passage) -> Json:
    return {"text": passage.text, "source": passage.source, "score": number(passage.score)}


def _score_summary(score: Score) -> dict[str, Json]:
    return {"method": score.method, "score": number(score.value), "scorer": score.model, "proxy": score.proxy}


def _score(score: Score) -> dict[str, Json]:
    return {
        **_score_summary(score),
        "signals": signals_fields(score.signals),
        "path": score.path,
        "n_prompt_tokens": score.n_prompt_tokens,
        "n_answer_tokens": score.n_answer_tokens,
        "scoring_s": number(score.seconds),
        "fingerprint": plain(asdict(score.fingerprint)),
        "spans": [_span(s) for s in score.spans],
    }


def signals_fields(signals: Mapping[str, float]) -> dict[str, Json]:
    """Return the finite signals by name."""
    return {name: float(value) for name, value in signals.items() if math.isfinite(value)}


def _span(span: SpanScore) -> Json:
    return {
        "start": span.start,
        "end": span.end,
        "signals": signals_fields(span.signals),
        "confidence": number(span.confidence),
    }


def _confidence(confidence: Confidence, *, log_text: bool) -> dict[str, Json]:
    return {
        "confidence": number(confidence.value),
        **({"confidence_why": confidence.why} if log_text else {}),
        "profile": confidence.profile,
        "drifted": confidence.drifted,
        "contributions": [
            {"signal": c.signal, "weight": number(c.weight), **({"text": c.text} if log_text else {})}
            for c in confidence.contributions
        ],
    }


def _step(step: Step, *, log_text: bool) -> Json:
    names = (f.name for f in fields(step))
    return {name: plain(getattr(step, name)) for name in names if log_text or name not in STEP_TEXTS}


def _ruling(ruling: Ruling, *, log_text: bool) -> Json:
    said: dict[str, Json] = {"verdict": str(ruling.verdict), "at": ruling.at.isoformat()}
    return {**said, **({"by": ruling.by, "text": ruling.text} if log_text else {})}


def _failure(failure: Failure, *, log_text: bool) -> Json:
    return {"stage": failure.stage, "type": failure.type, **({"message": failure.message} if log_text else {})}
