"""A simulation in words and as a plot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semgrad_guard.extras import require
from semgrad_guard.flow import Action
from semgrad_guard.policy import RiskTarget

if TYPE_CHECKING:
    from pathlib import Path

    from semgrad_guard.calibration import Interval
    from semgrad_guard.evaluation.simulate.tally import RouteFigures, Simulation
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
    """Return the main findings, one per line."""
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
    """Return warnings about this simulation, one per line."""
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


_COLOURS = {
    "right, given": "#2a7f3f",
    "wrong, given": "#c0392b",
    "right, held back": "#a9d6b4",
    "wrong, held back": "#e8b4ae",
    "no label": "#bbbbbb",
}


def save_simulation_plot(path: Path, simulation: Simulation) -> None:
    """Write the plot in the format of the file's extension (.png, .svg, .pdf).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = require("matplotlib.figure", extra="evaluation").Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_curve(left, simulation)
    _draw_routes(right, simulation.routes)
    figure.savefig(path)


def parts_of(figures: RouteFigures) -> dict[str, int]:
    """Return how many questions of a route ended with a right or wrong answer that was given or held back."""
    parts = {
        "right, given": figures.n_answered_labelled - figures.n_wrong,
        "wrong, given": figures.n_wrong,
        "right, held back": figures.n_right_withheld,
        "wrong, held back": figures.n_withheld_labelled - figures.n_right_withheld,
    }
    return {**parts, "no label": figures.n - sum(parts.values())}


def _draw_curve(axes: Any, simulation: Simulation) -> None:
    curve, total = simulation.curve, simulation.total
    axes.step(
        100 * curve.coverage,
        100 * curve.error_rate,
        where="post",
        color="0.4",
        label="first answers alone, by `accept`",
    )
    threshold = simulation.thresholds["accept"]
    coverage, error_rate = curve.at(threshold)
    if error_rate is not None:
        axes.plot(
            [100 * coverage], [100 * error_rate], "o", color="0.4", label=f"accept: {threshold:.2f}, no more steps"
        )
    rate = total.error_rate
    if rate.value is not None and rate.low is not None and rate.high is not None:
        axes.errorbar(
            [100 * (total.coverage.value or 0.0)],
            [100 * rate.value],
            yerr=[[100 * (rate.value - rate.low)], [100 * (rate.high - rate.value)]],
            marker="*",
            markersize=14,
            capsize=3,
            color="#1f4e9c",
            label="the whole policy (95 % interval)",
        )
    axes.set(xlabel="answered, %", ylabel="wrong among the answers given, %", xlim=(0, 102))
    axes.set_ylim(bottom=0)
    axes.set_title("Risk and coverage")
    axes.legend(loc="best", fontsize="small")


def _draw_routes(axes: Any, routes: tuple[RouteFigures, ...]) -> None:
    names = [figures.route for figures in routes]
    ends = [0] * len(routes)
    for label, colour in _COLOURS.items():
        widths = [parts_of(figures)[label] for figures in routes]
        if any(widths):
            axes.barh(names, widths, left=ends, color=colour, label=label)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="questions", title="How questions end")
    axes.legend(loc="best", fontsize="small")
