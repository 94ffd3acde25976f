"""What labelled answers say about the position: AUROC of SemGrad at each of the last prompt tokens.

The scan of paraphrases sees no label, so for it all labelled answers are held out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration import Interval, paired_difference, with_interval
from semgrad_guard.calibration.labels import collect
from semgrad_guard.calibration.metrics import auroc
from semgrad_guard.errors import DataFileError, OneClassError
from semgrad_guard.evaluation.labelling import Labeller
from semgrad_guard.evaluation.rows import read_rows
from semgrad_guard.scoring.signals import POSITIONS, semgrad_at

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCheck:
    """How well SemGrad at each position tells right answers from wrong ones."""

    n: int
    n_wrong: int
    aurocs: dict[int, Interval]
    """AUROC by position; 0.5 is chance."""
    best: int
    """Position with the highest AUROC."""
    behind_best: dict[int, Interval]
    """AUROC of the best minus that of each position, on the same answers."""

    def contradicts(self, position: int) -> bool:
        """Tell whether another position is clearly better than this one."""
        behind = self.behind_best.get(position)
        return behind is not None and behind.low is not None and behind.low > 0


def check_labels(path: Path, *, seed: int = 0) -> LabelCheck:
    """Return the AUROC of each position on a file that `semgrad-guard score` wrote.

    Raises:
        DataFileError: a row has no label, or no row holds the signals.
        OneClassError: all answers are right, or all are wrong.
    """
    labels = collect(Labeller(path=path).label(read_rows(path)), seed=seed)
    n_right = int(labels.correct.sum())
    if n_right in {0, len(labels)}:
        raise OneClassError(bool(n_right), len(labels))
    found = {position: semgrad_at(position) for position in POSITIONS if semgrad_at(position) in labels.names}
    if not found:
        advice = "score the answers with `semgrad-guard score` of this version"
        raise DataFileError(path, None, f"holds no {semgrad_at(-1)} to {semgrad_at(-5)}", advice)
    signals = labels.select(tuple(found.values())).signals
    whole = np.isfinite(signals).all(1)
    if not whole.any():
        raise DataFileError(path, None, "no row holds a finite SemGrad at every position", "score the answers again")
    surest = dict(zip(found, -signals[whole].T, strict=True))
    correct, groups = labels.correct[whole], labels.groups[whole]
    aurocs = {at: with_interval(auroc, sure, correct, groups, seed=seed) for at, sure in surest.items()}
    best = max(aurocs, key=lambda at: aurocs[at].value or 0.0)
    behind = {
        at: paired_difference(auroc, surest[best], sure, correct, groups, seed=seed)
        for at, sure in surest.items()
        if at != best
    }
    return LabelCheck(
        n=len(correct), n_wrong=int(len(correct) - correct.sum()), aurocs=aurocs, best=best, behind_best=behind
    )
