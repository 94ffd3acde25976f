"""The fused model: standardised signals, one signed coefficient each, summed to a margin (log-odds before calibration).

A single score is the fused model of one signal. Applying it needs only numpy.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field, model_validator

from semgrad_guard.calibration.curves import LogOdds, fit_logistic
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.calibration.labels import Labels

Z_LIMIT = 4.0
"""Standardised values are clipped to this, so that one outlier cannot decide alone."""

NEGLIGIBLE = 1e-4
"""Weights up to this change of the log-odds per standard deviation count as zero."""


class SignalColumn(Frozen):
    """One signal of a fused model: how its raw values are standardised, and its coefficient."""

    name: str
    transform: Literal["identity", "log", "log1p"]
    """`log1p`, of 1 more than the value, for counts that may be 0."""
    floor: float = Field(default=0.0, ge=0)
    """Smallest value for `log`, more than 0 there; smaller values are raised to it."""
    mean: float
    scale: float = Field(gt=0)
    weight: LogOdds
    """Change of the margin per standard deviation; its sign follows the signal's direction."""
    required: bool = True
    """False where training rows lacked the signal too: a missing value then counts as the average."""
    average: float
    """Mean of the raw signal, for explanations."""

    @model_validator(mode="after")
    def _has_a_floor(self) -> SignalColumn:
        if self.transform == "log" and self.floor <= 0:
            msg = "floor must be more than 0 where the transform is log"
            raise ValueError(msg)
        return self

    def standardise(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standardised column; NaN stays NaN."""
        value = _transformed(raw, self.transform, self.floor)
        with np.errstate(over="ignore"):  # whatever overflows is clipped
            return np.clip((value - self.mean) / self.scale, -Z_LIMIT, Z_LIMIT)

    def filled(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standardised column with the average in place of missing values."""
        return np.nan_to_num(self.standardise(np.where(np.isfinite(raw), raw, np.nan)), nan=0.0)


def _transformed(raw: NDArray[np.float64], transform: str, floor: float) -> NDArray[np.float64]:
    if transform == "log":
        return np.log(np.maximum(raw, floor))
    return np.log1p(np.maximum(raw, 0.0)) if transform == "log1p" else raw


class FusedModel(Frozen):
    """A linear model that turns signals into a margin."""

    columns: tuple[SignalColumn, ...] = Field(min_length=1)
    intercept: LogOdds

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the signals that the model uses."""
        return tuple(column.name for column in self.columns)

    def pruned(self) -> FusedModel:
        """Return the model without signals of negligible weight, so that answers need not have them."""
        kept = tuple(column for column in self.columns if abs(column.weight) > NEGLIGIBLE)
        return FusedModel(columns=kept or self.columns[:1], intercept=self.intercept)

    def missing(self, signals: Mapping[str, float]) -> tuple[str, ...]:
        """Return the names of required signals that are absent, NaN or infinite."""
        return tuple(c.name for c in self.columns if c.required and not math.isfinite(signals.get(c.name, math.nan)))

    def parts(self, signals: Mapping[str, float]) -> NDArray[np.float64]:
        """Return each column's share of the margin relative to the average answer."""
        return np.array([c.weight * float(c.filled(np.array([signals.get(c.name, np.nan)]))[0]) for c in self.columns])

    def margin(self, signals: Mapping[str, float]) -> float:
        """Return the margin of one answer."""
        return float(self.parts(signals).sum()) + self.intercept

    def margins(self, signals: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the margin of each row of ``(row, signal)``, the columns in the order of `names`."""
        margin = np.full(len(signals), self.intercept)
        for j, column in enumerate(self.columns):
            margin += column.weight * column.filled(signals[:, j])
        return margin


def _skew(shape: NDArray[np.float64]) -> float:
    """Return how far the median is from the middle of the two outer quantiles, in [-1, 1]."""
    low, middle, high = shape
    return float((high + low - 2 * middle) / (high - low)) if high > low else 0.0


def _transform(present: NDArray[np.float64]) -> Literal["identity", "log", "log1p"]:
    shape = np.quantile(present, [0.05, 0.5, 0.95])
    if present.min() < 0:
        return "identity"
    if shape[0] > 0:
        return "log" if abs(_skew(np.log(shape))) < abs(_skew(shape)) else "identity"
    is_count = shape[2] > 1
    return "log1p" if is_count and abs(_skew(np.log1p(shape))) < abs(_skew(shape)) else "identity"


def standardiser(name: str, raw: NDArray[np.float64], *, required: bool) -> SignalColumn:
    """Return the column that standardises a signal, from its values in the training rows; its weight is still 0.

    Positive signals use a log scale where that makes them more symmetric: gradient norms span orders of magnitude, and
    counts have long tails.
    """
    present = raw[np.isfinite(raw)]
    transform = _transform(present)
    floor = float(present[present > 0].min()) if transform == "log" else 0.0
    value = _transformed(present, transform, floor)
    spread = float(value.std())
    return SignalColumn(
        name=name,
        transform=transform,
        floor=floor,
        mean=float(value.mean()),
        scale=spread if spread > 1e-12 * max(1.0, abs(float(value.mean()))) else 1.0,
        weight=0.0,
        required=required,
        average=float(present.mean()),
    )


def fit_fused(labels: Labels, *, signs: Sequence[int], required: Sequence[bool], ridge: float) -> FusedModel:
    """Return the model with the lowest ridge-penalised log-loss whose coefficients have the allowed signs.

    Args:
        labels: training rows.
        signs: direction of each signal: 1 (may only raise confidence), -1 (may only lower it) or 0.
        required: whether each signal must be there when the model is applied.
        ridge: strength of the penalty on standardised coefficients.
    """
    columns = [
        standardiser(name, labels.signals[labels.honest, j], required=required[j])
        for j, name in enumerate(labels.names)
    ]
    design = np.stack([c.filled(labels.signals[:, j]) for j, c in enumerate(columns)], axis=1)
    weights, intercept = fit_weights(design, labels, signs=signs, ridge=ridge)
    fitted = [c.model_copy(update={"weight": float(w)}) for c, w in zip(columns, weights, strict=True)]
    return FusedModel(columns=tuple(fitted), intercept=intercept)


def fit_weights(
    design: NDArray[np.float64], labels: Labels, *, signs: Sequence[int], ridge: float
) -> tuple[NDArray[np.float64], float]:
    """Return the weight of each standardised column of `design`, ``(row, column)``, and the intercept."""
    return fit_logistic(design, labels.correct, signs=signs, ridge=ridge, weights=labels.weights, strata=labels.strata)
