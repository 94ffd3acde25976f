"""Choosing the next step of `escalate` for an answer that is not good enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from semgrad_guard.policy.steps import HumanReviewStep, NewAttemptStep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from semgrad_guard.flow import Progress
    from semgrad_guard.policy.conditions import Standing
    from semgrad_guard.policy.rules import Ruled
    from semgrad_guard.policy.sections import Budget
    from semgrad_guard.policy.steps import Rung


@dataclass(frozen=True, slots=True)
class Spent:
    """What a question has used of its budget."""

    seconds: float
    attempts: int
    cost: float


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step that is not tried, and why."""

    rule: str
    why: str
    limit: str = ""
    """The part of the budget that stops it, for example `budget.seconds`; empty for any other reason."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The step to try, or none, and the steps before it that are not tried."""

    rung: Ruled[Rung] | None
    skipped: tuple[Skipped, ...] = ()

    @property
    def limit(self) -> str:
        """The part of the budget that stopped a step first; empty where none did."""
        return next((one.limit for one in self.skipped if one.limit), "")


def climb(
    ladder: Sequence[Ruled[Rung]], standing: Standing, progress: Progress, budget: Budget, spent: Spent
) -> Choice:
    """Return the first step that may be tried now.

    Args:
        ladder: the steps, in the order of the file.
        standing: how the question stands.
        progress: which steps were tried, and which can't help any more.
        budget: the limits of new attempts.
        spent: what was used of them.
    """
    skipped: list[Skipped] = []
    for rung in ladder:
        obstacle = _obstacle(rung, standing, progress) or _over_budget(rung, budget, spent)
        if obstacle is None:
            return Choice(rung, tuple(skipped))
        skipped.append(obstacle)
    return Choice(None, tuple(skipped))


def cost_of(ladder: Sequence[Ruled[Rung]], tried: Mapping[str, int]) -> float:
    """Return the cost units of all tries of the steps of a ladder."""
    return sum(tried.get(r.rule, 0) * r.value.spec.cost for r in ladder if isinstance(r.value.spec, NewAttemptStep))


def tries_left(rung: Ruled[Rung], progress: Progress) -> int:
    """Return how often a step may still be tried; a step that ends the question has one try."""
    spec = rung.value.spec
    return 1 if isinstance(spec, HumanReviewStep) else spec.attempts - progress.tried.get(rung.rule, 0)


def _obstacle(rung: Ruled[Rung], standing: Standing, progress: Progress) -> Skipped | None:
    if rung.rule in progress.exhausted:
        return Skipped(rung.rule, "failed or can't help any more")
    if tries_left(rung, progress) < 1:
        return Skipped(rung.rule, "used up")
    if not rung.value.spec.when.holds(standing):
        return Skipped(rung.rule, "not meant for this answer")
    return None


def _over_budget(rung: Ruled[Rung], budget: Budget, spent: Spent) -> Skipped | None:
    """Return which limit stops a step; steps that end the question are never stopped."""
    spec = rung.value.spec
    if isinstance(spec, HumanReviewStep):
        return None
    if budget.seconds is not None and not spent.seconds < budget.seconds:
        return Skipped(rung.rule, f"{spent.seconds:.3g} of {budget.seconds:g} s used", "budget.seconds")
    if budget.attempts is not None and spent.attempts >= budget.attempts:
        return Skipped(rung.rule, f"{spent.attempts} of {budget.attempts} attempts used", "budget.attempts")
    if budget.cost is not None and not spent.cost + spec.cost <= budget.cost:
        return Skipped(rung.rule, f"{spent.cost:g} + {spec.cost:g} of {budget.cost:g} cost units", "budget.cost")
    return None
