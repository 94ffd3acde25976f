"""Decision, attempt and record as the JSON fields that every telemetry sink takes what it logs from, and back.

The top level of a record is flat: `id`, `status`, `action`, `rule`, `confidence`, `score` … say how the question ended
and fit into trace metadata and span attributes as they are (`summary_fields`). Below are lists: `attempts`, each with
the fields of its exchange and decision and with its whole score, and `failures`. The reserved `run` of an exchange is
a field of its attempt and never part of its `metadata`.

Without `log_text` no text is left that came with the exchange: questions, prompts, passages with their sources,
answers, messages, explanations, error messages, tags, authors and metadata, even their keys, are gone. Ids, numbers,
rules, actions and names of models, profiles, signals and error types stay. Token ids,
which are the text in another alphabet, are never logged.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from semgrad_guard.flow import (
    RUN_KEY,
    STEP_TYPES,
    Attempt,
    Decision,
    ExchangeId,
    Passage,
    Record,
    ReviewId,
    Ruling,
    Status,
    Verdict,
)
from semgrad_guard.suspicious import suspicious_passages
from semgrad_guard.wire.forms import VERSION
from semgrad_guard.wire.values import (
    RunRef,
    WireError,
    check_version,
    confidence_fields,
    confidence_from_fields,
    exchange_fields,
    exchange_from_fields,
    failure_fields,
    failure_from_fields,
    number,
    plain,
    reading,
    score_fields,
    score_from_fields,
    user_metadata,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Exchange, Json, Score, Step

SUMMARY: Mapping[str, str] = {
    "id": "Id of the question: that of its first exchange.",
    "at": "When the outcome was known (UTC).",
    "status": "What the caller got: answered, warned, abstained, pending or reviewed.",
    "action": "What the policy chose last.",
    "rule": "The rule of the policy by which it did.",
    "confidence": "Calibrated probability that the answer is right; none where no profile fits.",
    "method": "The signal that the score is.",
    "score": "Raw uncertainty; higher is less sure.",
    "scorer": "The model that scored.",
    "proxy": "Whether another model wrote the answer.",
    "passages_from": "Where the passages were found.",
    "n_attempts": "Answers that were judged, retries and fallbacks included.",
    "error_type": "Class of the first error on the way, even where the question was answered all the same.",
    "policy": "The policy, and a digest of its content.",
    "seconds": "Time from the first answer to the outcome.",
    "scoring_s": "Time that scoring took, all attempts together.",
    "review_id": "Id of the item in the review queue.",
    "reused": "Whether a person's earlier verdict was given again.",
    "answer_id": "Id of the attempt that the caller got.",
    "follows": "Id of the question that this one continues.",
    "verdict": "What a person decided.",
    "beside_tool_calls": "What was done with text beside requests for tools.",
}
"""What each field of `summary_fields` means."""

_LOGGED = ("version", "id", "attempt", "on_policy", "passages_from")
_LOGGED_TEXTS = ("author", "tags", "question", "prompt", "answer", "passages")
_WITHOUT_TEXTS: Mapping[str, Json] = {"author": None, "tags": []}


class RecordFieldsError(WireError):
    """Logged fields are not those of a record."""

    def __init__(self, why: str) -> None:
        """Keep what is wrong with them."""
        super().__init__("a logged record", why, "a line that the `jsonl` sink of this or an older version wrote")


# --- Record -----------------------------------------------------------------------------------------------------------


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
        "ruling": _ruling_fields(record.ruling, log_text=log_text) if record.ruling else None,
        "failures": [failure_fields(f, log_text=log_text) for f in record.failures],
        "attempts": [attempt_fields(a, log_text=log_text) for a in record.attempts],
    }


def record_from_fields(fields: Mapping[str, Any]) -> Record:
    """Return the record that was logged.

    Texts that were logged come back; without them questions, prompts and answers are empty, and as many passages as
    there were come back with their retrieval scores. Token ids are never logged.

    Raises:
        RecordFieldsError: a field is missing or has another type.
    """
    with reading(RecordFieldsError):
        check_version({"version": None, **fields})
        return Record(
            id=ExchangeId(fields["id"]),
            at=datetime.fromisoformat(fields["at"]),
            status=Status(fields["status"]),
            text=fields.get("text", ""),
            attempts=tuple(attempt_from_fields(a) for a in fields["attempts"]),
            policy=fields["policy"],
            seconds=fields["seconds"],
            scoring_s=fields["scoring_s"],
            review_id=ReviewId(fields["review_id"]) if fields["review_id"] else None,
            reused=fields.get("reused", False),
            failures=tuple(failure_from_fields(f) for f in fields["failures"]),
            answer_id=ExchangeId(fields["answer_id"]) if fields["answer_id"] else None,
            follows=ExchangeId(fields["follows"]) if fields.get("follows") else None,
            ruling=_ruling(fields["ruling"], ReviewId(fields["review_id"])) if fields.get("ruling") else None,
            beside_tool_calls=fields.get("beside_tool_calls"),
        )


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
        "passages_from": answer.exchange.passages_from if answer else None,
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
        **({"beside_tool_calls": record.beside_tool_calls} if record.beside_tool_calls else {}),
    }


def answered_attempt(record: Record) -> Attempt | None:
    """Return the attempt that the caller got, or that was held back or handed on; `None` only where there is none."""
    for attempt in record.attempts:
        if attempt.exchange.id == record.answer_id:
            return attempt
    return max(reversed(record.attempts), key=_confidence_or_less, default=None)


def deciding_error(record: Record) -> str | None:
    """Return the class of the error that decided what the caller got; `None` where the question was answered anyway."""
    last = record.attempts[-1].decision if record.attempts else None
    if last is not None and last.failure is not None:
        return last.failure.type
    worked = record.status in {Status.ANSWERED, Status.REVIEWED}
    return None if worked or not record.failures else record.failures[0].type


def _confidence_or_less(attempt: Attempt) -> float:
    value = number(attempt.decision.confidence.value)
    return -1.0 if value is None else value


def _score_summary(score: Score) -> dict[str, Json]:
    return {"method": score.method, "score": number(score.value), "scorer": score.model, "proxy": score.proxy}


def _ruling_fields(ruling: Ruling, *, log_text: bool) -> Json:
    given: dict[str, Json] = {"verdict": str(ruling.verdict), "at": ruling.at.isoformat()}
    return {**given, **({"by": ruling.by, "text": ruling.text} if log_text else {})}


def _ruling(fields: Mapping[str, Any], review_id: ReviewId) -> Ruling:
    return Ruling(
        review_id=review_id,
        verdict=Verdict(fields["verdict"]),
        text=fields.get("text", ""),
        by=fields.get("by", ""),
        at=datetime.fromisoformat(fields["at"]),
    )


# --- Attempt ----------------------------------------------------------------------------------------------------------


def attempt_fields(attempt: Attempt, *, log_text: bool) -> dict[str, Json]:
    """Return one attempt: the fields of its exchange and of its decision side by side."""
    run = RunRef.of(attempt.exchange)
    return {
        **_logged_exchange(attempt.exchange, log_text=log_text),
        "run": run.fields() if run else None,
        "judged_at": attempt.judged_at.isoformat() if attempt.judged_at else None,
        **decision_fields(attempt.decision, log_text=log_text),
        "step_failure": failure_fields(attempt.failure, log_text=log_text) if attempt.failure else None,
    }


def attempt_from_fields(fields: Mapping[str, Any]) -> Attempt:
    """Return the attempt that `attempt_fields` wrote.

    Raises:
        RecordFieldsError: a field is missing or has another type.
    """
    with reading(RecordFieldsError):
        judged_at, step_failure = fields["judged_at"], fields["step_failure"]
        return Attempt(
            exchange=_exchange_from_log(fields),
            decision=decision_from_fields(fields),
            failure=failure_from_fields(step_failure) if step_failure else None,
            judged_at=datetime.fromisoformat(judged_at) if judged_at else None,
        )


def _logged_exchange(exchange: Exchange, *, log_text: bool) -> dict[str, Json]:
    every = exchange_fields(exchange)
    return {
        **{name: every[name] for name in _LOGGED},
        "metadata": plain(user_metadata(exchange)) if log_text else {},
        "n_passages": len(exchange.passages),
        "passage_scores": [number(p.score) for p in exchange.passages],
        "suspicious_passages": list(suspicious_passages(exchange.passages)),
        **({name: every[name] for name in _LOGGED_TEXTS} if log_text else _WITHOUT_TEXTS),
    }


def _exchange_from_log(fields: Mapping[str, Any]) -> Exchange:
    exchange = exchange_from_fields({**fields, "score": None})
    if run := fields.get("run"):
        exchange = replace(exchange, metadata={**exchange.metadata, RUN_KEY: run})
    if "passages" not in fields:
        exchange = replace(exchange, passages=tuple(Passage("", score=score) for score in fields["passage_scores"]))
    return exchange


# --- Decision ---------------------------------------------------------------------------------------------------------


def decision_fields(decision: Decision, *, log_text: bool = True) -> dict[str, Json]:
    """Return a decision in fields that stand beside those of the answer; texts only with `log_text`."""
    return {
        "action": str(decision.action),
        "rule": decision.rule,
        **({"why": decision.why} if log_text else {}),
        "step": _step_fields(decision.step, log_text=log_text),
        **confidence_fields(decision.confidence, log_text=log_text),
        "score": score_fields(decision.score) if decision.score else None,
        "failure": failure_fields(decision.failure, log_text=log_text) if decision.failure else None,
    }


def decision_from_fields(fields: Mapping[str, Any]) -> Decision:
    """Return the decision that stands in the fields of an attempt.

    Raises:
        RecordFieldsError: a field is missing or has another type.
    """
    with reading(RecordFieldsError):
        score = _score_of_version_1(fields) if "method" in fields else fields.get("score")
        return Decision(
            step=_step(fields["action"], fields["step"]),
            rule=fields["rule"],
            why=fields.get("why", ""),
            exchange_id=ExchangeId(fields["id"]),
            score=score_from_fields(score) if score else None,
            confidence=confidence_from_fields(fields),
            failure=failure_from_fields(fields["failure"]) if fields["failure"] else None,
        )


def _step_fields(step: Step, *, log_text: bool) -> Json:
    fields = (f for f in dataclasses.fields(step) if log_text or not f.metadata.get("authors_text"))
    return {f.name: plain(getattr(step, f.name)) for f in fields}


def _step(action: str, parameters: Mapping[str, Any]) -> Step:
    kind = STEP_TYPES.get(action)
    if kind is None:
        why = f"`action` is {action!r}, known are {', '.join(STEP_TYPES)}"
        raise RecordFieldsError(why)
    left_out = {f.name: "" for f in dataclasses.fields(kind) if f.metadata.get("authors_text") and _is_needed(f)}
    values: dict[str, Any] = {**left_out, **parameters}
    return kind(**values)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _score_of_version_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score of an attempt that version 0.1 logged: it stood in the fields of the attempt, flat."""
    same = ("method", "signals", "fingerprint", "path", "n_prompt_tokens", "n_answer_tokens", "spans")
    return {
        **{name: fields[name] for name in same},
        "value": fields["score"],
        "model": fields["scorer"],
        "seconds": fields["scoring_s"] or 0.0,
    }
