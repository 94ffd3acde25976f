"""Metrics of a confidence, for ranking and calibration, each computed for many weightings of the same answers at once.

Every metric takes `confidence` (higher is surer; any real number for the ranking metrics), `correct` (1 or 0) and
optional `weights` ``(draw, row)``, whole numbers that say how often each row counts. It returns one value per draw, or
one number without weights. The bootstrap resamples the weights. A metric is NaN where it is not defined, for example
AUROC with one class only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from pydantic import Field

from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

N_BINS = 10
"""Bins of the expected calibration error."""
SMALLEST = 1e-12
"""Probabilities are kept this far from 0 and 1 in the log-loss."""


class Metric:
    """A metric that can be computed once, or for many weightings at once."""

    def __init__(self, weighted: Callable[[Array, Array, Array], Array], *, biased: bool = False) -> None:
        """Store the weighted form, and whether noise alone raises the metric."""
        self._weighted = weighted
        self.biased = biased
        self.__name__ = weighted.__name__
        self.__doc__ = weighted.__doc__

    @overload
    def __call__(self, confidence: Array, correct: Array) -> float: ...
    @overload
    def __call__(self, confidence: Array, correct: Array, weights: Array) -> Array: ...
    def __call__(self, confidence: Array, correct: Array, weights: Array | None = None) -> float | Array:
        """Return the metric, or one per row of `weights`."""
        confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
        given = np.ones((1, len(confidence))) if weights is None else weights
        values = self._weighted(confidence, correct, given)
        return float(values[0]) if weights is None else values


def _ratio(part: Array, whole: Array) -> Array:
    """Return part / whole; NaN where the whole is 0."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan, dtype=np.float64), where=whole != 0)


def _mean(values: Array, weights: Array) -> Array:
    """Return the weighted mean of the rows for each weighting."""
    return _ratio(weights @ values, weights.sum(axis=1))


def share_right_above(threshold: float) -> Metric:
    """Return the metric: share of right answers among those with at least this confidence; NaN where there are none."""

    def right_above(confidence: Array, correct: Array, weights: Array) -> Array:
        taken = weights * (confidence >= threshold)
        return _ratio(taken @ correct, taken.sum(axis=1))

    return Metric(right_above)


def auroc_within(confidence: Array, correct: Array, kinds: NDArray[np.int64]) -> float:
    """Return the probability that a right answer is surer than a wrong one of the same kind, ties counting half.

    Args:
        confidence: of each answer.
        correct: 1 or 0 for each.
        kinds: the kind of each answer, such as its question or its author; pairs of two kinds are not compared.
    """
    won = pairs = 0.0
    for kind in np.unique(kinds):
        rows = kinds == kind
        right, wrong = confidence[rows & (correct > 0)], confidence[rows & (correct == 0)]
        won += float((right[:, None] > wrong).sum() + 0.5 * (right[:, None] == wrong).sum())
        pairs += len(right) * len(wrong)
    return won / pairs if pairs else float("nan")


def _tied(ordered: Array) -> NDArray[np.int64]:
    """Return where each run of equal values starts."""
    return np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))


def _surest_first(confidence: Array, correct: Array, weights: Array) -> tuple[Array, Array]:
    """Return the cumulative weight of all and of wrong answers at each distinct confidence, surest first."""
    order = np.argsort(-confidence, kind="stable")
    starts = _tied(confidence[order])
    rows = weights[:, order]
    total = np.add.reduceat(rows, starts, axis=1)
    wrong = np.add.reduceat(rows * (1 - correct[order]), starts, axis=1)
    return np.cumsum(total, axis=1), np.cumsum(wrong, axis=1)


