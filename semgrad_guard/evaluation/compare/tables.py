"""A result as tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from semgrad_guard.calibration import Interval
    from semgrad_guard.evaluation.compare.comparing import MethodResult
    from semgrad_guard.evaluation.compare.promise import PromiseCheck
    from semgrad_guard.evaluation.compare.result import Result

KINDS = {
    "fused": "fused by cross-validation",
    "chosen": "one score, chosen by cross-validation",
    "gradient": "one backward pass",
    "likelihood": "likelihoods",
    "text": "words of answer and passages",
    "embedding": "sentence embeddings",
    "forward": "another forward pass",
    "sampling": "sampled answers",
}
"""Kind of method -> what it is made from, in the order of the tables."""


def method_table(result: Result) -> Table:
    """Return the figures of every method, the best of each kind first."""
    table = Table(title=f"{result.data}, {result.model}: finding wrong answers", title_justify="left")
    for column in ("method", "n", "AUROC (95 %)", "PRR", "AURC", "ECE", "fused − it (95 %)", "+ s/answer"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for kind in KINDS:
        rows = ordered(result, kind)
        for one in rows:
            table.add_row(*_cells(one))
        if rows:
            table.add_section()
    return table


def ordered(result: Result, kind: str) -> list[MethodResult]:
    """Return the methods of one kind, best AUROC first; fusions in their own order, which is what they contain."""
    rows = [one for one in result.comparison.methods if one.kind == kind]
    return rows if kind == "fused" else sorted(rows, key=lambda one: -(one.auroc.value or 0.0))


def _cells(one: MethodResult) -> tuple[str, ...]:
    return (
        one.name,
        f"{one.n:,}",
        short(one.auroc),
        number(one.prr.value),
        number(one.aurc.value),
        number(one.ece.value),
        short(one.behind_fused, sign=True) if one.behind_fused else "",
        "" if one.seconds is None else f"{one.seconds:.2f}",
    )


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
