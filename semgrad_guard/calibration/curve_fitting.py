"""Fits calibration curves to margins and labels, and picks one by cross-validated log-loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from semgrad_guard.calibration.curves import (
    BetaCurve,
    IsotonicCurve,
    PlattCurve,
    VennAbersCurve,
    beta_columns,
    fit_logistic,
    smoothed,
)
from semgrad_guard.calibration.labels import grouped_folds
from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float64]
FittedCurve = PlattCurve | BetaCurve | IsotonicCurve | VennAbersCurve

CalibratorName = Literal["auto", "platt", "beta", "isotonic", "venn_abers"]

MAX_KNOTS = 200
"""Venn-Abers refits once per knot, so margins are first pooled into at most this many groups of equal size."""


def fit_platt(margins: Array, correct: Array) -> PlattCurve:
    """Return the logistic curve of the margins."""
    slopes, intercept = fit_logistic(margins[:, None], smoothed(correct), signs=[1])
    return PlattCurve(slope=float(slopes[0]), intercept=intercept)


def fit_beta(margins: Array, correct: Array) -> BetaCurve:
    """Return the beta calibration curve of the margins."""
    weights, intercept = fit_logistic(beta_columns(margins), smoothed(correct), signs=[1, 1])
    return BetaCurve(a=float(weights[0]), b=float(weights[1]), c=intercept)


def fit_isotonic(margins: Array, correct: Array) -> IsotonicCurve:
    """Return the isotonic curve of the margins, its knots only where the line bends."""
    regression = require("sklearn.isotonic", extra="evaluation").IsotonicRegression(y_min=0, y_max=1)
    regression.fit(margins, correct)
    return IsotonicCurve(
        knots=tuple(float(x) for x in regression.X_thresholds_),
        values=tuple(float(y) for y in regression.y_thresholds_),
    )


def fit_venn_abers(margins: Array, correct: Array) -> VennAbersCurve:
    """Return the inductive Venn-Abers curve of the margins.

    Written on scikit-learn's isotonic fit: the `venn-abers` package switches numpy's floating-point warnings off for
    the whole process when imported, and brings pandas.
    """
    knots, place = np.unique(_pooled(margins), return_inverse=True)
    weight = np.bincount(place).astype(np.float64)
    mean = np.bincount(place, weights=correct) / weight
    return VennAbersCurve(
        knots=tuple(float(x) for x in knots),
        if_wrong=_refits(mean, weight, 0.0),
        if_right=_refits(mean, weight, 1.0),
    )


def _pooled(margins: Array) -> Array:
    """Return the margins, replaced by the mean of their quantile group where there are too many distinct ones."""
    if len(np.unique(margins)) <= MAX_KNOTS:
        return margins
    edges = np.quantile(margins, np.linspace(0, 1, MAX_KNOTS + 1)[1:-1])
    group = np.searchsorted(edges, margins, "right")
    n = np.bincount(group, minlength=MAX_KNOTS)
    means = np.bincount(group, weights=margins, minlength=MAX_KNOTS) / np.maximum(n, 1)
    return means[group]


def _refits(mean: Array, weight: Array, label: float) -> tuple[float, ...]:
    """Return the isotonic value of one more answer with this label at every gap and knot, from the left."""
    isotonic = require("sklearn.isotonic", extra="evaluation").isotonic_regression
    values: list[float] = []
    for k in range(len(mean)):
        gap = isotonic(np.insert(mean, k, label), sample_weight=np.insert(weight, k, 1.0))[k]
        joined = (mean[k] * weight[k] + label) / (weight[k] + 1)
        knot_mean, knot_weight = mean.copy(), weight.copy()
        knot_mean[k], knot_weight[k] = joined, weight[k] + 1
        values += [float(gap), float(isotonic(knot_mean, sample_weight=knot_weight)[k])]
    values.append(float(isotonic(np.append(mean, label), sample_weight=np.append(weight, 1.0))[-1]))
    return tuple(values)


FITS: dict[str, Callable[[Array, Array], FittedCurve]] = {
    "platt": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
    "venn_abers": fit_venn_abers,
}
AUTO: tuple[str, ...] = ("platt", "beta", "isotonic")
"""What `auto` chooses from; the first is kept unless another is clearly better."""


def edge(n: int) -> float:
    """Return how far confidence stays from 0 and 1 when n labels speak: no finite data proves certainty."""
    return 1.0 / (n + 2)


def fit_curve(
    margins: Array, correct: Array, groups: NDArray[np.int64], *, calibrator: CalibratorName, seed: int
) -> FittedCurve:
    """Return the fitted curve; `auto` takes the one of lowest cross-validated log-loss.

    Isotonic regression overfits few labels, so another curve replaces Platt's only where it is better by more
    than one standard error of the paired difference.
    """
    name = _choose(margins, correct, groups, seed) if calibrator == "auto" else calibrator
    return FITS[name](margins, correct)


def _choose(margins: Array, correct: Array, groups: NDArray[np.int64], seed: int) -> str:
    """Return the name of the curve to use."""
    folds = grouped_folds(correct, groups, seed=seed)
    losses = {name: np.empty(len(correct)) for name in AUTO}
    for test in folds:
        for name, loss in losses.items():
            curve = FITS[name](margins[~test], correct[~test])
            keep = edge(int((~test).sum()))
            p = np.clip(curve.probabilities(margins[test]), keep, 1 - keep)
            loss[test] = -np.log(np.where(correct[test] > 0, p, 1 - p))
    best = AUTO[0]
    for name in AUTO[1:]:
        gain = losses[best] - losses[name]
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            best = name
    return best
