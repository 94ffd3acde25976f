"""What people read of an exchange, as it is stored with an item."""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from semgrad_guard.flow import Attempt, Exchange, ExchangeId, Fingerprint, Message, Passage, Score, ScorePath, SpanScore

if TYPE_CHECKING:
    from semgrad_guard.flow import Decision, Prompt

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_SPACE = re.compile(r"\s+")
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Characters that change how a text looks without being seen: controls, zero-width, direction overrides, tags."""


def storable(text: str) -> str:
    """Return the text with every character that UTF-8 or PostgreSQL can't hold replaced by U+FFFD, one for one."""
    return _UNSTORABLE.sub("�", text)


def shorten(text: str, limit: int) -> str:
    """Return the text on one line, at most `limit` characters long."""
    line = _SPACE.sub(" ", storable(text[: limit * 4])).strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"


def question_key(question: str) -> str:
    """Return a digest that is equal for questions that differ only in case, spacing or Unicode form."""
    return hashlib.sha256(plain_question(question).encode()).hexdigest()


def plain_question(question: str) -> str:
    """Return the question in one case, spacing and Unicode form."""
    return _SPACE.sub(" ", unicodedata.normalize("NFKC", storable(question)).casefold()).strip()


def reveal(text: str) -> str:
    """Return the text with unseen characters written out, so that what is read is what is there."""
    return UNSEEN.sub(lambda found: unseen_name(found[0]), text)


def unseen_name(character: str) -> str:
    """Return how an unseen character is written out, for example `⟨U+202E⟩`."""
    return f"⟨U+{ord(character):04X}⟩"


class _Part(BaseModel):
    """A frozen part of a document; unknown keys are an error, so a misspelt import is noticed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MessagePart(_Part):
    """One chat message of the prompt."""

    role: str
    content: str


class PassagePart(_Part):
    """One retrieved passage."""

    text: str
    source: str | None = None
    score: float | None = None


class SpanPart(_Part):
    """Confidence of one part of the answer."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    signals: dict[str, float | None] = Field(default_factory=dict)
    confidence: float | None = Field(default=None, ge=0, le=1)


class FingerprintPart(_Part):
    """What the score depended on."""

    model: str
    dtype: str
    template: str
    settings: str
    proxy: bool = False


class ScorePart(_Part):
    """The raw score; higher is less sure."""

    method: str
    value: float | None
    signals: dict[str, float | None] = Field(default_factory=dict)
    fingerprint: FingerprintPart
    model: str
    path: ScorePath = "cold"
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    seconds: float = 0.0
    spans: tuple[SpanPart, ...] = ()


class ContributionPart(_Part):
    """How much one signal moved the confidence; below 0 lowers it."""

    signal: str
    weight: float
    text: str


class FailurePart(_Part):
    """What failed in the guard, when that is why the item is here."""

    stage: str
    type: str
    message: str


class EarlierAttempt(_Part):
    """One attempt before the answer under review."""

    answer: str
    author: str | None = None
    n_passages: int = 0
    confidence: float | None = None
    rule: str
    why: str
    failure: FailurePart | None = None