@Metric
def auroc(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the probability that a right answer is surer than a wrong one, ties counting half; 0.5 is chance."""
    total, wrong = _surest_first(confidence, correct, weights)
    step_wrong = np.diff(wrong, axis=1, prepend=0.0)
    step_right = np.diff(total, axis=1, prepend=0.0) - step_wrong
    wrong_below = wrong[:, -1:] - wrong
    pairs = (step_right * (wrong_below + 0.5 * step_wrong)).sum(axis=1)
    n_wrong = wrong[:, -1]
    return _ratio(pairs, n_wrong * (total[:, -1] - n_wrong))


@Metric
def auprc(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the average precision of finding wrong answers, least sure first; the share of wrong answers is chance."""
    total, wrong = _surest_first(-confidence, correct, weights)
    precision = np.nan_to_num(_ratio(wrong, total))
    return _ratio((np.diff(wrong, axis=1, prepend=0.0) * precision).sum(axis=1), wrong[:, -1])


@Metric
def aurc(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the area under the risk-coverage curve: error among the k surest answers, averaged over k.

    Source: Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation" (ICLR 2019). Lower is better.
    Equally sure answers share their error evenly, so the order of the rows does not matter.
    """
    order = np.argsort(-confidence, kind="stable")
    starts = _tied(confidence[order])
    rows = weights[:, order]
    run = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
    in_run = np.add.reduceat(rows, starts, axis=1)
    wrong = np.add.reduceat(rows * (1 - correct[order]), starts, axis=1)
    share = np.nan_to_num(_ratio(wrong, in_run))[:, run]
    covered = np.cumsum(rows, axis=1)
    risk = np.nan_to_num(_ratio(np.cumsum(rows * share, axis=1), covered))
    return _ratio((rows * risk).sum(axis=1), covered[:, -1])


def _best_aurc(correct: Array, weights: Array) -> Array:
    """Return the smallest possible AURC: every right answer before every wrong one."""
    total = np.rint(weights.sum(axis=1)).astype(np.int64)
    wrong = np.rint(weights @ (1 - correct)).astype(np.int64)
    harmonic = np.append(0.0, np.cumsum(1.0 / np.arange(1, max(int(total.max()), 1) + 1)))
    right = total - wrong
    return _ratio(wrong - right * (harmonic[total] - harmonic[right]), total.astype(np.float64))


@Metric
def prr(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the prediction-rejection ratio: 1 for a perfect order of rejection, 0 for a random one, below 0 for worse.

    It is the improvement of AURC over random rejection as a share of the largest possible improvement.
    Source: Malinin, Mlodozeniec and Gales, "Ensemble distribution distillation" (ICLR 2020), appendix B, on the mean
    error of the answers that are kept.
    """
    chance = _mean(1 - correct, weights)
    return _ratio(chance - aurc(confidence, correct, weights), chance - _best_aurc(correct, weights))


def coverage_at_risk(max_error_rate: float) -> Metric:
    """Return the metric: largest share of answers that could be accepted with at most this error rate among them.

    The threshold is chosen with the labels, so this describes the data and promises nothing: see `risk_threshold`.
    """

    def coverage(confidence: Array, correct: Array, weights: Array) -> Array:
        total, wrong = _surest_first(confidence, correct, weights)
        fine = (wrong <= max_error_rate * total + 1e-12) & (total > 0)
        return _ratio(np.where(fine, total, 0.0).max(axis=1), total[:, -1])

    coverage.__doc__ = f"Return the largest share of answers with at most {max_error_rate:g} of them wrong."
    return Metric(coverage)


@Metric
def brier(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the mean squared difference of confidence and correctness; lower is better."""
    return _mean((confidence - correct) ** 2, weights)


def log_losses(confidence: Array, correct: Array) -> Array:
    """Return the negative log-probability of each true label, in nats."""
    p: Array = np.clip(np.where(correct > 0, confidence, 1 - confidence), SMALLEST, 1.0)
    return -np.log(p)


@Metric
def log_loss(confidence: Array, correct: Array, weights: Array) -> Array:
    """Return the mean negative log-probability of the true labels, in nats; lower is better."""
    return _mean(log_losses(confidence, correct), weights)


def expected_calibration_error(bins: Literal["mass", "width"] = "mass", n_bins: int = N_BINS) -> Metric:
    """Return the metric: mean gap between confidence and share of right answers over bins of confidence.

    Args:
        bins: `mass` makes bins with about equally many answers, `width` bins of equal length in [0, 1].
        n_bins: number of bins; equal values are never split, so `mass` may give fewer.
    """

    def ece(confidence: Array, correct: Array, weights: Array) -> Array:
        inner = np.arange(1, n_bins) / n_bins
        edges = np.unique(np.quantile(confidence, inner)) if bins == "mass" else inner
        place = np.searchsorted(edges, confidence, "right")
        member = np.eye(len(edges) + 1)[place]
        gaps = weights @ (member * (confidence - correct)[:, None])
        return _ratio(np.abs(gaps).sum(axis=1), weights.sum(axis=1))

    ece.__doc__ = f"Return the expected calibration error over {n_bins} bins of equal {bins}; lower is better."
    return Metric(ece, biased=True)


ece = expected_calibration_error("mass")
ece_equal_width = expected_calibration_error("width")


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

    def brief(self, digits: int = 2) -> str:
        """Return the value and its interval in as few columns as can be read; a dash where it is not defined."""
        if self.value is None:
            return "-"
        ends = "" if self.low is None or self.high is None else f" {self.low:.{digits}f}-{self.high:.{digits}f}"
        return f"{self.value:.{digits}f}{ends}"


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
        groups: group of each answer; whole groups are resampled. `None` makes each answer a separate group.
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
    """Return the percentile interval, without resamples on which the metric is undefined.

    Resampling noise can only raise some metrics (ECE), so their resamples are first shifted back to the measured value.
    """
    defined = resampled[np.isfinite(resampled)]
    if not np.isfinite(value):
        return Interval(value=None)
    if len(defined) < 2:
        return Interval(value=float(value))
    shift = value - defined.mean() if centred else 0.0
    low, high = np.quantile(defined + shift, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value=float(value), low=float(low), high=float(high))
