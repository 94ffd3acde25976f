"""The four plots of a comparison, as SVG texts."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from semgrad_guard.evaluation.reliability import bins_of, wilson
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from semgrad_guard.calibration.labels import Labels
    from semgrad_guard.evaluation.compare.comparing import Ranked

    Array = NDArray[np.float64]

SIZE = (5.2, 4.2)
RIGHT, WRONG = "#2a7f3f", "#c0392b"
SMALLEST_COVERAGE = 0.02
"""The error rate among fewer of the surest answers is too noisy to draw."""


def plots(labels: Labels, drawn: Sequence[Ranked], fused: Ranked | None) -> dict[str, str]:
    """Return the SVG text of each plot by its title.

    Args:
        labels: what was ranked.
        drawn: methods to draw curves of.
        fused: whose confidence is checked and whose distribution is drawn; `None` leaves those two out.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = {
        "Error rate among accepted answers": _svg(lambda axes: _risk_coverage(axes, labels, drawn)),
        "Finding wrong answers (ROC)": _svg(lambda axes: _roc(axes, labels, drawn)),
    }
    if fused is not None:
        rows = np.isfinite(fused.confidence)
        confidence, correct = fused.confidence[rows], labels.correct[rows]
        found["Reliability of the fused confidence"] = _svg(lambda axes: _reliability(axes, confidence, correct))
        found["Fused confidence of right and wrong answers"] = _svg(lambda axes: _spread(axes, confidence, correct))
    return found


def _svg(draw: Any) -> str:
    figure = require("matplotlib.figure", extra="evaluation").Figure(figsize=SIZE, layout="constrained")
    draw(figure.subplots())
    text = io.StringIO()
    with require("matplotlib", extra="evaluation").rc_context({"svg.fonttype": "none", "svg.hashsalt": "semgrad"}):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]


def _surest_first(labels: Labels, one: Ranked) -> Array:
    """Return which answers are wrong, surest first, rows that the method does not rank left out."""
    rows = np.isfinite(one.order)
    wrong: Array = 1 - labels.correct[rows][np.argsort(-one.order[rows], kind="stable")]
    return wrong


def _risk_coverage(axes: Any, labels: Labels, drawn: Sequence[Ranked]) -> None:
    for one in drawn:
        wrong = _surest_first(labels, one)
        counted = np.arange(1, len(wrong) + 1)
        shown = counted >= SMALLEST_COVERAGE * len(wrong)
        axes.plot(
            100 * counted[shown] / len(wrong), 100 * (np.cumsum(wrong) / counted)[shown], label=one.method.name, lw=1.4
        )
    axes.axhline(100 * (1 - labels.correct.mean()), color="0.6", linestyle="--", lw=1, label="accept all")
    axes.set(xlabel="accepted answers, %", ylabel="wrong among them, %", xlim=(0, 100), ylim=(0, 102))
    axes.legend(fontsize="small", loc="lower right")


def _roc(axes: Any, labels: Labels, drawn: Sequence[Ranked]) -> None:
    for one in drawn:
        wrong = _surest_first(labels, one)[::-1]
        if not 0 < wrong.sum() < len(wrong):
            continue
        axes.plot(
            np.append(0.0, np.cumsum(1 - wrong) / (1 - wrong).sum()),
            np.append(0.0, np.cumsum(wrong) / wrong.sum()),
            label=one.method.name,
            lw=1.4,
        )
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", lw=1)
    axes.set(
        xlabel="share of right answers held back",
        ylabel="share of wrong answers held back",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    axes.legend(fontsize="small", loc="lower right")


def _reliability(axes: Any, confidence: Array, correct: Array) -> None:
    mean, right, n = (np.array(column) for column in zip(*bins_of(confidence, correct), strict=True))
    low, high = wilson(right, n)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", lw=1, label="honest confidence")
    axes.errorbar(mean, right, yerr=[right - low, high - right], marker="o", capsize=3, label="answers (95 % interval)")
    axes.set(xlabel="confidence, out-of-sample", ylabel="share of right answers", xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.legend(fontsize="small", loc="upper left")


def _spread(axes: Any, confidence: Array, correct: Array) -> None:
    edges = np.linspace(0, 1, 26)
    axes.hist(
        [confidence[correct > 0], confidence[correct == 0]],
        bins=edges,
        stacked=True,
        color=[RIGHT, WRONG],
        label=["right", "wrong"],
    )
    axes.set(xlabel="confidence, out-of-sample", ylabel="answers", xlim=(0, 1))
    axes.legend(fontsize="small")
