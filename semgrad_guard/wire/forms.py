"""The parts of the JSON forms as pydantic models: what a database, a form on the web or a caller over HTTP hands in.

They say which fields there are and check them; `semgrad_guard.wire.values` turns checked fields into values.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from semgrad_guard.flow import PassagesFrom, ScorePath

VERSION = 2
"""Number of the forms that are written; every number from 1 to it is read. Version 1 wrote the scores of a log, and of
a file of scored answers, as flat fields beside those of the answer."""


class Frozen(BaseModel):
    """A JSON object that cannot be changed and has no unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _null_unless_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_null_unless_finite)]
"""A finite number; NaN and infinity, which JSON cannot hold, are read as null."""

Probability = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(_null_unless_finite)]
"""A number in [0, 1]; NaN is read as null."""

FormVersion = Annotated[int, Field(ge=1, le=VERSION)]
"""The number of a form. What version 0.1 wrote has none and is of version 1."""


class MessageForm(Frozen):
    """One chat message of a prompt."""

    role: str
    content: str


class PassageForm(Frozen):
    """One retrieved passage."""

    text: str
    source: str | None = None
    score: Number = None


class FingerprintForm(Frozen):
    """What a score depends on beside the exchange."""

    model: str
    dtype: str
    template: str
    settings: str
    proxy: bool = False


class SpanForm(Frozen):
    """Signals and confidence of one part of the answer."""

    start: int = Field(ge=0)
    end: int = Field(ge=0)
    signals: dict[str, Number] = Field(default_factory=dict)
    confidence: Probability = None


class ScoreForm(Frozen):
    """The raw score; higher is less sure."""

    version: FormVersion = 1
    method: str
    value: Number
    signals: dict[str, Number] = Field(default_factory=dict)
    fingerprint: FingerprintForm
    model: str
    path: ScorePath = "cold"
    n_prompt_tokens: int = 0
    n_answer_tokens: int = 0
    seconds: float = 0.0
    spans: tuple[SpanForm, ...] = ()
    passage_attention: tuple[Number, ...] = ()
    passage_gradients: tuple[Number, ...] = ()
    read_for: str = ""
    vectors: dict[str, tuple[float, ...]] = Field(default_factory=dict)


class ContributionForm(Frozen):
    """How much one signal moved the confidence; below 0 lowers it."""

    signal: str
    weight: float
    text: str = ""


class FailureForm(Frozen):
    """What failed in the guard, or in a step of the policy."""

    stage: str
    type: str
    message: str = ""


class ExchangeForm(Frozen):
    """All fields of an exchange but its id, which some forms call otherwise."""

    version: FormVersion = 1
    question: str | None = None
    prompt: str | tuple[MessageForm, ...] = ""
    answer: str = ""
    passages: tuple[PassageForm, ...] = ()
    passages_from: PassagesFrom | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)
    attempt: int = 1
    prompt_ids: tuple[int, ...] | None = None
    answer_ids: tuple[int, ...] | None = None
    author: str | None = None
    on_policy: bool = False
    score: ScoreForm | None = None
