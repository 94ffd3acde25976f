"""What a simulation found and what it does not show, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semgrad_guard.flow import Action
from semgrad_guard.policy import RiskTarget

if TYPE_CHECKING:
    from semgrad_guard.calibration import Interval
    from semgrad_guard.evaluation.simulate.tally import Simulation
    from semgrad_guard.policy import Policy

LIMITS = (
    "What this does not show:",
    "- Other questions, passages, prompts or models. If the profile was fitted on these answers, the figures flatter.",
    "- Later answers that were not recorded. A recorded one stands for its step, whatever settings the step has.",
    "- A guarantee: the surest of several attempts is given, which no error rate promised for `accept` accounts for.",
    "- What people do with the answers they are handed, how long they take, and what they cost.",
)


def percent(found: Interval) -> str:
    """Return a share and its interval as percentages."""
    if found.value is None or found.low is None or found.high is None:
        return "unknown"
    return f"{found.value:.1%} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def summary(simulation: Simulation) -> list[str]:
    """Return the main findings, one a line."""
    total = simulation.total
    n_people = simulation.n_ended(Action.HUMAN_REVIEW.value)
    n_withheld = total.n - total.n_answered
    return [
        f"{total.n:,} questions under {simulation.policy}",
        f"answered: {percent(total.coverage)}; wrong among those answers: {percent(total.error_rate)}",
        f"held back: {n_withheld:,}, of them {total.n_right_withheld:,} right; {n_people:,} go to people",
        f"without a guard {percent(simulation.first_error_rate)} of all first answers are wrong",
    ]


def cautions(simulation: Simulation, policy: Policy) -> list[str]:
    """Return what is odd about this simulation, one a line."""
    total = simulation.total
    found = [_promise(simulation, policy), _borrowed(simulation, policy)]
    for route, n in simulation.missing.items():
        found.append(
            f"{n:,} questions took {route} without a (further) recorded answer: the step counts as failed there"
        )
    if simulation.n_failed:
        found.append(
            f"{simulation.n_failed:,} first answers could not be scored: `on_error: {policy.on_error}` decides"
        )
    if simulation.n_uncalibrated:
        found.append(
            f"{simulation.n_uncalibrated:,} first answers have no confidence: "
            f"`on_uncalibrated: {policy.on_uncalibrated}` decides"
        )
    n_unknown = total.n - total.n_answered_labelled - total.n_withheld_labelled
    if n_unknown:
        found.append(
            f"{n_unknown:,} questions ended with an answer that has no label; error rates are those of the labelled "
            "ones, which are like the others only if they were picked by chance"
        )
    if simulation.n_repeated:
        found.append(
            f"{simulation.n_repeated:,} questions repeat the group or text of another: intervals, which take all as "
            "independent, are too narrow"
        )
    return [line for line in found if line]


def _promise(simulation: Simulation, policy: Policy) -> str:
    """Return how the measured error rate compares with the one that the policy asks for."""
    target, found = policy.accept, simulation.total.error_rate
    if not isinstance(target, RiskTarget) or found.low is None or found.low <= target.max_error_rate:
        return ""
    return (
        f"the policy asks for at most {target.max_error_rate:.0%} wrong answers, but {percent(found)} are wrong here: "
        "calibrate again on such questions, or leave out the steps that let wrong answers through"
    )


def _borrowed(simulation: Simulation, policy: Policy) -> str:
    if not simulation.n_borrowed:
        return ""
    return (
        f"{simulation.n_borrowed:,} questions are judged by recorded confidences, because {simulation.why_borrowed}; "
        f"a guard with this policy has none for such answers (`on_uncalibrated: {policy.on_uncalibrated}`)"
    )
