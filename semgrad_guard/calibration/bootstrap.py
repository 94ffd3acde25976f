"""Bootstrap intervals that resample whole groups: answers to one question are not independent evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from semgrad_guard.calibration.frozen import Frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from semgrad_guard.calibration.metrics import Metric

    Array = NDArray[np.float64]

DRAWS = 1_000
LEVEL = 0.95
CHUNK_CELLS = 2_000_000
"""Weights held in memory at once, rows times draws."""


class Interval(Frozen):
    """A metric with its percentile bootstrap interval; `None` where the metric is not defined on the data."""

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = Field(default=LEVEL, gt=0, lt=1)

    def text(self) -> str:
        """Return the value and its interval in words."""
        if self.value is None:
            return "undefined"
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def with_interval(
    metric: Metric,
    confidence: Array,
    correct: Array,
    groups: NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return a metric with its interval.

    Args:
        metric: one of `metrics`.
        confidence: one number per answer, higher is surer.
        correct: 1 or 0 per answer.
        groups: group of each answer; whole groups are resampled. `None` makes each answer its own.
        draws: number of resamples.
        seed: seed of the resampling; equal seeds and groups give the same resamples.
    """
    resampled = [metric(confidence, correct, weights) for weights in _weights(len(correct), groups, draws, seed)]
    return _interval(metric(confidence, correct), np.concatenate(resampled), centred=metric.biased)


def paired_difference(  # noqa: PLR0913 - `with_interval` and the other confidence
    metric: Metric,
    confidence: Array,
    other: Array,
    correct: Array,
    groups: NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return metric(confidence) − metric(other) on the same answers, with its interval over common resamples."""
    resampled = [
        metric(confidence, correct, weights) - metric(other, correct, weights)
        for weights in _weights(len(correct), groups, draws, seed)
    ]
    difference = metric(confidence, correct) - metric(other, correct)
    return _interval(difference, np.concatenate(resampled), centred=metric.biased)


def _weights(n: int, groups: NDArray[np.int64] | None, draws: int, seed: int) -> Iterator[Array]:
    """Yield how often each row counts, ``(draw, row)``, a bounded number of draws at a time."""
    rng = np.random.default_rng(seed)
    index = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_groups = int(index.max()) + 1
    even = np.full(n_groups, 1.0 / n_groups)
    at_once = max(1, CHUNK_CELLS // n)
    for start in range(0, draws, at_once):
        counts = rng.multinomial(n_groups, even, size=min(at_once, draws - start))
        yield counts[:, index].astype(np.float64)


def _interval(value: float, resampled: Array, *, centred: bool) -> Interval:
    """Return the percentile interval, resamples on which the metric is undefined left out.

    Resampling adds noise to a metric that noise can only raise (ECE), so its resamples are first shifted back to the
    value that was measured.
    """
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(value):
        return Interval(value=None)
    if len(defined) < 2:
        return Interval(value=float(value))
    shift = value - defined.mean() if centred else 0.0
    low, high = np.quantile(defined + shift, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))
