"""The result of an evaluation: tables, plots and one HTML page."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from pydantic import AwareDatetime, Field

from semgrad_guard.calibration.profile import AdversarialEvidence
from semgrad_guard.evaluation.adversarial import KINDS as MADE
from semgrad_guard.evaluation.compare.comparing import Comparison, MethodResult
from semgrad_guard.evaluation.compare.promise import PromiseCheck
from semgrad_guard.evaluation.reliability import bins_of, wilson
from semgrad_guard.extras import require
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from semgrad_guard.calibration import Interval
    from semgrad_guard.calibration.labels import Labels
    from semgrad_guard.evaluation.compare.comparing import Ranked

    Array = NDArray[np.float64]

CAVEATS = (
    (
        "Fused figures are out-of-sample: each answer was judged by a fit on other questions. Intervals are 95 % over "
        "resampled questions."
    ),
    "Coverage at an error rate looked at the labels to place the threshold: it describes, it does not promise.",
    "A grade is a comparison of texts: some right answers count as wrong and some wrong ones as right.",
    "Nothing here speaks for other questions, passages, prompts or models.",
)


class Result(Frozen):
    """What `evaluate` writes as JSON."""

    version: int = 1
    made_at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    data: str
    model: str
    grader: str
    settings: dict[str, str | int | float | None]
    left_out: dict[str, int]
    """Answers that could not be scored, by error."""
    seconds: dict[str, float]
    """Mean seconds an answer of each step."""
    comparison: Comparison
    promises: tuple[PromiseCheck, ...]
    adversarial: dict[str, AdversarialEvidence] = Field(default_factory=dict)
    """Answers that were made to look right, by kind; each judged by a fit on other questions."""
    adversarial_threshold: float | None = None
    """The confidence at which they are accepted: it lets `RIGHT_ACCEPTED` of the right answers through."""
    right_mean: float | None = None
    """Mean confidence of the right answers from the same fits."""
    caveats: tuple[str, ...] = CAVEATS

    def method(self, name: str) -> MethodResult | None:
        """Return the figures of one method."""
        return next((one for one in self.comparison.methods if one.name == name), None)

    def shown(self) -> list[str]:
        """Return the names of the methods to draw: the fusions of everything, and what users would otherwise pick."""
        alone = {"gradient", "likelihood", "attention", "text"}
        singles = [one for one in self.comparison.methods if one.kind in alone]
        best = max(singles, key=lambda one: one.auroc.value or 0.0).name if singles else None
        wanted = ["fused", "fused, no embeddings", best, "hybridgrad", "mean_nll", "semantic_entropy"]
        there = {one.name for one in self.comparison.methods}
        return [name for name in dict.fromkeys(wanted) if name in there]


KINDS = {
    "fused": "fused by cross-validation",
    "chosen": "one score, chosen by cross-validation",
    "gradient": "one backward pass",
    "likelihood": "likelihoods",
    "attention": "attention of the answer's tokens",
    "probe": "probes of states and attention",
    "text": "words of answer and passages",
    "embedding": "sentence embeddings",
    "forward": "another forward pass",
    "sampling": "sampled answers",
}
"""Kind of method -> what it is made from, in the order of the tables."""


def ordered(result: Result, kind: str) -> list[MethodResult]:
    """Return the methods of one kind, best AUROC first; fusions in their own order, which is what they contain."""
    rows = [one for one in result.comparison.methods if one.kind == kind]
    return rows if kind == "fused" else sorted(rows, key=lambda one: -(one.auroc.value or 0.0))


def number(value: float | None) -> str:
    """Return a figure in three digits, a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def short(interval: Interval, *, sign: bool = False) -> str:
    """Return a value and its interval, briefly."""
    if interval.value is None:
        return "–"
    form = "+.3f" if sign else ".3f"
    ends = "" if interval.low is None or interval.high is None else f" ({interval.low:{form}} {interval.high:{form}})"
    return f"{interval.value:{form}}{ends}"


def findings(result: Result) -> Iterator[str]:
    """Yield what else there is to say, one sentence each."""
    comparison = result.comparison
    yield (
        f"{comparison.n:,} answers to {comparison.n_groups:,} questions or pages, right: {short(comparison.right)}, "
        f"graded by `{result.grader}`"
    )
    for reason, n in result.left_out.items():
        yield f"{n:,} left out: {reason}"
    for family, gain in comparison.ablations.items():
        yield f"what {family} add to the fused AUROC: {short(gain, sign=True)}"
    for tag in comparison.tags:
        told = ", ".join(f"{name} {short(auroc)}" for name, auroc in tag.auroc.items() if auroc.value is not None)
        yield f"tag {tag.tag}: {tag.n:,} answers, {tag.right:.0%} right{', AUROC ' if told else ''}{told}"
    fused = result.method("fused")
    if fused is not None:
        for risk, coverage in fused.coverage.items():
            yield f"with at most {float(risk):.0%} wrong, fused could accept {short(coverage)} of the answers"
    for promise in result.promises:
        yield promise_text(promise)
    if result.seconds:
        steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in result.seconds.items())
        yield f"seconds an answer: {steps}"


def promise_text(promise: PromiseCheck) -> str:
    """Return what became of a promise, in words."""
    target = f"promise of at most {promise.max_error_rate:.0%} wrong at {1 - promise.delta:.0%} certainty"
    if promise.coverage is None:
        return f"{target}: half of these questions is too little to show it for any threshold"
    error = "nothing was accepted" if promise.error_rate is None else f"{promise.error_rate:.1%} of these were wrong"
    return (
        f"{target}: set in {promise.n_set} of {promise.n_halvings} halvings; on the other halves it accepted "
        f"{promise.coverage:.1%}, and {error}"
    )


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


def write_report(path: Path, result: Result, plots: Mapping[str, str]) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        result: what to show.
        plots: SVG texts by title.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = (files("semgrad_guard.evaluation.compare") / "report.html").read_text(encoding="utf-8")
    kinds = {title: rows for kind, title in KINDS.items() if (rows := ordered(result, kind))}
    risks = [f"{float(risk):.0%}" for risk in result.comparison.methods[0].coverage]
    page = environment.from_string(template).render(
        result=result,
        findings=list(findings(result)),
        plots=plots,
        kinds=kinds,
        risks=risks,
        made=MADE,
        short=short,
        number=number,
    )
    path.write_text(page, encoding="utf-8")
