"""The whole result of an evaluation: what was asked, what came out, and what it does not show."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import AwareDatetime, Field

from semgrad_guard.calibration.frozen import Frozen
from semgrad_guard.evaluation.compare.comparing import Comparison, MethodResult
from semgrad_guard.evaluation.compare.promise import PromiseCheck

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
    caveats: tuple[str, ...] = CAVEATS

    def method(self, name: str) -> MethodResult | None:
        """Return the figures of one method."""
        return next((one for one in self.comparison.methods if one.name == name), None)

    def shown(self) -> list[str]:
        """Return the names of the methods to draw: the fusions of everything, and what users would otherwise pick."""
        singles = [one for one in self.comparison.methods if one.kind in {"gradient", "likelihood", "text"}]
        best = max(singles, key=lambda one: one.auroc.value or 0.0).name if singles else None
        wanted = ["fused", "fused, no embeddings", best, "hybridgrad", "mean_nll", "semantic_entropy"]
        there = {one.name for one in self.comparison.methods}
        return [name for name in dict.fromkeys(wanted) if name in there]
