"""Calibration curves, which turn a margin (log-odds before calibration) into a probability; applying needs only numpy.

Each curve consists of a few plain numbers and never decreases with the margin; `calibration.fit` fits them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from semgrad_guard.extras import require
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


LARGEST = 1e12
"""Larger numbers are no log-odds, nor factors of any; sums and products of smaller ones are always finite."""
LogOdds = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]
"""Log-odds, or a factor of them, of either sign."""
Slope = Annotated[float, Field(ge=0, le=LARGEST)]
"""A factor of log-odds that keeps their order."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A probability, or a share of a whole."""
ROUNDING = 1e-9
"""How far a value may be below the one before it and still count as no lower."""


def check_ascending(**lists: tuple[float, ...]) -> None:
    """Raise `ValueError` unless the values of each list are in ascending order, up to rounding."""
    for name, values in lists.items():
        if any(after < before - ROUNDING for before, after in pairwise(values)):
            msg = f"{name} must be in ascending order"
            raise ValueError(msg)


def check_length(n: int, **lists: tuple[float, ...]) -> None:
    """Raise `ValueError` unless each list has `n` entries."""
    for name, values in lists.items():
        if len(values) != n:
            msg = f"{name} must have {n} entries, not {len(values)}"
            raise ValueError(msg)


def sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each log-odds, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * log_odds))


def log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of each probability inside (0, 1)."""
    return np.log(probability) - np.log1p(-probability)


def fit_logistic(
    columns: NDArray[np.float64],
    target: NDArray[np.float64],
    *,
    signs: Sequence[int],
    ridge: float = 0.0,
    weights: NDArray[np.float64] | None = None,
    strata: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], float]:
    """Return coefficients and intercept that minimise mean log-loss + ridge / 2 · |coefficients|².

    Args:
        columns: ``(row, column)``, standardised where `ridge` is not 0.
        target: probability of being correct of each row, in [0, 1]; labels, or smoothed labels.
        signs: for each column 1 (coefficient >= 0), -1 (<= 0) or 0 (free).
        ridge: strength of the penalty; the intercept is not penalised.
        weights: how much each row counts, more than 0; all alike by default.
        strata: index of the data set of each row, from 0: each has an intercept of its own, so that what tells the sets
            apart teaches nothing. The intercept returned is their average by weight.
    """
    minimize = require("scipy.optimize", extra="evaluation").minimize
    stratum = np.zeros(len(target), dtype=np.int64) if strata is None else strata
    intercepts = np.eye(int(stratum.max(initial=0)) + 1)[stratum]
    n_columns, n_intercepts = columns.shape[1], intercepts.shape[1]
    design = np.hstack([columns, intercepts])
    penalty = np.repeat([ridge, 0.0], [n_columns, n_intercepts])

    share = np.full(len(target), 1 / len(target)) if weights is None else weights / weights.sum()

    def loss(coefficients: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = design @ coefficients
        value = share @ (np.logaddexp(0.0, margin) - target * margin) + 0.5 * np.sum(penalty * coefficients**2)
        return float(value), design.T @ (share * (sigmoid(margin) - target)) + penalty * coefficients

    bounds = [{1: (0.0, None), -1: (None, 0.0), 0: (None, None)}[sign] for sign in signs]
    rate = np.clip(share @ target, 1e-6, 1 - 1e-6)
    start = np.repeat([0.0, float(np.log(rate / (1 - rate)))], [n_columns, n_intercepts])
    bounds += [(None, None)] * n_intercepts
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-7})
    coefficients = np.asarray(found.x, dtype=np.float64)
    return coefficients[:n_columns], float(share @ intercepts @ coefficients[n_columns:])


def smoothed(correct: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Platt's targets: labels moved inside (0, 1), so that separable data cannot give infinite slopes.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), section 2.2.
    """
    right = correct.sum()
    wrong = len(correct) - right
    targets: NDArray[np.float64] = np.where(correct > 0, (right + 1) / (right + 2), 1 / (wrong + 2))
    return targets


class PlattCurve(Frozen):
    """Logistic in the margin.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999).
    """

    kind: Literal["platt"] = "platt"
    slope: Slope
    intercept: LogOdds

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        return sigmoid(self.slope * margins + self.intercept)


class BetaCurve(Frozen):
    """Beta calibration of the margin's probability p: logit = a ln p − b ln(1 − p) + c.

    Source: Kull, Silva Filho and Flach, "Beta calibration" (AISTATS 2017), section 3.
    """

    kind: Literal["beta"] = "beta"
    a: Slope
    b: Slope
    c: LogOdds

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        columns = beta_columns(margins)
        return sigmoid(columns @ np.array([self.a, self.b]) + self.c)