class Document(_Part):
    """Everything about one answer that a reviewer may need, and that the flow needs again afterwards."""

    exchange_id: str = Field(min_length=1, max_length=200)
    question: str | None = None
    prompt: str | tuple[MessagePart, ...] = ""
    answer: str = ""
    passages: tuple[PassagePart, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    attempt: int = 1
    prompt_ids: tuple[int, ...] | None = None
    answer_ids: tuple[int, ...] | None = None
    author: str | None = None
    on_policy: bool = False
    score: ScorePart | None = None
    confidence: float | None = Field(default=None, ge=0, le=1)
    confidence_why: str = ""
    profile: str | None = None
    contributions: tuple[ContributionPart, ...] = ()
    drifted: bool = False
    rule: str = ""
    why: str = ""
    failure: FailurePart | None = None
    earlier: tuple[EarlierAttempt, ...] = ()
    extra: dict[str, JsonValue] = Field(default_factory=dict)
    """Whatever else the submitter handed over about the attempts."""
    trace_url: str | None = None
    """Link to the trace of the run that wrote the answer."""

    @property
    def title(self) -> str:
        """The question, or else the end of what the model read."""
        if self.question:
            return self.question
        return self.prompt if isinstance(self.prompt, str) else next((m.content for m in reversed(self.prompt)), "")


AttemptsLike = Sequence[Attempt] | Mapping[str, object]
"""Earlier attempts as flow values, or any JSON-like mapping about them."""


def document_of(exchange: Exchange, decision: Decision, attempts: AttemptsLike | None = None) -> Document:
    """Return the document of an answer handed to a person.

    Args:
        exchange: the answer under review.
        decision: why it needs a person.
        attempts: the attempts before it; the exchange itself is left out if it is among them.
    """
    earlier = (
        tuple(_earlier(a) for a in attempts if a.exchange.id != exchange.id) if isinstance(attempts, Sequence) else ()
    )
    trace = exchange.metadata.get("trace_url")
    confidence = decision.confidence
    fields: dict[str, object] = {
        **asdict(exchange),
        "exchange_id": exchange.id,
        "tags": sorted(exchange.tags),
        "score": _score_fields(decision.score or exchange.score),
        "confidence": confidence.value,
        "confidence_why": confidence.why,
        "profile": confidence.profile,
        "contributions": [asdict(c) for c in confidence.contributions],
        "drifted": confidence.drifted,
        "rule": decision.rule,
        "why": decision.why,
        "failure": asdict(decision.failure) if decision.failure else None,
        "earlier": earlier,
        "extra": dict(attempts) if isinstance(attempts, Mapping) else {},
        "trace_url": trace if isinstance(trace, str) else None,
    }
    del fields["id"]
    return Document.model_validate(_plain(fields))


def exchange_of(document: Document) -> Exchange:
    """Return the exchange that a document was made from, with its score where there was one."""
    prompt: Prompt = (
        document.prompt
        if isinstance(document.prompt, str)
        else tuple(Message(m.role, m.content) for m in document.prompt)
    )
    return Exchange(
        id=ExchangeId(document.exchange_id),
        prompt=prompt,
        answer=document.answer,
        question=document.question,
        passages=tuple(Passage(p.text, p.source, p.score) for p in document.passages),
        tags=frozenset(document.tags),
        metadata=document.metadata,
        attempt=document.attempt,
        prompt_ids=document.prompt_ids,
        answer_ids=document.answer_ids,
        author=document.author,
        on_policy=document.on_policy,
        score=_score_of(document.score),
    )


def _earlier(attempt: Attempt) -> dict[str, object]:
    exchange, decision = attempt.exchange, attempt.decision
    return {
        "answer": exchange.answer,
        "author": exchange.author,
        "n_passages": len(exchange.passages),
        "confidence": decision.confidence.value,
        "rule": decision.rule,
        "why": decision.why,
        "failure": asdict(attempt.failure) if attempt.failure else None,
    }


def _score_fields(score: Score | None) -> dict[str, object] | None:
    return asdict(score) if score is not None else None


def _score_of(part: ScorePart | None) -> Score | None:
    if part is None:
        return None
    spans = tuple(SpanScore(s.start, s.end, _finite(s.signals), s.confidence) for s in part.spans)
    return Score(
        method=part.method,
        value=math.nan if part.value is None else part.value,
        signals=_finite(part.signals),
        fingerprint=Fingerprint(**part.fingerprint.model_dump()),
        model=part.model,
        path=part.path,
        n_prompt_tokens=part.n_prompt_tokens,
        n_answer_tokens=part.n_answer_tokens,
        seconds=part.seconds,
        spans=spans,
    )


def _finite(signals: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in signals.items() if value is not None}


def _plain(value: object) -> JsonValue:
    """Return the value as JSON can hold it: texts storable, NaN as null, anything unknown as its text."""
    if isinstance(value, str):
        return storable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {storable(str(key)): _plain(each) for key, each in cast("Mapping[object, object]", value).items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in cast("Sequence[object]", value)]
    return storable(str(value))
