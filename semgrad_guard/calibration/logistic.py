"""Logistic regression whose coefficients keep a sign: the one optimiser behind Platt, beta and fused confidence.

scikit-learn's own logistic regression has no sign constraints, and betacal, the package for beta calibration, has had
no release since 2021; both are this bounded likelihood with different columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from semgrad_guard.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def sigmoid(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each log-odds, without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * log_odds))


def log_odds(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of each probability inside (0, 1)."""
    return np.log(probability) - np.log1p(-probability)


def fit_logistic(
    columns: NDArray[np.float64], target: NDArray[np.float64], *, signs: Sequence[int], ridge: float = 0.0
) -> tuple[NDArray[np.float64], float]:
    """Return coefficients and intercept that minimise mean log-loss + ridge / 2 · |coefficients|².

    Args:
        columns: ``(row, column)``, standardised where `ridge` is not 0.
        target: probability of being correct of each row, in [0, 1]; labels, or smoothed labels.
        signs: for each column 1 (coefficient >= 0), -1 (<= 0) or 0 (free).
        ridge: strength of the penalty; the intercept is not penalised.
    """
    minimize = require("scipy.optimize", extra="evaluation").minimize
    design = np.hstack([columns, np.ones((len(columns), 1))])
    penalty = np.append(np.full(columns.shape[1], ridge), 0.0)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margin = design @ weights
        value = np.mean(np.logaddexp(0.0, margin) - target * margin) + 0.5 * np.sum(penalty * weights**2)
        return float(value), design.T @ (sigmoid(margin) - target) / len(target) + penalty * weights

    bounds = [{1: (0.0, None), -1: (None, 0.0), 0: (None, None)}[sign] for sign in signs]
    rate = np.clip(target.mean(), 1e-6, 1 - 1e-6)
    start = np.append(np.zeros(columns.shape[1]), np.log(rate / (1 - rate)))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[*bounds, (None, None)], options={"gtol": 1e-7})
    weights = np.asarray(found.x, dtype=np.float64)
    return weights[:-1], float(weights[-1])


def smoothed(correct: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Platt's targets: labels pulled inside (0, 1), so that separable data cannot give endless slopes.

    Source: Platt, "Probabilistic outputs for support vector machines" (1999), section 2.2.
    """
    right = correct.sum()
    wrong = len(correct) - right
    targets: NDArray[np.float64] = np.where(correct > 0, (right + 1) / (right + 2), 1 / (wrong + 2))
    return targets
