"""Exchange, score, confidence and failure as JSON values, and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args
from uuid import UUID

from pydantic import ValidationError

from semgrad_guard.errors import SemGradGuardError
from semgrad_guard.flow import (
    RUN_KEY,
    Confidence,
    Contribution,
    Exchange,
    ExchangeId,
    Failure,
    Fingerprint,
    Message,
    Passage,
    PassagesFrom,
    Score,
    SpanScore,
)
from semgrad_guard.wire.forms import VERSION, ScoreForm

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from semgrad_guard.flow import Json, Prompt

MAX_DEPTH = 16
"""Levels of nesting kept of a caller's metadata."""


# --- JSON values ------------------------------------------------------------------------------------------------------


class WireError(SemGradGuardError, ValueError):
    """JSON values are not those of the form that was expected."""

    def __init__(self, what: str, why: str, origin: str = "what this or an older version wrote") -> None:
        """Keep what is wrong with them.

        Args:
            what: the form that was expected.
            why: what is wrong.
            origin: where such a form comes from.
        """
        self.why = why
        super().__init__(f"not {what}: {why}; expected {origin}")


@contextmanager
def reading(error: Callable[[str], WireError]) -> Generator[None]:
    """Turn whatever is wrong with the fields that are read into one error, made from the reason."""
    try:
        yield
    except WireError as inner:
        raise error(inner.why) from inner
    except KeyError as missing:
        why = f"field {missing} is missing"
        raise error(why) from missing
    except (TypeError, ValueError, AttributeError) as wrong:
        raise error(str(wrong)) from wrong


def check_version(fields: Mapping[str, Any]) -> None:
    """Refuse a form that a newer version wrote.

    Raises:
        WireError: it has another number than this version reads.
    """
    version = fields.get("version", 1)
    if version not in range(1, VERSION + 1):
        raise WireError("a known form", f"`version` is {version!r}, this release reads 1 to {VERSION}")


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


# --- the run that wrote an answer -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """Ids of the traced run that wrote an answer.

    An adapter that knows the run puts them under the reserved key `run` of `Exchange.metadata`, as `fields` gives them.
    """

    run_id: str | None = None
    """LangSmith run of the model call, a UUID."""
    trace_id: str | None = None
    """Root run of its trace, a UUID."""
    session_name: str | None = None
    """LangSmith project of the trace.

    Naming it says that LangSmith records the run, so feedback is posted on it even where tracing is not switched on for
    the whole process. An adapter that does not know leaves it out.
    """
    traceparent: str | None = None
    """W3C trace context of the model call's OpenTelemetry span."""
    response_id: str | None = None
    """The provider's id of the completion."""

    @classmethod
    def of(cls, exchange: Exchange) -> RunRef | None:
        """Return the run that an exchange names; `None` where it names none that can be used."""
        named = exchange.metadata.get(RUN_KEY)
        if not isinstance(named, Mapping):
            return None
        known = {name: _text(named.get(name)) for name in cls.__dataclass_fields__}
        known["run_id"], known["trace_id"] = _uuid(known["run_id"]), _uuid(known["trace_id"])
        ref = cls(**known)
        return ref if ref != cls() else None

    def fields(self) -> dict[str, Json]:
        """Return the known ids: the value of `RUN_KEY`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def user_metadata(exchange: Exchange) -> dict[str, Json]:
    """Return the caller's own metadata, without the reserved key."""
    return {key: value for key, value in exchange.metadata.items() if key != RUN_KEY}


def _text(value: object) -> str | None:
    return str(value) if isinstance(value, str | UUID) and str(value) else None


