"""Probes: what a model's states and attention say about an answer, read by weights that labels taught.

A score may carry vectors (`Score.vectors`): the mean state that the answer is predicted from, and what each attention
head reads. A probe is a weighted sum of such a vector, in log-odds of the answer being right. Its weights are learnt
for the first principal components of the vectors, which need no labels; so a few hundred labels are enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from semgrad_guard.calibration.curves import fit_logistic, smoothed
from semgrad_guard.calibration.labels import grouped_folds
from semgrad_guard.signals import PROBES
from semgrad_guard.wire import Frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from semgrad_guard.calibration.labels import Labels

    Array = NDArray[np.float64]

MIN_LABELS = 250
"""With fewer labels there is no probe.

Source: probes of reduced dimension hold from about so many on (arXiv 2505.23299).
"""
MIN_OF_A_KIND = 20
"""Fewest right, and fewest wrong answers."""
N_COMPONENTS = 32
"""Most principal components that get a weight; fewer with few labels, so that each rests on ten."""
RIDGE = 0.1
"""Penalty on the weights of components, whose values have a standard deviation of 1."""


class Probe(Frozen):
    """A weighted sum of a vector."""

    name: str
    """The signal that it gives, and the key of its vector."""
    weights: tuple[float, ...] = Field(min_length=1)
    intercept: float

    def value(self, vectors: Mapping[str, Sequence[float]]) -> float:
        """Return the log-odds of the answer being right; NaN where its vector is missing or another model's."""
        vector = vectors.get(self.name, ())
        if len(vector) != len(self.weights):
            return math.nan
        with np.errstate(invalid="ignore", over="ignore"):  # an infinite value gives NaN below
            found = float(np.dot(self.weights, vector)) + self.intercept
        return found if math.isfinite(found) else math.nan


@dataclass(frozen=True, slots=True)
class Components:
    """Principal components of vectors: a map to a few numbers of mean 0 and standard deviation 1."""

    mean: Array
    """``(width,)``"""
    basis: Array
    """``(width, component)``"""

    @classmethod
    def of(cls, vectors: Array, n: int) -> Components:
        """Return the first `n` principal components of standardised vectors, ``(row, width)``."""
        mean, spread = vectors.mean(axis=0), vectors.std(axis=0)
        scale = np.where(spread > 1e-9 * np.maximum(1.0, np.abs(mean)), spread, np.inf)
        standard = (vectors - mean) / scale
        # of the rows' products, which are fewer than those of the columns
        variances, rows = np.linalg.eigh(standard @ standard.T)
        kept = np.argsort(variances)[::-1][: min(n, int((variances > 1e-9 * variances.max(initial=0.0)).sum()))]
        basis = standard.T @ (rows[:, kept] / variances[kept]) * math.sqrt(len(vectors))
        return cls(mean, basis / scale[:, None])

    def of_vectors(self, vectors: Array) -> Array:
        """Return vectors by their components, ``(row, component)``; rows of NaN stay NaN."""
        moved: Array = (vectors - self.mean) @ self.basis
        return moved


@dataclass(frozen=True, slots=True)
class FittedProbe:
    """Weights of components."""

    name: str
    weights: Array
    intercept: float

    def values(self, reduced: Array) -> Array:
        """Return the probe's value of each row."""
        return reduced @ self.weights + self.intercept

    def unfolded(self, components: Components) -> Probe:
        """Return the probe that reads whole vectors."""
        weights = components.basis @ self.weights
        return Probe(
            name=self.name,
            weights=tuple(float(f"{weight:.7g}") for weight in weights),
            intercept=float(self.intercept - components.mean @ weights),
        )


def with_components(labels: Labels) -> tuple[Labels, dict[str, Components]]:
    """Return labels whose vectors are reduced, and by what; vectors that too few rows have are left out."""
    found: dict[str, Components] = {}
    reduced: dict[str, Array] = {}
    for name, vectors in labels.vectors.items():
        rows = _usable(labels, vectors)
        if name in PROBES and _are_enough(labels.correct[rows]):
            found[name] = Components.of(vectors[rows], min(N_COMPONENTS, int(rows.sum()) // 10))
            reduced[name] = found[name].of_vectors(vectors)
    return replace(labels, vectors=reduced), found


def along(labels: Labels, components: Mapping[str, Components]) -> Labels:
    """Return further labels with their vectors reduced by components that were found before."""
    known = {name: one for name, one in components.items() if name in labels.vectors}
    return replace(labels, vectors={name: one.of_vectors(labels.vectors[name]) for name, one in known.items()})


def with_probes(labels: Labels, seed: int) -> tuple[Labels, tuple[FittedProbe, ...]]:
    """Return labels with a column for each probe, as `cross_fitted` does, and the probes of all rows."""
    return cross_fitted(labels, seed), tuple(_fit(name, labels, reduced) for name, reduced in labels.vectors.items())


def cross_fitted(labels: Labels, seed: int) -> Labels:
    """Return labels with a column for each probe: the value of a row comes from a probe that did not see its group.

    Args:
        labels: rows with reduced vectors.
        seed: of the folds.
    """
    for name, reduced in labels.vectors.items():
        column = np.full(len(labels), np.nan)
        for test in grouped_folds(labels.correct, labels.groups, seed=seed + 2):
            column[test] = _fit(name, labels.take(~test), reduced[~test]).values(reduced[test])
        labels = with_column(labels, name, column)
    return labels


def filled(labels: Labels, probes: Sequence[FittedProbe]) -> Labels:
    """Return labels with the values of fitted probes as columns; NaN where an answer has no vector."""
    for probe in probes:
        reduced = labels.vectors.get(probe.name)
        column = np.full(len(labels), np.nan) if reduced is None else probe.values(reduced)
        labels = with_column(labels, probe.name, column)
    return labels


def with_column(labels: Labels, name: str, column: Array) -> Labels:
    """Return labels with the values of one more signal, in place of those that it had."""
    if name in labels.names:
        signals = labels.signals.copy()
        signals[:, labels.names.index(name)] = column
        return replace(labels, signals=signals)
    return replace(labels, names=(*labels.names, name), signals=np.column_stack([labels.signals, column]))


def _fit(name: str, labels: Labels, reduced: Array) -> FittedProbe:
    rows = _usable(labels, reduced)
    weights, intercept = fit_logistic(
        reduced[rows],
        smoothed(labels.correct[rows]),
        signs=[0] * reduced.shape[1],
        ridge=RIDGE,
        strata=labels.strata[rows],
    )
    return FittedProbe(name, weights, intercept)


def _usable(labels: Labels, vectors: Array) -> NDArray[np.bool_]:
    """Return the rows that can teach a probe: honest answers with a vector."""
    rows: NDArray[np.bool_] = labels.honest & np.isfinite(vectors).all(axis=1)
    return rows


def _are_enough(correct: Array) -> bool:
    right = int(correct.sum())
    return len(correct) >= MIN_LABELS and min(right, len(correct) - right) >= MIN_OF_A_KIND
