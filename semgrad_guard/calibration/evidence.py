"""Measures the evidence of a profile: each metric with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration import metrics
from semgrad_guard.calibration.metrics import DRAWS, Interval, with_interval
from semgrad_guard.calibration.profile import Evidence, Reference
from semgrad_guard.signals import direction_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from semgrad_guard.calibration.fused import FusedModel
    from semgrad_guard.calibration.labels import Labels

N_QUANTILES = 201
"""Points of a reference distribution."""


def measure(
    confidence: NDArray[np.float64],
    labels: Labels,
    *,
    directions: Mapping[str, int] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Evidence:
    """Return the evidence for out-of-sample confidences, including the AUROC of every single signal."""

    def interval(metric: metrics.Metric) -> Interval:
        return with_interval(metric, confidence, labels.correct, labels.groups, draws=draws, seed=seed)

    return Evidence(
        auroc=interval(metrics.auroc),
        auprc=interval(metrics.auprc),
        prr=interval(metrics.prr),
        aurc=interval(metrics.aurc),
        ece=interval(metrics.ece),
        brier=interval(metrics.brier),
        log_loss=interval(metrics.log_loss),
        signals={
            name: _signal(labels, j, direction_of(name, directions), draws, seed) for j, name in enumerate(labels.names)
        },
    )


def _signal(labels: Labels, column: int, direction: int, draws: int, seed: int) -> Interval:
    """Return the AUROC of one signal, over the rows that have it; without a known direction, higher counts as surer."""
    values = labels.signals[:, column]
    rows = np.isfinite(values)
    if not rows.any():
        return Interval(value=None)
    return with_interval(
        metrics.auroc,
        (direction or 1) * values[rows],
        labels.correct[rows],
        labels.groups[rows],
        draws=draws,
        seed=seed,
    )


def reference_of(model: FusedModel, labels: Labels) -> Reference:
    """Return the distributions of margin and signals that later scores are compared with."""
    rows = labels.select(model.names)
    return Reference(
        n=len(rows),
        margin=_quantiles(model.margins(rows.signals)),
        signals={name: _quantiles(rows.signals[:, j]) for j, name in enumerate(rows.names)},
    )


def _quantiles(values: NDArray[np.float64]) -> tuple[float, ...]:
    """Return the quantiles at evenly spaced shares, or all values, sorted, where there are few."""
    present = np.sort(values[np.isfinite(values)])
    if len(present) > N_QUANTILES:
        present = np.quantile(present, np.linspace(0, 1, N_QUANTILES))
    return tuple(float(v) for v in present)
