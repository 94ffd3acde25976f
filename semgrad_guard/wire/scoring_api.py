"""What the scoring server and its clients say to each other at `/v1/score`, as pydantic models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from semgrad_guard import errors
from semgrad_guard.errors import ScoringError
from semgrad_guard.flow import ExchangeId, new_exchange_id
from semgrad_guard.wire.forms import (
    VERSION,
    ContributionForm,
    ExchangeForm,
    FingerprintForm,
    FormVersion,
    Frozen,
    MessageForm,
    PassageForm,
    Probability,
    ScoreForm,
)
from semgrad_guard.wire.values import WireError, exchange_from_fields, score_from_fields

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, Score

MAX_EXCHANGES = 256
"""Most exchanges in one call."""


def _passage(value: object) -> object:
    return {"text": value} if isinstance(value, str) else value


class ExchangeToScore(ExchangeForm):
    """A prompt and its answer; texts, or the token ids that the model really read and wrote."""

    id: str | None = None
    """Comes back with the result; by default a fresh one."""
    messages: tuple[MessageForm, ...] | None = None
    """The prompt as chat messages, in place of `prompt`."""
    passages: tuple[Annotated[PassageForm, BeforeValidator(_passage)], ...] = ()
    """What was retrieved for the question: objects, or texts alone."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if self.messages is not None and self.prompt:
            raise PydanticCustomError("prompt", "give `prompt` or `messages`, not both")
        return self

    def to_exchange(self) -> Exchange:
        """Return the exchange.

        Raises:
            WireError: a field has another type than the form allows.
        """
        fields: dict[str, Any] = self.model_dump(mode="json", exclude={"id", "messages"})
        if self.messages is not None:
            fields["prompt"] = [message.model_dump() for message in self.messages]
        exchange = exchange_from_fields({**fields, "id": self.id or new_exchange_id()})
        stated = "stated" if self.passages and self.passages_from is None else self.passages_from
        return replace(exchange, passages_from=stated)


class ScoreRequest(Frozen):
    """Exchanges to score."""

    exchanges: Annotated[tuple[ExchangeToScore, ...], Field(min_length=1, max_length=MAX_EXCHANGES)]
    claims: bool = False
    """Also score every sentence of the answers, which takes one more backward pass for each."""
    timeout_s: Annotated[float | None, Field(ge=0, le=3600)] = None
    """Seconds after which nobody waits any more; the server's own limit may end sooner."""


class DecisionForm(Frozen):
    """What the server's policy would do with the answer."""

    action: str
    rule: str
    why: str


class ClaimForm(Frozen):
    """One sentence of an answer."""

    start: int
    end: int
    text: str
    confidence: Probability = None
    """Calibrated P(this sentence is correct); null where it is not calibrated."""


class ProblemForm(Frozen):
    """Why one exchange has no score, or why a request was refused."""

    type: str
    """Class name of the error."""
    message: str
    details: dict[str, Any] = Field(default_factory=dict[str, Any])
    """The error's data, by name."""


class ScoreResult(Frozen):
    """What is known of one exchange."""

    id: str
    score: ScoreForm | None = None
    confidence: Probability = None
    """Calibrated P(the answer is correct); null where it is not calibrated."""
    confidence_why: str = ""
    profile: str | None = None
    drifted: bool = False
    label_free: bool = False
    contributions: tuple[ContributionForm, ...] = ()
    decision: DecisionForm | None = None
    """Null where the server has no policy."""
    claims: tuple[ClaimForm, ...] | None = None
    """Null unless they were asked for."""
    error: ProblemForm | None = None
    """Null where there is a score."""

    @property
    def exchange_id(self) -> ExchangeId:
        """The id of the exchange."""
        return ExchangeId(self.id)


class ScoreReply(Frozen):
    """The results, in the order of the exchanges."""

    version: FormVersion = VERSION
    model: str
    """Readable name of the scoring model."""
    fingerprint: FingerprintForm
    """What the scores depend on apart from the exchanges, for answers of the scoring model itself."""
    results: tuple[ScoreResult, ...]


class ServedModel(Frozen):
    """One entry of `/v1/models`."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str
    role: str
    """`writer`: asked for answers; `scorer`: scores them; `upstream`: a server behind this one writes."""
    fingerprint: FingerprintForm | None = None
    """Of a model that scores."""
    fingerprint_by_claim: FingerprintForm | None = None
    """The same where every sentence is scored too."""


class ModelList(Frozen):
    """The models of a server."""

    object: str = "list"
    data: tuple[ServedModel, ...]


_REBUILT = {
    kind.__name__: kind
    for kind in (
        errors.EmptyAnswerError,
        errors.EmptyPromptError,
        errors.PositionOutsidePromptError,
        errors.ContextTooLongError,
        errors.ForeignTokensError,
        errors.NonFiniteScoreError,
        errors.GradientsUnavailableError,
        errors.ModelFailedError,
        errors.OutOfMemoryError,
        errors.ScoringEndedError,
    )
}
"""Errors that come back as what they were at the server."""


def error_of(problem: ProblemForm | None) -> ScoringError:
    """Return the error of one exchange, as the type that it had at the server."""
    if problem is None:
        return ScoringError("the server sent neither a score nor an error: use the same version on both sides")
    known = _REBUILT.get(problem.type)
    try:
        return ScoringError(problem.message) if known is None else known(**problem.details)
    except TypeError:
        return ScoringError(problem.message)


def served_findings(response: object, *, choice: int = 0) -> Mapping[str, Any] | None:
    """Return what a completion says of its answer under `semgrad`; `None` where no scoring server made it.

    Args:
        response: a response, or a piece of a stream: a mapping, or an object of OpenAI's client.
        choice: number of the answer, where there are several.
    """
    choices: Any = _field(response, "choices")
    own = _field(choices[choice], "semgrad") if isinstance(choices, list) and choice < len(choices) else None
    found: Any = own or _field(response, "semgrad")
    return found if isinstance(found, Mapping) else None


def served_score(response: object) -> Score | None:
    """Return the score that came along with a completion; `None` where there is none, or none was asked for.

    Example:
        >>> exchange = Exchange(prompt=prompt, answer=text, score=served_score(response))  # doctest: +SKIP
    """
    scored = (served_findings(response) or {}).get("scored")
    try:
        return score_from_fields(scored) if scored else None
    except WireError:
        return None


def _field(value: object, name: str) -> object:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
