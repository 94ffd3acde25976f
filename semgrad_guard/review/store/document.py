"""What people read of an exchange, as it is stored with an item."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field, JsonValue

from semgrad_guard.flow import Attempt
from semgrad_guard.texts import one_form
from semgrad_guard.wire import (
    ContributionForm,
    ExchangeForm,
    FailureForm,
    Frozen,
    confidence_fields,
    exchange_fields,
    exchange_from_fields,
    failure_fields,
    number,
    plain,
)

if TYPE_CHECKING:
    from semgrad_guard.flow import Decision, Exchange, Json

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


def passages_key(texts: Iterable[str]) -> str:
    """Return a digest that is equal for the same passages, in whatever order they were found."""
    return hashlib.sha256(json.dumps(sorted(storable(text) for text in texts)).encode()).hexdigest()


def plain_question(question: str) -> str:
    """Return the question in one case, spacing and Unicode form."""
    return _SPACE.sub(" ", one_form(storable(question)).casefold()).strip()


def reveal(text: str) -> str:
    """Return the text with unseen characters written out, so that what is read is what is there."""
    return UNSEEN.sub(lambda found: unseen_name(found[0]), text)


def unseen_name(character: str) -> str:
    """Return how an unseen character is written out, for example `⟨U+202E⟩`."""
    return f"⟨U+{ord(character):04X}⟩"


class EarlierAttempt(Frozen):
    """One attempt before the answer under review."""

    answer: str
    author: str | None = None
    n_passages: int = 0
    confidence: float | None = None
    rule: str
    why: str
    failure: FailureForm | None = None


class Document(ExchangeForm):
    """Everything about one answer that a reviewer may need, and that the flow needs again afterwards."""

    exchange_id: str = Field(min_length=1, max_length=200)
    confidence: float | None = Field(default=None, ge=0, le=1)
    confidence_why: str = ""
    profile: str | None = None
    contributions: tuple[ContributionForm, ...] = ()
    drifted: bool = False
    label_free: bool = False
    rule: str = ""
    why: str = ""
    failure: FailureForm | None = None
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
    earlier = [_earlier(a) for a in attempts if a.exchange.id != exchange.id] if isinstance(attempts, Sequence) else []
    trace = exchange.metadata.get("trace_url")
    fields: dict[str, Json] = {
        **exchange_fields(replace(exchange, score=decision.score or exchange.score)),
        **confidence_fields(decision.confidence),
        "exchange_id": exchange.id,
        "rule": decision.rule,
        "why": decision.why,
        "failure": failure_fields(decision.failure) if decision.failure else None,
        "earlier": [*earlier],
        "extra": plain(attempts) if isinstance(attempts, Mapping) else {},
        "trace_url": trace if isinstance(trace, str) else None,
    }
    del fields["id"]
    return Document.model_validate(storable_json(fields))


def storable_document(document: Document) -> Document:
    """Return the document with every text in it storable; one that is so already is returned as it is."""
    try:
        document.model_dump_json()
    except ValueError:  # half of a surrogate pair
        is_storable = False
    else:
        is_storable = storable(document.exchange_id) == document.exchange_id
    return document if is_storable else Document.model_validate(storable_json(document.model_dump()))


def exchange_of(document: Document) -> Exchange:
    """Return the exchange that a document was made from, with its score where there was one."""
    fields = document.model_dump(include=set(ExchangeForm.model_fields))
    return exchange_from_fields({**fields, "id": document.exchange_id})


def _earlier(attempt: Attempt) -> dict[str, Json]:
    exchange, decision = attempt.exchange, attempt.decision
    return {
        "answer": exchange.answer,
        "author": exchange.author,
        "n_passages": len(exchange.passages),
        "confidence": number(decision.confidence.value),
        "rule": decision.rule,
        "why": decision.why,
        "failure": failure_fields(attempt.failure) if attempt.failure else None,
    }


def storable_json(value: Json) -> Json:
    """Return JSON values with every text in them storable."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(key): storable_json(each) for key, each in value.items()}
    return [storable_json(each) for each in value] if isinstance(value, list | tuple) else value
