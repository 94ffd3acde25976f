"""Fits the whole way from signals to confidence on some rows: signal choice, fused model, calibration curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.curve_fitting import edge, fit_curve, fit_platt
from semgrad_guard.calibration.fused import FusedModel, fit_fused
from semgrad_guard.calibration.labels import grouped_folds
from semgrad_guard.calibration.metrics import auroc, log_loss
from semgrad_guard.calibration.wording import direction_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from semgrad_guard.calibration.curve_fitting import CalibratorName, FittedCurve
    from semgrad_guard.calibration.labels import Labels

RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
"""Penalties tried for the fused model; the one of lowest cross-validated log-loss is kept."""
MIN_FUSED = 50
"""Below this many labels a fused model is not better than the best single score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to fit; the same plan is carried out on all rows and inside every fold."""

    method: str
    """`fused`, `best` (the best single score) or a signal's name."""
    calibrator: CalibratorName
    required: Mapping[str, bool]
    """Usable signals, and whether each must be there when the profile is applied."""
    directions: Mapping[str, int] = field(default_factory=dict[str, int])
    seed: int = 0

    def sign(self, name: str) -> int:
        """Return the direction of a signal."""
        return direction_of(name, self.directions)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fitted way from signals to confidence."""

    model: FusedModel
    curve: FittedCurve
    edge: float
    """Confidence keeps this distance from 0 and 1."""

    def confidences(self, labels: Labels) -> NDArray[np.float64]:
        """Return the confidence of each row."""
        margins = self.model.margins(labels.select(self.model.names).signals)
        return np.clip(self.curve.probabilities(margins), self.edge, 1 - self.edge)


def fit(labels: Labels, plan: Plan) -> Fitted:
    """Return what the plan gives on these rows."""
    names = _signals(labels, plan)
    rows = labels.select(names)
    ridge, margins = _tuned(rows, plan) if len(names) > 1 else (RIDGES[0], None)
    model = _fit_model(rows, plan, ridge)
    if margins is None:
        margins = model.margins(rows.signals)
    curve = fit_curve(margins, rows.correct, rows.groups, calibrator=plan.calibrator, seed=plan.seed)
    return Fitted(model.pruned(), curve, edge(len(rows)))


def out_of_fold(labels: Labels, plan: Plan) -> NDArray[np.float64]:
    """Return for each row the confidence from a fit of the whole plan on other groups' rows."""
    confidence = np.empty(len(labels))
    for test in grouped_folds(labels.correct, labels.groups, seed=plan.seed):
        confidence[test] = fit(labels.take(~test), plan).confidences(labels.take(test))
    return confidence


def _signals(labels: Labels, plan: Plan) -> tuple[str, ...]:
    """Return the signals to use on these rows."""
    if plan.method == "fused":
        return tuple(plan.required)
    if plan.method != "best":
        return (plan.method,)
    directed = [name for name in plan.required if plan.sign(name)] or list(plan.required)
    values = labels.select(directed).signals
    quality = {name: _ranking(values[:, j], labels.correct, plan.sign(name)) for j, name in enumerate(directed)}
    return (max(directed, key=quality.__getitem__),)


def _ranking(values: NDArray[np.float64], correct: NDArray[np.float64], sign: int) -> float:
    """Return how well a signal ranks right before wrong answers, rows without it left out."""
    present = np.isfinite(values)
    found = auroc((sign or 1) * values[present], correct[present])
    return found if sign else max(found, 1 - found)


def _fit_model(labels: Labels, plan: Plan, ridge: float) -> FusedModel:
    """Return the fused model of these rows."""
    return fit_fused(
        labels,
        signs=[plan.sign(name) for name in labels.names],
        required=[plan.required[name] for name in labels.names],
        ridge=ridge,
    )


def _tuned(labels: Labels, plan: Plan) -> tuple[float, NDArray[np.float64]]:
    """Return the penalty of lowest cross-validated log-loss, and the out-of-fold margins that it gives."""
    folds = grouped_folds(labels.correct, labels.groups, seed=plan.seed + 1)
    margins = {ridge: np.empty(len(labels)) for ridge in RIDGES}
    for test in folds:
        train = labels.take(~test)
        for ridge in RIDGES:
            margins[ridge][test] = _fit_model(train, plan, ridge).margins(labels.signals[test])
    best = min(RIDGES, key=lambda ridge: _recalibrated_loss(margins[ridge], labels.correct))
    return best, margins[best]


def _recalibrated_loss(margins: NDArray[np.float64], correct: NDArray[np.float64]) -> float:
    """Return the log-loss after Platt scaling: a penalty shrinks margins, which the calibration curve undoes anyway."""
    return log_loss(fit_platt(margins, correct).probabilities(margins), correct)
