"""Conditions: when a step is tried, and which exchanges an override applies to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Self, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from semgrad_guard.policy.fields import Frozen, Probability, Words, one_or_many, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Exchange, SpanScore

Scalar = str | int | float | bool | None
"""A value to compare exchange metadata with."""


def _scalars(value: object) -> object:
    """Return metadata conditions as lists of allowed values."""
    if not isinstance(value, dict):
        return value
    allowed = {key: tuple(cast("list[object]", one_or_many(v))) for key, v in cast("dict[str, object]", value).items()}
    for key, values in allowed.items():
        if not values or not all(v is None or isinstance(v, str | int | float) for v in values):
            raise PydanticCustomError(
                "metadata",
                "must be text, a number, true, false, null, or a list of such values to choose from",
                {"path": (key,)},
            )
    return allowed


Metadata = Annotated[
    dict[str, tuple[Scalar, ...]],
    BeforeValidator(_scalars, json_schema_input_type=dict[str, Scalar | list[Scalar]]),
    AfterValidator(refuse),
]
"""Metadata key -> allowed values; a single value needs no list."""

AttemptNumber = Annotated[int, Field(ge=1)]
AttemptNumbers = Annotated[
    tuple[AttemptNumber, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(one_or_many, json_schema_input_type=AttemptNumber | list[AttemptNumber]),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """The state that a step's conditions are checked against: the best attempt so far and the number of attempts."""

    exchange: Exchange
    """The present attempt."""
    confidence: float
    """Highest confidence of all attempts so far, in [0, 1]."""
    spans: tuple[SpanScore, ...] = ()
    """Sentences of the attempt with the highest confidence."""
    n_attempts: int = 1
    """Attempts so far, including the present one."""
    is_suspicious: bool = False
    """True when a passage of the present attempt gives orders to the model."""


class Match(Frozen):
    """Conditions on an exchange; all that are given must hold."""

    tags: Words | None = None
    """The exchange has at least one of these tags."""
    metadata: Metadata | None = None
    """The exchange's metadata has each of these keys with one of the given values."""

    def fits(self, exchange: Exchange) -> bool:
        """Return whether an exchange meets the conditions."""
        return _tagged(self.tags, exchange) and _has_metadata(self.metadata, exchange)


class Selector(Match):
    """The exchanges that an override applies to."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tags is None and self.metadata is None:
            raise PydanticCustomError(
                "match", "must name `tags` or `metadata`: settings for every answer belong at the top of the file"
            )
        return self


class When(Match):
    """When a step is tried: all conditions given must hold; without any, always."""

    below: Probability | None = None
    """The confidence of the best attempt so far is below this."""
    above: Probability | None = None
    """The confidence of the best attempt so far is at least this, so `below: x` and `above: x` leave no gap."""
    attempt: AttemptNumbers | None = None
    """Number of the present attempt: 1 is the first answer; a list allows several."""
    any_sentence_below: Probability | None = None
    """A sentence of the best attempt has a confidence below this; needs `scorer.granularity: sentence`."""

    suspicious_passages: bool | None = None
    """Whether a passage of the present attempt gives orders to the model."""

    @model_validator(mode="after")
    def _can_hold(self) -> Self:
        if self.below is not None and self.above is not None and self.above >= self.below:
            raise PydanticCustomError(
                "when",
                "`above: {above}` and `below: {below}` never hold together: `above` must be the smaller number",
                {"above": self.above, "below": self.below},
            )
        return self

    def holds(self, context: StepContext) -> bool:
        """Return whether a step with this condition is tried now."""
        return (
            self.fits(context.exchange)
            and (self.below is None or context.confidence < self.below)
            and (self.above is None or context.confidence >= self.above)
            and (self.attempt is None or context.n_attempts in self.attempt)
            and self.suspicious_passages in {None, context.is_suspicious}
            and (self.any_sentence_below is None or _any_below(self.any_sentence_below, context.spans))
        )


ALWAYS = When()


def _tagged(tags: frozenset[str] | None, exchange: Exchange) -> bool:
    return tags is None or not tags.isdisjoint(exchange.tags)


def _has_metadata(conditions: Mapping[str, tuple[Scalar, ...]] | None, exchange: Exchange) -> bool:
    if conditions is None:
        return True
    return all(
        key in exchange.metadata and any(_same(exchange.metadata[key], value) for value in values)
        for key, values in conditions.items()
    )


def _same(actual: object, expected: Scalar) -> bool:
    """Compare values as people read them: 1 equals 1.0 but not `true`."""
    return isinstance(actual, bool) == isinstance(expected, bool) and actual == expected


def _any_below(limit: float, spans: tuple[SpanScore, ...]) -> bool:
    """Return whether a sentence is below the limit; a confidence of NaN counts as below."""
    return any(span.confidence is not None and not span.confidence >= limit for span in spans)
