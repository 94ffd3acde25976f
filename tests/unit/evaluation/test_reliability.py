"""The reliability plot's numbers, and that it is written."""

from __future__ import annotations

import numpy as np
import pytest

from semgrad_guard.evaluation.reliability import bins_of, save_reliability_plot, wilson


def test_bins_by_hand() -> None:
    """Two bins of two: mean confidence, share right, count."""
    found = bins_of(np.array([0.1, 0.3, 0.7, 0.9]), np.array([0.0, 1.0, 1.0, 1.0]), 2)
    assert found == [(pytest.approx(0.2), 0.5, 2), (pytest.approx(0.8), 1.0, 2)]


def test_equal_confidences_make_one_bin() -> None:
    """Isotonic curves give few distinct values."""
    assert bins_of(np.full(10, 0.4), np.tile([0.0, 1.0], 5)) == [(pytest.approx(0.4), 0.5, 10)]


def test_wilson_by_hand() -> None:
    """10 of 10: from 10 / (10 + 1.96²) to 1; half: symmetric."""
    low, high = wilson(np.array([1.0, 0.5]), np.array([10.0, 10.0]))
    assert (low[0], high[0]) == pytest.approx((10 / (10 + 1.96**2), 1.0))
    assert low[1] + high[1] == pytest.approx(1.0)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_plot_is_written(tmp_path, ending: str) -> None:
    """The file's ending says the format."""
    rng = np.random.default_rng(0)
    confidence = rng.random(100)
    path = tmp_path / f"plot.{ending}"
    save_reliability_plot(path, confidence, (rng.random(100) < confidence).astype(float), title="t")
    assert path.read_bytes()[:5] in {b"\x89PNG\r", b"<?xml"}
