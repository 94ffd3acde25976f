"""What the guard found, as callers read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from semgrad_guard.wire import answered_attempt, signals_fields, summary_fields

if TYPE_CHECKING:
    from semgrad_guard.flow import Attempt, Decision, Json, Outcome, ReviewId, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedAnswer:
    """Everything about one guarded answer: what `SemGradGuard(output="result")` gives."""

    text: str
    """What the user may see: the answer, or the policy's message in its place."""
    value: Any
    """The chain's value with that text in it: what `output="same"` gives."""
    outcome: Outcome

    @property
    def llm_run_id(self) -> str | None:
        """Run of the model call that wrote the answer."""
        return text_or_none(self.outcome.exchange.metadata.get("llm_run_id"))

    @property
    def llm_run_name(self) -> str | None:
        """Name of that run: the model's class, or what `with_config(run_name=...)` says."""
        return text_or_none(self.outcome.exchange.metadata.get("llm_run_name"))

    @property
    def status(self) -> Status:
        """What kind of text it is."""
        return self.outcome.status

    @property
    def confidence(self) -> float | None:
        """Calibrated P(answer is correct), in [0, 1]; `None` when nothing calibrated it."""
        return self.outcome.confidence

    @property
    def decision(self) -> Decision:
        """The last decision."""
        return self.outcome.decision

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """All attempts, oldest first."""
        return self.outcome.attempts

    @property
    def withheld(self) -> bool:
        """True when the text is not a model's answer."""
        return self.outcome.withheld

    @property
    def review_id(self) -> ReviewId | None:
        """The review item, when the answer was handed to a person."""
        return self.outcome.review_id

    @override
    def __str__(self) -> str:
        return self.text


def text_or_none(value: object) -> str | None:
    """Return a text as it is, and `None` for anything else."""
    return value if isinstance(value, str) else None


def findings(outcome: Outcome) -> dict[str, Json]:
    """Return what the guard found as plain JSON values: what a message carries under `semgrad`.

    No text of a withheld answer is in it.
    """
    answered = answered_attempt(outcome.record)
    score = answered.decision.score if answered else None
    failure = outcome.decision.failure or next(iter(outcome.record.failures), None)
    return {
        **summary_fields(outcome.record),
        "why": outcome.decision.why,
        "withheld": outcome.withheld,
        "signals": signals_fields(score.signals) if score else {},
        "error": f"{failure.type}: {failure.message}" if failure else None,
        "llm_run_id": outcome.exchange.metadata.get("llm_run_id"),
        "llm_run_name": outcome.exchange.metadata.get("llm_run_name"),
    }