def beta_columns(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ln p and −ln(1 − p) of each margin's probability p, ``(row, 2)``."""
    return np.stack([-np.logaddexp(0.0, -margins), np.logaddexp(0.0, margins)], axis=1)


class IsotonicCurve(Frozen):
    """Non-decreasing line through fitted knots; flat outside them.

    Source: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability estimates" (2002).
    """

    kind: Literal["isotonic"] = "isotonic"
    knots: tuple[LogOdds, ...] = Field(min_length=1)
    values: tuple[Share, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _never_decreases(self) -> IsotonicCurve:
        check_length(len(self.knots), values=self.values)
        check_ascending(knots=self.knots, values=self.values)
        return self

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        return np.interp(margins, self.knots, self.values)


SAME_TO = 9
"""Decimals to which a margin is compared with the knots: the last bit of a score must not move an answer off one."""


class VennAbersCurve(Frozen):
    """Inductive Venn-Abers prediction: isotonic fits with the new answer taken as wrong (p0) and as right (p1).

    Source: Vovk, Petej and Fedorova, "Large-scale probabilistic predictors with and without guarantees of validity"
    (NeurIPS 2015); the single probability p1 / (1 − p0 + p1) is their log-loss minimax merge.
    """

    kind: Literal["venn_abers"] = "venn_abers"
    knots: tuple[LogOdds, ...] = Field(min_length=1)
    """Distinct calibration margins, ascending."""
    if_wrong: tuple[Share, ...]
    """p0 at every knot and gap: before the first knot, at it, between it and the second, ... (2 · knots + 1)."""
    if_right: tuple[Share, ...]
    """p1 at the same places, nowhere below p0."""

    @model_validator(mode="after")
    def _never_decreases(self) -> VennAbersCurve:
        check_length(2 * len(self.knots) + 1, if_wrong=self.if_wrong, if_right=self.if_right)
        check_ascending(knots=self.knots, if_wrong=self.if_wrong, if_right=self.if_right)
        if any(low > high + ROUNDING for low, high in zip(self.if_wrong, self.if_right, strict=True)):
            msg = "if_right must not be below if_wrong"
            raise ValueError(msg)
        return self

    def bounds(self, margins: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return p0 and p1 for each margin; the fewer labels are near it, the wider apart they are."""
        knots, at = np.round(self.knots, SAME_TO), np.round(margins, SAME_TO)
        place = np.searchsorted(knots, at, "left") + np.searchsorted(knots, at, "right")
        return np.asarray(self.if_wrong)[place], np.asarray(self.if_right)[place]

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        low, high = self.bounds(margins)
        return high / (1 - low + high)


KEEPS_ORDER = 1e-3
"""Share of a plain logistic in a cautious curve: too little to be seen, enough to keep answers in order."""


class CautiousCurve(Frozen):
    """The lower of a fitted curve and a Venn-Abers curve.

    A fitted curve is too sure at the top where its shape goes on beyond the labels there; Venn-Abers follows the
    labels, and says less where they are few.
    """

    kind: Literal["cautious"] = "cautious"
    fitted: PlattCurve | BetaCurve | IsotonicCurve = Field(discriminator="kind")
    counted: VennAbersCurve

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin; answers where both curves are flat stay in order."""
        low = np.minimum(self.fitted.probabilities(margins), self.counted.probabilities(margins))
        return low + KEEPS_ORDER * (sigmoid(margins) - low)


class PercentileCurve(Frozen):
    """Share of reference answers that were less sure: not a probability, for use without labels."""

    kind: Literal["percentile"] = "percentile"
    margins: tuple[LogOdds, ...] = Field(min_length=1)
    """Distinct margins of the reference, ascending."""
    shares: tuple[Share, ...] = Field(min_length=1)
    """Share of the reference below each."""

    @model_validator(mode="after")
    def _never_decreases(self) -> PercentileCurve:
        check_length(len(self.margins), shares=self.shares)
        check_ascending(margins=self.margins, shares=self.shares)
        return self

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the percentile, in [0, 1], of each margin."""
        return np.interp(margins, self.margins, self.shares)


Curve = Annotated[
    PlattCurve | BetaCurve | IsotonicCurve | VennAbersCurve | CautiousCurve | PercentileCurve,
    Field(discriminator="kind"),
]
