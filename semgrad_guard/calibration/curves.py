"""Calibration curves: a margin (log-odds before calibration) becomes a probability. Applying one needs only numpy.

Each curve is a few plain numbers, rises nowhere-decreasingly with the margin, and is fitted by `curve_fitting`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from semgrad_guard.calibration.frozen import Frozen
from semgrad_guard.calibration.logistic import sigmoid

if TYPE_CHECKING:
    from numpy.typing import NDArray


class PlattCurve(Frozen):
    """Logistic in the margin.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999).
    """

    kind: Literal["platt"] = "platt"
    slope: float = Field(ge=0)
    intercept: float

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        return sigmoid(self.slope * margins + self.intercept)


class BetaCurve(Frozen):
    """Beta calibration of the margin's probability p: logit = a ln p − b ln(1 − p) + c.

    Source: Kull, Silva Filho and Flach, "Beta calibration" (AISTATS 2017), section 3.
    """

    kind: Literal["beta"] = "beta"
    a: float = Field(ge=0)
    b: float = Field(ge=0)
    c: float

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
    knots: tuple[float, ...] = Field(min_length=1)
    values: tuple[float, ...] = Field(min_length=1)

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        return np.interp(margins, self.knots, self.values)


class VennAbersCurve(Frozen):
    """Inductive Venn-Abers prediction: isotonic fits with the new answer taken as wrong (p0) and as right (p1).

    Source: Vovk, Petej and Fedorova, "Large-scale probabilistic predictors with and without guarantees of validity"
    (NeurIPS 2015); the single probability p1 / (1 − p0 + p1) is their log-loss minimax merge.
    """

    kind: Literal["venn_abers"] = "venn_abers"
    knots: tuple[float, ...] = Field(min_length=1)
    """Distinct calibration margins, ascending."""
    if_wrong: tuple[float, ...]
    """p0 at every knot and gap: before the first knot, at it, between it and the second, ... (2 · knots + 1)."""
    if_right: tuple[float, ...]
    """p1 at the same places."""

    def bounds(self, margins: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return p0 and p1 for each margin; the wider apart, the fewer labels speak about it."""
        place = np.searchsorted(self.knots, margins, "left") + np.searchsorted(self.knots, margins, "right")
        return np.asarray(self.if_wrong)[place], np.asarray(self.if_right)[place]

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(correct) for each margin."""
        low, high = self.bounds(margins)
        return high / (1 - low + high)


class PercentileCurve(Frozen):
    """Share of reference answers that were less sure: no probability, for use without labels."""

    kind: Literal["percentile"] = "percentile"
    margins: tuple[float, ...] = Field(min_length=1)
    """Distinct margins of the reference, ascending."""
    shares: tuple[float, ...] = Field(min_length=1)
    """Share of the reference below each."""

    def probabilities(self, margins: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the percentile, in [0, 1], of each margin."""
        return np.interp(margins, self.margins, self.shares)


Curve = Annotated[
    PlattCurve | BetaCurve | IsotonicCurve | VennAbersCurve | PercentileCurve, Field(discriminator="kind")
]
