"""Intervals that know that answers to one question are not independent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from semgrad_guard.calibration import metrics
from semgrad_guard.calibration.metrics import paired_difference, with_interval

if TYPE_CHECKING:
    from semgrad_guard.calibration.metrics import Metric


def drawn(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return honest confidences and labels."""
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    return confidence, (rng.random(n) < confidence).astype(float)


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.ece], ids=lambda m: m.__name__)
def test_the_value_lies_inside_its_interval(metric: Metric) -> None:
    """For a smooth metric, and for the one that resampling inflates: always, not by luck."""
    for seed in range(8):
        found = with_interval(metric, *drawn(400, seed), draws=200)
        assert found.low < found.value < found.high


def test_the_interval_of_a_mean_has_the_known_width() -> None:
    """Brier of n independent rows: 1.96 standard errors each way."""
    confidence, correct = drawn(400)
    found = with_interval(metrics.brier, confidence, correct, draws=2_000)
    error = np.std((confidence - correct) ** 2) / np.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_copies_of_a_question_do_not_narrow_the_interval() -> None:
    """Ten copies of each row are no more evidence than one, if they share a group."""
    confidence, correct = drawn(100)
    once = with_interval(metrics.brier, confidence, correct, draws=500)
    copies = with_interval(
        metrics.brier, np.repeat(confidence, 10), np.repeat(correct, 10), np.repeat(np.arange(100), 10), draws=500
    )
    blind = with_interval(metrics.brier, np.repeat(confidence, 10), np.repeat(correct, 10), draws=500)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
    assert blind.high - blind.low < 0.5 * (once.high - once.low)


def test_equal_seeds_give_equal_intervals_whatever_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by drawing in chunks; the numbers do not depend on it."""
    first = with_interval(metrics.auroc, *drawn(50), draws=64, seed=3)
    monkeypatch.setattr("semgrad_guard.calibration.metrics.CHUNK_CELLS", 500)
    assert with_interval(metrics.auroc, *drawn(50), draws=64, seed=3) == first


def test_a_paired_difference_is_narrower_than_the_two_intervals() -> None:
    """Two nearly equal confidences on the same answers differ by almost nothing, and it is known precisely."""
    confidence, correct = drawn(300)
    other = confidence + np.random.default_rng(1).normal(0, 0.02, 300)
    difference = paired_difference(metrics.auroc, confidence, other, correct, draws=300)
    alone = with_interval(metrics.auroc, confidence, correct, draws=300)
    assert abs(difference.value) < 0.01
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)


def test_a_paired_difference_finds_the_better_one() -> None:
    """Confidence against pure chance: the interval excludes 0."""
    confidence, correct = drawn(300)
    chance = np.random.default_rng(1).random(300)
    assert paired_difference(metrics.auroc, confidence, chance, correct, draws=300).low > 0


def test_an_undefined_metric_has_no_interval() -> None:
    """One class: nothing is claimed."""
    found = with_interval(metrics.auroc, np.array([0.1, 0.2]), np.ones(2), draws=10)
    assert (found.value, found.low, found.high) == (None, None, None)
    assert found.text() == "undefined"


def test_text_gives_value_and_interval() -> None:
    """What tables print."""
    assert with_interval(metrics.brier, np.full(4, 0.5), np.array([1, 0, 1, 0.0]), draws=10).text() == (
        "0.250 (0.250 to 0.250)"
    )
