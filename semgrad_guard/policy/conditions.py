"""When a step is tried, and which exchanges an override is for."""

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
"""A value that exchange metadata is compared with."""


def _scalars(value: object) -> object:
    """Return metadata conditions as lists of allowed values."""
    if not isinstance(value, dict):
        return value
    wanted = {key: tuple(cast("list[object]", one_or_many(v))) for key, v in cast("dict[str, object]", value).items()}
    for key, values in wanted.items():
        if not values or not all(v is None or isinstance(v, str | int | float) for v in values):
            raise PydanticCustomError(
                "metadata",
                "must be text, a number, true, false, null, or a list of such values to choose from",
                {"path": (key,)},
            )
    return wanted


Metadata = Annotated[
    dict[str, tuple[Scalar, ...]],
    BeforeValidator(_scalars, json_schema_input_type=dict[str, Scalar | list[Scalar]]),
    AfterValidator(refuse),
]
"""Metadata key -> the values that fit; one value may be written alone."""

AttemptNumber = Annotated[int, Field(ge=1)]
AttemptNumbers = Annotated[
    tuple[AttemptNumber, ...],
    Field(strict=False, min_length=1),
    BeforeValidator(one_or_many, json_schema_input_type=AttemptNumber | list[AttemptNumber]),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What the conditions of a step are checked against: the best attempt so far, and how many there were."""

    exchange: Exchange
    """The present attempt."""
    confidence: float
    """The highest of all attempts so far, in [0, 1]."""
    spans: tuple[SpanScore, ...] = ()
    """Sentences of the attempt that has it."""
    n_attempts: int = 1
    """Attempts so far, the present one included."""


class Match(Frozen):
    """Which exchanges are meant; every condition given must hold."""

    tags: Words | None = None
    """The exchange carries at least one of these tags."""
    metadata: Metadata | None = None
    """The exchange's metadata has each of these keys with (one of) the given values."""

    def fits(self, exchange: Exchange) -> bool:
        """Return whether an exchange is meant."""
        return _tagged(self.tags, exchange) and _has_metadata(self.metadata, exchange)


class Selector(Match):
    """Which exchanges an override is for."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.tags is None and self.metadata is None:
            raise PydanticCustomError(
                "match", "must name `tags` or `metadata`: what is meant for every answer belongs to the top of the file"
            )
        return self


class When(Match):
    """When a step is tried; every condition given must hold, none means always."""

    below: Probability | None = None
    """Confidence (best attempt so far) is under this."""
    above: Probability | None = None
    """Confidence (best attempt so far) is at least this, so `below: x` and `above: x` leave no gap."""
    attempt: AttemptNumbers | None = None
    """Number of the present attempt: 1 is the first answer; a list names several."""
    any_sentence_below: Probability | None = None
    """Some sentence of the best attempt has a confidence under this; needs `scorer.granularity: sentence`."""

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
            and (self.any_sentence_below is None or _any_below(self.any_sentence_below, context.spans))
        )


ALWAYS = When()


def _tagged(wanted: frozenset[str] | None, exchange: Exchange) -> bool:
    return wanted is None or not wanted.isdisjoint(exchange.tags)


def _has_metadata(wanted: Mapping[str, tuple[Scalar, ...]] | None, exchange: Exchange) -> bool:
    if wanted is None:
        return True
    return all(
        key in exchange.metadata and any(_same(exchange.metadata[key], value) for value in values)
        for key, values in wanted.items()
    )


def _same(seen: object, wanted: Scalar) -> bool:
    """Return equality as people read it: `true` is not 1, but 1.0 is."""
    return isinstance(seen, bool) == isinstance(wanted, bool) and seen == wanted


def _any_below(limit: float, spans: tuple[SpanScore, ...]) -> bool:
    """Return whether a sentence is under the limit; a confidence that is no number counts as under it."""
    return any(span.confidence is not None and not span.confidence >= limit for span in spans)
