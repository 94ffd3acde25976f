"""The steps of `escalate`: their settings in the policy file, and their translation into steps of the flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import override

from semgrad_guard.flow import Action, FallbackModel, HumanReview, RetryRetrieval
from semgrad_guard.policy.conditions import ALWAYS, When
from semgrad_guard.policy.fields import Frozen, Seconds, Text, refuse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from semgrad_guard.flow import Step

MAX_REPEATS = 20
"""How often one step may be tried for a question."""

Repeats = Annotated[int, Field(ge=1, le=MAX_REPEATS)]
Cost = Annotated[float, Field(ge=0)]


class StepSpec(Frozen, ABC):
    """Settings common to all steps of `escalate`."""

    when: When = ALWAYS
    """When this step is tried; if left out, always."""

    @property
    def tries(self) -> int:
        """How often this step may be tried for one question."""
        return 1

    @property
    def answers_again(self) -> bool:
        """Whether this step leads to another attempt; otherwise it ends the question."""
        return False

    @abstractmethod
    def to_flow(self, pending: str) -> Step:
        """Return the step that routing carries out.

        Args:
            pending: message for a caller who does not wait for a person.
        """

    @abstractmethod
    def words(self) -> str:
        """Return what this step does in words, such as "retrieve 8 passages and answer again"."""

    @abstractmethod
    def try_in_words(self, number: int) -> str:
        """Return in words which try of this step comes next; a step with only one try says what it does."""


class NewAttemptStep(StepSpec):
    """Settings common to all steps that answer again."""

    attempts: Repeats = 1
    """How often this step may be tried for one question."""
    cost: Cost = 1.0
    """Cost units of one try, counted against `budget.cost`."""
    timeout_s: Seconds | None = None
    """Seconds after which one try counts as failed."""

    @property
    @override
    def tries(self) -> int:
        return self.attempts

    @property
    @override
    def answers_again(self) -> bool:
        return True

    @override
    def try_in_words(self, number: int) -> str:
        return f"try {number} of {self.attempts}"

    @property
    def _often(self) -> str:
        return "" if self.attempts == 1 else f", up to {self.attempts} times"


class RetryRetrievalStep(NewAttemptStep):
    """Retrieve again and answer again."""

    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many passages to ask for; if left out, twice as many as before."""
    rewrite_query: bool = False
    """Let the model reword the question for retrieval; the answer is still to the original question."""
    retriever: Text | None = None
    """Name of another retriever given to the guard; if left out, the chain's retriever."""
    drop_unused: bool = False
    """Leave out earlier passages that gave the answer nothing: no word, and little of the model's attention."""
    configurable: Annotated[dict[str, JsonValue], AfterValidator(refuse)] = Field(default_factory=dict[str, JsonValue])
    """`configurable` fields for chains that have their own retriever."""

    @override
    def words(self) -> str:
        passages = f"{self.top_k} passages" if self.top_k else "twice as many passages"
        extras = [f"from retriever {self.retriever}"] if self.retriever else []
        extras += ["with a reworded question"] if self.rewrite_query else []
        extras += ["leaving out unused ones"] if self.drop_unused else []
        return " ".join(["retrieve", passages, *extras, "and answer again"]) + self._often

    @override
    def to_flow(self, pending: str) -> Step:
        return RetryRetrieval(
            top_k=self.top_k,
            rewrite_query=self.rewrite_query,
            retriever=self.retriever,
            drop_unused=self.drop_unused,
            configurable=dict(self.configurable),
            timeout_s=self.timeout_s,
        )


class FallbackModelStep(NewAttemptStep):
    """Ask another model."""

    name: Text
    """Name of a model given to the guard, or a provider string such as `openai:gpt-4o`."""
    unscored: bool = False
    """Give its answer to the caller without judging it."""

    @override
    def words(self) -> str:
        judged = ", whose answer is given without being judged" if self.unscored else ""
        return f"ask model {self.name}{judged}{self._often}"

    @override
    def to_flow(self, pending: str) -> Step:
        return FallbackModel(name=self.name, unscored=self.unscored, timeout_s=self.timeout_s)


class HumanReviewStep(StepSpec):
    """Hand the answer to a person."""

    wait_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds that the caller waits for the verdict; with 0 the caller gets the pending message at once."""
    message: Text | None = None
    """Pending message of this step; if left out, `messages.pending`."""

    @override
    def try_in_words(self, number: int) -> str:
        return "a person decides"

    @override
    def words(self) -> str:
        wait = f"the caller waits up to {self.wait_s:g} s" if self.wait_s else "the caller does not wait"
        return f"hand the answer to a person ({wait})"

    @override
    def to_flow(self, pending: str) -> Step:
        return HumanReview(wait_s=self.wait_s, message=self.message or pending)


def _with_short_forms(schema: dict[str, Any]) -> None:
    """Extend the JSON schema of a step, in place, by the short forms that a policy file may use."""
    properties: dict[str, dict[str, Any]] = schema.pop("properties")
    for schema_of_step in properties.values():
        del schema_of_step["default"]
    named = properties[Action.FALLBACK_MODEL.value]
    named["anyOf"] = [*(k for k in named["anyOf"] if k != {"type": "null"}), {"type": "string", "minLength": 1}]
    spelled_out = {
        "type": schema.pop("type"),
        "properties": properties,
        "additionalProperties": schema.pop("additionalProperties"),
        "minProperties": 1,
        "maxProperties": 1,
    }
    needs_none = [name for name, kind in SPECS.items() if not any(f.is_required() for f in kind.model_fields.values())]
    schema["anyOf"] = [{"enum": needs_none}, spelled_out]


SPECS: Mapping[str, type[StepSpec]] = {
    Action.RETRY_RETRIEVAL.value: RetryRetrievalStep,
    Action.FALLBACK_MODEL.value: FallbackModelStep,
    Action.HUMAN_REVIEW.value: HumanReviewStep,
}
"""The steps that `escalate` may list, by their name in the policy file; `EscalationStep` has a field for each."""


class EscalationStep(Frozen):
    """One step of `escalate`. Exactly one field is set; a step that needs no settings may be a single word."""

    model_config = ConfigDict(json_schema_extra=_with_short_forms)

    retry_retrieval: RetryRetrievalStep | None = None
    """Retrieve again and answer again."""
    fallback_model: FallbackModelStep | None = None
    """Ask another model; `fallback_model: big` is short for `fallback_model: {name: big}`."""
    human_review: HumanReviewStep | None = None
    """Hand the answer to a person."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, written: object) -> object:
        if isinstance(written, str):
            return {written: {}}
        if not isinstance(written, dict):
            return written
        return {key: _spelled_out(key, value) for key, value in cast("dict[object, object]", written).items()}

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if len(self._given()) != 1:
            raise PydanticCustomError(
                "step", "each item of `escalate` is exactly one of {names}", {"names": ", ".join(SPECS)}
            )
        return self

    @property
    def name(self) -> str:
        """The step's name in the policy file."""
        return next(iter(self._given()))

    @property
    def spec(self) -> StepSpec:
        """The step's settings."""
        return next(iter(self._given().values()))

    def _given(self) -> dict[str, StepSpec]:
        return {name: spec for name in SPECS if (spec := getattr(self, name)) is not None}


def _spelled_out(key: object, value: object) -> object:
    if value is None:
        return {}
    return {"name": value} if key == Action.FALLBACK_MODEL.value and isinstance(value, str) else value