def _uuid(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return str(UUID(value))
    except ValueError:
        return None


# --- Exchange ---------------------------------------------------------------------------------------------------------


def exchange_fields(exchange: Exchange) -> dict[str, Json]:
    """Return an exchange as JSON values, with its token ids and its score."""
    return {
        "version": VERSION,
        "id": str(exchange.id),
        "question": exchange.question,
        "prompt": _prompt_fields(exchange.prompt),
        "answer": exchange.answer,
        "passages": [{"text": p.text, "source": p.source, "score": number(p.score)} for p in exchange.passages],
        "passages_from": exchange.passages_from,
        "tags": plain(sorted(exchange.tags)),
        "metadata": plain(exchange.metadata),
        "attempt": exchange.attempt,
        "prompt_ids": plain(exchange.prompt_ids),
        "answer_ids": plain(exchange.answer_ids),
        "author": exchange.author,
        "on_policy": exchange.on_policy,
        "score": score_fields(exchange.score) if exchange.score else None,
    }


def exchange_from_fields(fields: Mapping[str, Any]) -> Exchange:
    """Return the exchange that `exchange_fields` wrote.

    Raises:
        WireError: a field is missing or has another type, or a newer version wrote it.
    """
    with reading(lambda why: WireError("an exchange", why)):
        check_version(fields)
        score = fields.get("score")
        prompt_ids, answer_ids = fields.get("prompt_ids"), fields.get("answer_ids")
        return Exchange(
            id=ExchangeId(fields["id"]),
            prompt=_prompt_from(fields.get("prompt", "")),
            answer=fields.get("answer", ""),
            question=fields.get("question"),
            passages=tuple(Passage(p["text"], p.get("source"), p.get("score")) for p in fields.get("passages", ())),
            passages_from=_passages_from(fields.get("passages_from")),
            tags=frozenset(fields["tags"]),
            metadata=dict(fields["metadata"]),
            attempt=fields["attempt"],
            prompt_ids=None if prompt_ids is None else tuple(prompt_ids),
            answer_ids=None if answer_ids is None else tuple(answer_ids),
            author=fields["author"],
            on_policy=fields["on_policy"],
            score=None if score is None else score_from_fields(score),
        )


def _passages_from(value: object) -> PassagesFrom | None:
    known: tuple[PassagesFrom, ...] = get_args(PassagesFrom)
    if value is None or value in known:
        return next((one for one in known if one == value), None)
    why = f"`passages_from` is {value!r}, known are {', '.join(known)}"
    raise WireError("an exchange", why)


def _prompt_fields(prompt: Prompt) -> Json:
    return prompt if isinstance(prompt, str) else [{"role": m.role, "content": m.content} for m in prompt]


def _prompt_from(fields: str | Iterable[Mapping[str, str]]) -> Prompt:
    return fields if isinstance(fields, str) else tuple(Message(m["role"], m["content"]) for m in fields)


# --- Score ------------------------------------------------------------------------------------------------------------


def score_fields(score: Score) -> dict[str, Json]:
    """Return a score as JSON values; signals that are no finite numbers are left out."""
    return {
        "version": VERSION,
        "method": score.method,
        "value": number(score.value),
        "signals": signals_fields(score.signals),
        "fingerprint": plain(asdict(score.fingerprint)),
        "model": score.model,
        "path": score.path,
        "n_prompt_tokens": score.n_prompt_tokens,
        "n_answer_tokens": score.n_answer_tokens,
        "seconds": number(score.seconds) or 0.0,
        "spans": [
            {
                "start": span.start,
                "end": span.end,
                "signals": signals_fields(span.signals),
                "confidence": number(span.confidence),
            }
            for span in score.spans
        ],
        "passage_attention": [number(share) for share in score.passage_attention],
        "passage_gradients": [number(share) for share in score.passage_gradients],
        "read_for": score.read_for,
        "vectors": _vectors_fields(score.vectors),
    }


def _vectors_fields(vectors: Mapping[str, Sequence[float]]) -> dict[str, Json]:
    """Return vectors with as many digits as a probe can use."""
    return {name: [float(f"{value:.5g}") for value in vector] for name, vector in vectors.items()}


def score_from_fields(fields: object) -> Score:
    """Return the score that `score_fields` wrote; a value that was no finite number comes back as NaN.

    Raises:
        WireError: it is no score, or a newer version wrote it.
    """
    try:
        form = ScoreForm.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "score"
        raise WireError("a score", f"`{place}`: {first['msg']}") from error
    return Score(
        method=form.method,
        value=math.nan if form.value is None else form.value,
        signals=_finite(form.signals),
        fingerprint=Fingerprint(**form.fingerprint.model_dump()),
        model=form.model,
        path=form.path,
        n_prompt_tokens=form.n_prompt_tokens,
        n_answer_tokens=form.n_answer_tokens,
        seconds=form.seconds,
        spans=tuple(SpanScore(s.start, s.end, _finite(s.signals), s.confidence) for s in form.spans),
        passage_attention=form.passage_attention,
        passage_gradients=form.passage_gradients,
        read_for=form.read_for,
        vectors=form.vectors,
    )


def signals_fields(signals: Mapping[str, float]) -> dict[str, Json]:
    """Return the finite signals by name."""
    return {name: float(value) for name, value in signals.items() if math.isfinite(value)}


def _finite(signals: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in signals.items() if value is not None}


# --- Confidence and Failure -------------------------------------------------------------------------------------------


def confidence_fields(confidence: Confidence, *, log_text: bool = True) -> dict[str, Json]:
    """Return a confidence in fields that stand beside those of the answer; its words only with `log_text`."""
    return {
        "confidence": number(confidence.value),
        **({"confidence_why": confidence.why} if log_text else {}),
        "profile": confidence.profile,
        "drifted": confidence.drifted,
        "label_free": confidence.label_free,
        "contributions": [
            {"signal": c.signal, "weight": number(c.weight), **({"text": c.text} if log_text else {})}
            for c in confidence.contributions
        ],
    }


def confidence_from_fields(fields: Mapping[str, Any]) -> Confidence:
    """Return the confidence that `confidence_fields` wrote.

    Raises:
        WireError: a field is missing or has another type.
    """
    with reading(lambda why: WireError("a confidence", why)):
        return Confidence(
            value=fields["confidence"],
            why=fields.get("confidence_why", ""),
            profile=fields["profile"],
            contributions=tuple(
                Contribution(c["signal"], math.nan if c["weight"] is None else c["weight"], c.get("text", ""))
                for c in fields["contributions"]
            ),
            drifted=fields["drifted"],
            label_free=fields.get("label_free", False),
        )


def failure_fields(failure: Failure, *, log_text: bool = True) -> dict[str, Json]:
    """Return a failure as JSON values; its message only with `log_text`."""
    return {"stage": failure.stage, "type": failure.type, **({"message": failure.message} if log_text else {})}


def failure_from_fields(fields: Mapping[str, Any]) -> Failure:
    """Return the failure that `failure_fields` wrote.

    Raises:
        WireError: a field is missing or has another type.
    """
    with reading(lambda why: WireError("a failure", why)):
        return Failure(fields["stage"], fields["type"], fields.get("message", ""))
