"""The plot of a simulation: what first answers alone would do, the policy's own point, and how questions end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from semgrad_guard.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from semgrad_guard.evaluation.simulate.tally import RouteFigures, Simulation

_COLOURS = {
    "right, given": "#2a7f3f",
    "wrong, given": "#c0392b",
    "right, held back": "#a9d6b4",
    "wrong, held back": "#e8b4ae",
    "no label": "#bbbbbb",
}


def save_simulation_plot(path: Path, simulation: Simulation) -> None:
    """Write the plot; the file's ending says the format (.png, .svg, .pdf).

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
