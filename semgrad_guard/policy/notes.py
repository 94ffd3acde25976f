"""What is allowed in a policy but probably not meant, and what a file leaves to the defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.policy.conditions import ALWAYS
from semgrad_guard.policy.decide import step_rule
from semgrad_guard.policy.loading import SHIPPED
from semgrad_guard.policy.steps import FallbackModelStep, HumanReviewStep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.policy.model import Policy
    from semgrad_guard.policy.steps import Rung


def notes(policy: Policy) -> list[str]:
    """Return what a reader of a policy should know before trusting it."""
    found = [*_defaults(policy), *_extremes(policy)]
    found += _unreachable(policy.escalate, "escalate", policy.accept)
    for number, override in enumerate(policy.overrides):
        accept = policy.accept if override.accept is None else override.accept
        found += _unreachable(override.escalate or (), f"overrides[{number}].escalate", accept)
    return found


def _defaults(policy: Policy) -> Iterator[str]:
    if policy.source == SHIPPED:
        return
    given = policy.model_fields_set
    if "on_error" not in given:
        yield "`on_error` is not given, so it is `abstain`: an answer is held back when the guard itself fails"
    if "on_uncalibrated" not in given:
        yield "`on_uncalibrated` is not given, so it is `abstain`: an answer is held back when no profile fits"
    if "scorer" not in given:
        yield f"`scorer` is not given, so it is {policy.scorer.model} with the shipped profile {policy.scorer.profile}"


def _extremes(policy: Policy) -> Iterator[str]:
    if policy.accept == 0:
        yield "`accept: 0` gives every answer that has a confidence"
    if policy.accept == 1:
        yield "`accept: 1` gives an answer only at a confidence of exactly 1, which calibrated models hardly reach"
    if policy.scorer.profile is None:
        yield "`scorer.profile` is not given: no answer has a confidence, so `on_uncalibrated` decides every answer"
    if policy.budget.attempts == 1 and any(not isinstance(r.spec, HumanReviewStep) for _, r in policy.ladders()):
        yield "`budget.attempts: 1` leaves no room for retries and fallbacks: the first answer is an attempt"
    if policy.review.url.partition("?")[0] in {"sqlite://", "sqlite:///:memory:"}:
        yield "`review.url` is a database in memory: answers that wait for people are lost when the program ends"


def _unreachable(ladder: tuple[Rung, ...], place: str, accept: object) -> Iterator[str]:
    final: str | None = None
    for index, rung in enumerate(ladder):
        rule, above = step_rule(f"{place}[{index}]", rung), rung.spec.when.above
        if final:
            yield f"{rule} is tried only if {final} failed, which always ends the question"
        if above is not None and isinstance(accept, float | int) and above >= accept:
            yield f"{rule} is never tried: at a confidence of at least {above:g} the answer is accepted"
        if isinstance(rung.spec, HumanReviewStep) and rung.spec.when == ALWAYS:
            final = final or rule
        if isinstance(rung.spec, FallbackModelStep) and rung.spec.unscored:
            yield f"{rule} gives an answer that nothing has judged"
