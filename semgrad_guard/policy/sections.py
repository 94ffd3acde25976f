"""The sections of a policy file that are plain settings."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from semgrad_guard.policy.fields import Frozen, OptionalText, Probability, Seconds, Share, Text

Method = Literal[
    "hybridgrad",
    "semgrad",
    "semgrad@-1",
    "semgrad@-2",
    "semgrad@-3",
    "semgrad@-4",
    "semgrad@-5",
    "paragrad",
    "exgrad",
    "loss",
    "mean_nll",
    "sum_nll",
    "max_nll",
    "first_nll",
    "mean_entropy",
    "max_entropy",
    "first_entropy",
    "fused",
]
"""The signal that a score's `value` is; `fused` lets the profile weigh all of them."""

CostlySignal = Literal["context_gain", "p_true"]
"""A signal that takes another forward pass."""


class RiskTarget(Frozen):
    """Accept as many answers as possible while few of the accepted ones are wrong."""

    max_error_rate: Share
    """Highest share of wrong answers among the accepted ones."""
    delta: Share = 0.05
    """Probability with which that may fail."""


def _band(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise PydanticCustomError(
            "band", "must be [first, last] with first <= last: decoder blocks from 0, both included"
        )
    return value


Block = Annotated[int, Field(ge=0)]


class ScorerSettings(Frozen):
    """Which model scores, and how."""

    model: Text = "smollm2-135m"
    """The demo model's name, a Hugging Face id, a folder or a .gguf file."""
    method: Method = "fused"
    """The signal that the score is."""
    granularity: Literal["answer", "sentence"] = "answer"
    """`sentence` scores every sentence as well, at one more backward pass each."""
    profile: Text | None = None
    """Calibration: the name of a shipped profile, or a JSON file, relative to the folder of the policy file."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "float64"] | None = None
    """Number type of the weights; left out, what the loader finds best."""
    device: Text | None = None
    """`cpu`, `cuda`, `cuda:1`, `mps`, ...; left out, what the loader finds best."""
    position: Annotated[int, Field(lt=0)] | None = None
    """Token position t*, counted from the prompt's end: -1 is its last token; left out, the profile's."""
    band: Annotated[tuple[Block, Block], Field(strict=False), AfterValidator(_band)] | None = None
    """Decoder blocks [first, last], both included, that SemGrad averages over; left out, the upper half."""
    signals: Annotated[tuple[CostlySignal, ...], Field(strict=False)] = ()
    """Signals to compute beside the free ones, at another forward pass each."""
    embedding: Text | None = None
    """Sentence-transformers model (`minilm-l6-v2`, a Hugging Face id or a folder) for the signals of meaning."""


class Messages(Frozen):
    """What callers read."""

    abstain: Text = "I am not sure enough to answer that."
    """In place of an answer that is held back."""
    pending: Text = "A person will answer this."
    """In place of an answer that waits for a person."""
    warning: OptionalText = "Please check this answer: I am not sure of it."
    """Put before an answer that is given although it is doubtful; empty marks it in its metadata only."""
    unchecked: OptionalText = "This answer could not be checked."
    """Put before an answer that is given although nothing could judge it; empty marks it in its metadata only."""


class MessageChanges(Frozen):
    """Messages that an override changes."""

    abstain: Text | None = None
    """In place of an answer that is held back."""
    pending: Text | None = None
    """In place of an answer that waits for a person."""
    warning: OptionalText | None = None
    """Put before an answer that is given although it is doubtful; empty marks it in its metadata only."""
    unchecked: OptionalText | None = None
    """Put before an answer that is given although nothing could judge it; empty marks it in its metadata only."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.model_fields_set:
            raise PydanticCustomError("messages", "must change at least one message")
        return self


class Budget(Frozen):
    """When to stop answering again; review and `otherwise` still happen."""

    seconds: Seconds | None = None
    """Seconds since the question's first answer; an answer that is not scored by then goes to `on_error`."""
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """Attempts, the first answer included."""
    cost: Annotated[float, Field(ge=0)] | None = None
    """Cost units of all retries and fallbacks, each step's own `cost`."""


class TelemetrySettings(Frozen):
    """Where decisions are logged."""

    langsmith: bool = False
    """Put confidence and decision on LangSmith runs, where tracing is on."""
    otel: bool = False
    """Send OpenTelemetry events, spans and metrics."""
    jsonl: Text | None = None
    """File to append one JSON line a question to."""
    log_text: bool = False
    """Log prompts, passages and answers as well, not only numbers and decisions."""


Accept = Probability | RiskTarget
Otherwise = Literal["abstain", "answer_with_warning"]
OnError = Literal["abstain", "human_review", "answer_with_warning"]
OnUncalibrated = Literal["warn", "abstain", "error"]
