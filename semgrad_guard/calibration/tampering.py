"""Weights of the signs that an answer was made to look right, learnt from answers that were made so.

Few honest answers show such a sign, so labels of honest answers cannot say what it is worth. Each gets the smallest
weight with which answers that were made to look right, and show it, are rarely accepted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.calibration.evidence import thresholds
from semgrad_guard.calibration.fused import FusedModel, SignalColumn
from semgrad_guard.signals import TAMPERING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from semgrad_guard.calibration.labels import Labels

    Array = NDArray[np.float64]

MADE_ACCEPTED = 0.05
"""Share of a kind of adversarial answers that may be accepted, at the thresholds of `left_out`."""
RESERVE = 1.5
"""The weight found is raised by this factor, because other data need more."""
SHOWN = 0.5
"""An answer shows a sign from this value on, and a kind where this share of its answers does."""
MIN_SHOWING = 10
"""Fewer answers of a kind teach nothing."""
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Weights tried, in standard deviations of the honest answers' margins."""


def with_tampering(model: FusedModel, labels: Labels, margins: Array) -> tuple[FusedModel, Array]:
    """Return a model with the signs of tampering that its adversarial rows call for, and the rows' new margins.

    Each kind of adversarial answers raises the weight of the sign that most of them show, until few of those are
    accepted, and then that of every other sign that most of them show.

    Args:
        model: fitted without such signs.
        labels: the rows, honest and adversarial, with all their signals.
        margins: each row's margin by the model, or by one fitted on other rows.
    """
    names = tuple(name for name in labels.names if name in TAMPERING)
    if not names or not (labels.honest & (labels.correct > 0)).any():
        return model, margins
    signs = np.nan_to_num(labels.select(names).signals)
    unit = float(margins[labels.honest].std()) or 1.0
    weights = np.zeros(len(names))
    kinds = np.array(labels.kinds, dtype=object)
    for kind in sorted({kind for kind in labels.kinds if kind is not None}):
        of_kind = kinds == kind
        share = (signs[of_kind] >= SHOWN).mean(axis=0)
        for sign in np.argsort(-share, kind="stable"):
            showing = of_kind & (signs[:, sign] >= SHOWN)
            if share[sign] >= SHOWN and showing.sum() >= MIN_SHOWING:
                others = margins - signs @ np.where(np.arange(len(names)) == sign, 0.0, weights)
                found = _smallest_weight(others, signs[:, sign], labels, showing, unit)
                weights[sign] = max(weights[sign], found)
    used = [_column(name, -weight) for name, weight in zip(names, weights, strict=True) if weight > 0]
    return FusedModel(columns=(*model.columns, *used), intercept=model.intercept), margins - signs @ weights


def _smallest_weight(margins: Array, sign: Array, labels: Labels, showing: NDArray[np.bool_], unit: float) -> float:
    for weight in (unit * step for step in WEIGHTS):
        lowered = margins - weight * sign
        if (lowered >= thresholds(lowered, labels))[showing].mean() <= MADE_ACCEPTED:
            return RESERVE * weight
    return unit * WEIGHTS[-1]


def _column(name: str, weight: float) -> SignalColumn:
    """Return a column that adds its weight for each unit of the raw signal, and nothing where there is no sign."""
    return SignalColumn(
        name=name, transform="identity", mean=0.0, scale=1.0, weight=weight, required=False, average=0.0
    )
