"""Does a risk-controlled threshold keep its promise? Set on one half of the questions, measured on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.profile import LabelPairs
from semgrad_guard.calibration.risk import threshold_on
from semgrad_guard.errors import RiskNotControllableError
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

N_HALVINGS = 100
DELTA = 0.05


class PromiseCheck(Frozen):
    """What became of one promised error rate over random halvings of the questions."""

    max_error_rate: float
    delta: float
    n_halvings: int
    n_set: int
    """Halvings in which some threshold could be shown to meet the target."""
    n_above: int
    """Of these, how often more of the accepted answers of the other half were wrong than was promised.

    The other half is a sample too, so its error rate is above a promise that holds exactly about half the time:
    compare `error_rate`, the mean, with the target.
    """
    coverage: float | None
    """Mean share of the other half that was accepted; `None` when no threshold could be set."""
    error_rate: float | None
    """Share of wrong answers among all that were accepted in the other halves."""


def check_promise(
    confidence: Array,
    correct: Array,
    groups: NDArray[np.int64],
    max_error_rate: float,
    *,
    delta: float = DELTA,
    seed: int = 0,
) -> PromiseCheck:
    """Return how often and how well the promise held.

    Args:
        confidence: out-of-fold confidences; NaN where there is none, and such answers are left out.
        correct: 1 or 0 per answer.
        groups: group of each answer; never split.
        max_error_rate: what is promised of accepted answers.
        delta: probability with which the promise may fail.
        seed: of the halvings.
    """
    rows = np.isfinite(confidence)
    confidence, correct, groups = confidence[rows], correct[rows], groups[rows]
    rng = np.random.default_rng(seed)
    index = np.unique(groups, return_inverse=True)[1]
    n_set = n_above = n_accepted = n_wrong = n_other = 0
    for _ in range(N_HALVINGS):
        side: NDArray[np.bool_] = (rng.permutation(int(index.max()) + 1) % 2 == 0)[index]
        try:
            threshold = threshold_on(_pairs(confidence, correct, index, side), max_error_rate, delta)
        except RiskNotControllableError:
            continue
        accepted = ~side & (confidence >= threshold.value)
        wrong = int((1 - correct[accepted]).sum())
        n_set += 1
        n_above += bool(accepted.any()) and wrong > max_error_rate * accepted.sum()
        n_accepted += int(accepted.sum())
        n_wrong += wrong
        n_other += int((~side).sum())
    return PromiseCheck(
        max_error_rate=max_error_rate,
        delta=delta,
        n_halvings=N_HALVINGS,
        n_set=n_set,
        n_above=n_above,
        coverage=n_accepted / n_other if n_set else None,
        error_rate=n_wrong / n_accepted if n_accepted else None,
    )


def _pairs(confidence: Array, correct: Array, groups: NDArray[np.int64], rows: NDArray[np.bool_]) -> LabelPairs:
    return LabelPairs(
        confidence=tuple(confidence[rows].tolist()),
        correct=tuple(bool(c) for c in correct[rows]),
        group=tuple(int(g) for g in groups[rows]),
    )
