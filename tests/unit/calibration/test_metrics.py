"""Metrics against numbers worked out by hand and against scikit-learn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn import metrics as sk

from semgrad_guard.calibration import metrics

if TYPE_CHECKING:
    from semgrad_guard.calibration.metrics import Metric

ALL = [metrics.auroc, metrics.auprc, metrics.aurc, metrics.prr, metrics.ece, metrics.brier, metrics.log_loss]

# Surest first: right, wrong, right, right, wrong.
CONFIDENCE = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
CORRECT = np.array([1.0, 0.0, 1.0, 1.0, 0.0])


def random_data(seed: int, n: int = 200, decimals: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return rounded confidences (many ties) and labels."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.random(n), decimals)
    return confidence, (rng.random(n) < confidence).astype(float)


def test_auroc_by_hand() -> None:
    """Of 3 × 2 pairs, right before wrong in: 0.9 twice, 0.7 and 0.6 once each; 4 / 6."""
    assert metrics.auroc(CONFIDENCE, CORRECT) == pytest.approx(4 / 6)


def test_auprc_by_hand() -> None:
    """Least sure first: wrong at rank 1 (precision 1) and at rank 4 (precision 2/4); mean 0.75."""
    assert metrics.auprc(CONFIDENCE, CORRECT) == pytest.approx(0.75)


def test_aurc_by_hand() -> None:
    """Errors among the k surest: 0/1, 1/2, 1/3, 1/4, 2/5; their mean."""
    assert metrics.aurc(CONFIDENCE, CORRECT) == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5)


def test_prr_by_hand() -> None:
    """Chance 2/5; the best order has errors 0, 0, 0, 1/4, 2/5; the share of that gain that is reached."""
    best = (1 / 4 + 2 / 5) / 5
    ours = (1 / 2 + 1 / 3 + 1 / 4 + 2 / 5) / 5
    assert metrics.prr(CONFIDENCE, CORRECT) == pytest.approx((2 / 5 - ours) / (2 / 5 - best))


def test_prr_of_a_perfect_order_is_one_and_of_one_value_zero() -> None:
    """Both ends of the scale."""
    assert metrics.prr(np.array([0.9, 0.8, 0.1, 0.2]), np.array([1, 1, 0, 0.0])) == pytest.approx(1)
    assert metrics.prr(np.full(4, 0.5), np.array([1, 1, 0, 0.0])) == pytest.approx(0)


def test_ties_share_their_error_whatever_the_order_of_rows() -> None:
    """Two rows of one confidence, one right and one wrong: half an error each, in either order."""
    for correct in ([1.0, 0.0], [0.0, 1.0]):
        assert metrics.aurc(np.array([0.5, 0.5]), np.array(correct)) == pytest.approx(0.5)


def test_coverage_at_risk_by_hand() -> None:
    """At most 1/3 wrong: the surest 3 have 1/3, the surest 4 have 1/4, all five 2/5; so 4/5."""
    assert metrics.coverage_at_risk(1 / 3)(CONFIDENCE, CORRECT) == pytest.approx(4 / 5)
    assert metrics.coverage_at_risk(0.0)(CONFIDENCE, CORRECT) == pytest.approx(1 / 5)


def test_coverage_at_risk_does_not_split_ties() -> None:
    """A threshold accepts all answers of one confidence or none."""
    assert metrics.coverage_at_risk(0.0)(np.array([0.9, 0.9]), np.array([1.0, 0.0])) == 0.0


def test_brier_by_hand() -> None:
    """Squares of 0.1, 0.8, 0.3, 0.4, 0.5; mean 1.15 / 5."""
    assert metrics.brier(CONFIDENCE, CORRECT) == pytest.approx(1.15 / 5)


def test_log_loss_by_hand() -> None:
    """The mean of −ln of what was given to the truth: 0.9, 0.2, 0.7, 0.6, 0.5."""
    expected = -np.log([0.9, 0.2, 0.7, 0.6, 0.5]).mean()
    assert metrics.log_loss(CONFIDENCE, CORRECT) == pytest.approx(expected)


def test_ece_by_hand() -> None:
    """Two halves of two: gaps |0.35 − 0.5| and |0.85 − 0.5|, each half of the answers."""
    confidence, correct = np.array([0.3, 0.4, 0.8, 0.9]), np.array([1.0, 0.0, 1.0, 0.0])
    for bins in ("mass", "width"):
        two_bins = metrics.expected_calibration_error(bins, 2)
        assert two_bins(confidence, correct) == pytest.approx(0.5 * 0.15 + 0.5 * 0.35)


def test_ece_of_an_honest_confidence_is_small_and_of_a_boast_large() -> None:
    """The number means what it says: 0.9 said where 0.5 is true is a gap of 0.4."""
    rng = np.random.default_rng(0)
    confidence = rng.random(50_000)
    correct = (rng.random(50_000) < confidence).astype(float)
    assert metrics.ece(confidence, correct) < 0.01
    assert metrics.ece(np.full(50_000, 0.9), (rng.random(50_000) < 0.5).astype(float)) == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_metrics_equal_scikit_learn(seed: int) -> None:
    """Ties included; scikit-learn's positive class for average precision is the wrong answer."""
    confidence, correct = random_data(seed)
    assert metrics.auroc(confidence, correct) == pytest.approx(sk.roc_auc_score(correct, confidence))
    assert metrics.auprc(confidence, correct) == pytest.approx(sk.average_precision_score(1 - correct, -confidence))


@pytest.mark.parametrize("seed", range(5))
def test_probability_metrics_equal_scikit_learn(seed: int) -> None:
    """Brier and log-loss, away from 0 and 1 where clipping differs."""
    confidence, correct = random_data(seed)
    confidence = np.clip(confidence, 0.05, 0.95)
    assert metrics.brier(confidence, correct) == pytest.approx(sk.brier_score_loss(correct, confidence))
    assert metrics.log_loss(confidence, correct) == pytest.approx(sk.log_loss(correct, confidence))


@pytest.mark.parametrize("metric", [m for m in ALL if m is not metrics.ece], ids=lambda m: m.__name__)
def test_a_weight_of_two_counts_as_two_rows(metric: Metric) -> None:
    """The bootstrap's weights mean what repeating rows means (ECE keeps its bins, so it is not among these)."""
    confidence, correct = random_data(7, 60, 3)
    weights = np.random.default_rng(8).integers(1, 4, 60)
    repeated = metric(np.repeat(confidence, weights), np.repeat(correct, weights))
    tolerance = (
        0.02 if metric in {metrics.aurc, metrics.prr} else 1e-9
    )  # risk inside a repeated row is not interpolated
    assert metric(confidence, correct, weights[None, :].astype(float))[0] == pytest.approx(repeated, abs=tolerance)


@pytest.mark.parametrize("metric", ALL, ids=lambda m: m.__name__)
def test_unit_weights_change_nothing(metric: Metric) -> None:
    """The two call forms agree, draw by draw."""
    confidence, correct = random_data(9)
    assert metric(confidence, correct, np.ones((3, 200))) == pytest.approx(np.full(3, metric(confidence, correct)))


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.prr], ids=lambda m: m.__name__)
def test_one_class_has_no_ranking(metric: Metric) -> None:
    """Not a number is the honest answer where nothing can be ranked."""
    assert math.isnan(metric(CONFIDENCE, np.ones(5)))
