"""What one decision is about: an attempt, the settings for it, and how its question stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.flow import UNCALIBRATED, Confidence, Decision
from semgrad_guard.policy.best import best_judged, known
from semgrad_guard.policy.conditions import Standing
from semgrad_guard.policy.fields import versus

if TYPE_CHECKING:
    from semgrad_guard.flow import Exchange, Failure, Progress, Score, Step
    from semgrad_guard.policy.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What one decision is about."""

    rules: Rules
    exchange: Exchange
    """The present attempt."""
    progress: Progress
    score: Score | None = None
    confidence: Confidence = UNCALIBRATED

    @property
    def judged_before(self) -> bool:
        """Whether an earlier attempt has a usable confidence."""
        return best_judged(self.progress.attempts) is not None

    def standing(self) -> Standing:
        """Return how the question stands: by its best attempt."""
        best, score = known(self.confidence), self.score
        before = best_judged(self.progress.attempts)
        earlier = known(before.decision.confidence) if before else None
        if before and earlier is not None and (best is None or earlier >= best):
            best, score = earlier, before.decision.score
        ids = {attempt.exchange.id for attempt in self.progress.attempts} | {self.exchange.id}
        return Standing(
            exchange=self.exchange,
            confidence=best or 0.0,
            spans=score.spans if score else (),
            n_attempts=max(len(ids), self.exchange.attempt),
        )

    def doubt(self, threshold: float) -> str:
        """Return in words why the present attempt is not accepted."""
        value, best = known(self.confidence), self.standing().confidence
        if value is None:
            return (
                f"no calibrated confidence ({self.confidence.why}), best of the attempts {best:.2f} < {threshold:.2f}"
            )
        said = f"confidence {versus(value, '<', threshold)}"
        return f"{said} (best attempt {best:.2f})" if best > value else said

    def decision(self, step: Step, rule: str, why: str, failure: Failure | None = None) -> Decision:
        """Return the decision for the present attempt."""
        return Decision(
            step=step,
            rule=rule,
            why=why,
            exchange_id=self.exchange.id,
            score=self.score,
            confidence=self.confidence,
            failure=failure,
        )
